"""Chat templates: which one is chosen, what is in a prompt, and what ends an answer."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from chat_vocabularies import (  # type: ignore[import-not-found]
    BAR,
    HEADERS,
    IM,
    names_of,
    rank_vocabulary,
    score_vocabulary,
    spelled,
)
from model_files import byte_tokenizer_data  # type: ignore[import-not-found]

import dllama
from dllama.errors import UsageError
from dllama.text.chat_template import NAMES, Message, TemplateError, choose_template
from dllama.text.tokenizer import Tokenizer

LLAMA3 = Tokenizer(byte_tokenizer_data())
TURNS = [
    Message("system", "Be terse."),
    Message("user", "Hello"),
    Message("assistant", "Hi there"),
    Message("user", "Who are you?"),
    Message("assistant", "A model."),
    Message("user", "Of what?"),
]


# Which template is chosen.


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_found_in_any_case(name: str) -> None:
    assert choose_template(LLAMA3, name.upper()).name == name


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean llama3") as error:
        choose_template(LLAMA3, "lama-3")
    assert "deepSeek3" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_wins_over_the_stored_template_and_that_over_the_vocabulary() -> None:
    tokenizer = rank_vocabulary("<s>", "</s>", *IM, chat_template="mine: {{ messages[0].content }}")
    with choose_template(tokenizer) as stored, choose_template(tokenizer, "plain") as named:
        assert (stored.name, stored.render(TURNS)) == ("stored", "mine: Be terse.")
        assert (named.name, named.render(TURNS[1:2])) == ("plain", "User: Hello\nAssistant:")


@pytest.mark.parametrize(
    ("special", "name"),
    [
        (HEADERS, "llama3"),
        (IM, "chatml"),
        (("<|user|>", "<|assistant|>"), "zephyr"),
        ((f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"), "deepSeek3"),
        ((*HEADERS, f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"), "deepSeek3"),
        (("<start_of_turn>", "<end_of_turn>"), "gemma"),
        (("[INST]", "[/INST]"), "mistral"),
        (("<|user|>",), "plain"),
        ((), "plain"),
    ],
)
def test_a_vocabulary_speaks_for_a_template(special: tuple[str, ...], name: str) -> None:
    assert choose_template(rank_vocabulary("<s>", "</s>", *special)).name == name


def test_score_vocabularies_speak_only_through_special_tokens() -> None:
    assert choose_template(score_vocabulary("[INST]", "[/INST]")).name == "mistral"
    assert choose_template(score_vocabulary(words=("[INST]", "[/INST]"))).name == "plain"


# What ends an answer.


def test_the_templates_own_end_of_turn_ends_answers_beside_eos() -> None:
    tokenizer = rank_vocabulary("<|begin_of_text|>", "<|end_of_text|>", *HEADERS)
    template = choose_template(tokenizer)
    assert [tokenizer.piece(stop) for stop in template.stop_ids] == [b"<|end_of_text|>", b"<|eot_id|>"]
    assert template.stop_strings == ()


def test_an_end_of_turn_that_is_no_token_is_a_stop_string() -> None:
    tokenizer = rank_vocabulary("<s>", "</s>")
    template = choose_template(tokenizer, "chatml")
    assert (template.stop_ids, template.stop_strings) == (tokenizer.eos_ids, ("<|im_end|>",))
    stored = rank_vocabulary("<s>", "</s>", chat_template="{{ messages[0].content + '<|im_end|>' }}")
    assert choose_template(stored).stop_strings == ("<|im_end|>",)


def test_the_second_chatml_ends_turns_with_end_or_eos() -> None:
    roles = ("<|system|>", "<|user|>", "<|assistant|>")
    with_end, without = rank_vocabulary("<s>", "</s>", *roles, "<|end|>"), rank_vocabulary("<s>", "</s>", *roles)
    with choose_template(with_end) as phi, choose_template(without) as zephyr:
        assert phi.render(TURNS[1:2]) == "<|user|>\nHello<|end|>\n<|assistant|>\n"
        assert zephyr.render(TURNS[1:2]) == "<|user|>\nHello</s>\n<|assistant|>\n"
        assert phi.stop_ids == (*with_end.eos_ids, with_end.special_names["<|end|>"])
        assert zephyr.stop_ids == without.eos_ids


@pytest.mark.parametrize(("name", "stop"), [("plain", "\nUser:"), ("alpaca", "\n### Instruction:")])
def test_templates_of_plain_text_stop_where_the_user_would_speak(name: str, stop: str) -> None:
    with choose_template(LLAMA3, name) as template:
        assert template.stop_strings == (stop,)
        assert stop in template.render(TURNS)


# distributed-llama's faults, which must not come back.


def test_llama3_ends_turns_with_eot_whatever_the_first_eos_is() -> None:
    assert LLAMA3.piece(LLAMA3.eos_ids[0]) == b"<|end_of_text|>"
    with choose_template(LLAMA3) as template:
        names = names_of(LLAMA3, template.encode(TURNS))
    assert names.count("<|eot_id|>") == len(TURNS)
    assert "<|end_of_text|>" not in names


def test_chatml_opens_the_answer_once_after_all_messages() -> None:
    tokenizer = rank_vocabulary("<|endoftext|>", "<|im_end|>", "<|im_start|>", add_bos=False)
    with choose_template(tokenizer) as template:
        text = template.render(TURNS)
    assert text.count("<|im_start|>assistant\n") == 3
    assert text.endswith("Of what?<|im_end|>\n<|im_start|>assistant\n")


ENDS = {
    "llama2": (rank_vocabulary("<s>", "</s>"), "</s>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "deepSeek3": (
        rank_vocabulary(f"<{BAR}begin{BAR}>", f"<{BAR}end▁of▁sentence{BAR}>"),
        f"<{BAR}end▁of▁sentence{BAR}>",
    ),
    "chatml": (rank_vocabulary("<s>", "</s>", *IM), "<|im_end|>"),
    "zephyr": (rank_vocabulary("<s>", "</s>"), "</s>"),
    "mistral": (rank_vocabulary("<s>", "</s>", "[INST]", "[/INST]"), "</s>"),
    "gemma": (rank_vocabulary("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "alpaca": (rank_vocabulary("<s>", "</s>"), "</s>"),
}


@pytest.mark.parametrize("name", ENDS)
def test_later_turns_hold_the_end_of_earlier_answers(name: str) -> None:
    tokenizer, end = ENDS[name]
    with choose_template(tokenizer, name) as template:
        token_ids = template.encode(TURNS)
    text = spelled(tokenizer, token_ids)
    assert tokenizer.special_names[end] in token_ids
    assert text.index("Hi there") < text.index(end, text.index("Hi there")) < text.index("Who are you?")


@pytest.mark.parametrize("name", [*ENDS, "plain"])
def test_the_prompt_is_whole_and_begins_with_bos_once(name: str) -> None:
    tokenizer, _ = ENDS.get(name, (LLAMA3, ""))
    with choose_template(tokenizer, name) as template:
        text, token_ids = template.render(TURNS), template.encode(TURNS)
    bos = tokenizer.piece(tokenizer.bos_id).decode()
    assert spelled(tokenizer, token_ids) == (text if text.startswith(bos) else bos + text)
    assert token_ids[0] == tokenizer.bos_id
    assert token_ids[1] != tokenizer.bos_id


def test_a_model_without_bos_gets_none() -> None:
    tokenizer = rank_vocabulary("<|endoftext|>", "<|im_end|>", "<|im_start|>", add_bos=False)
    with choose_template(tokenizer) as template:
        assert tokenizer.bos_id not in template.encode(TURNS)


# What templates are told.


def test_the_template_is_told_the_time_it_is_given() -> None:
    tokenizer = rank_vocabulary("<s>", "</s>", chat_template="{{ strftime_now('%d %b %Y') }}")
    with choose_template(tokenizer) as template:
        assert template.render([], now=datetime(2025, 1, 31)) == "31 Jan 2025"
        assert template.render([]) == datetime.now().strftime("%d %b %Y")


def test_variables_reach_the_template() -> None:
    with choose_template(LLAMA3, "chatml") as template:
        text = template.render(TURNS[1:2], variables={"enable_thinking": False})
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_templates_know_special_tokens_by_their_names() -> None:
    text = "{{ bos_token }} {{ eos_token }} {{ unk_token }} {{ pad_token is defined }}"
    with choose_template(score_vocabulary(chat_template=text)) as template:
        assert template.render([]) == "<s> </s> <unk> False"


# Score vocabularies.


def test_a_space_behind_a_special_token_is_not_doubled() -> None:
    tokenizer = score_vocabulary(words=("▁[INST]", "▁Hi"))
    with choose_template(tokenizer, "mistral") as template:
        text, token_ids = template.render([Message("user", "Hi")]), template.encode([Message("user", "Hi")])
    assert text == "<s> [INST] Hi [/INST]"
    pieces = [tokenizer.piece(token_id).decode() for token_id in token_ids]
    assert "".join(pieces) == "<s>▁[INST]▁Hi▁[/INST]"


def test_mistrals_special_brackets_stand_alone() -> None:
    tokenizer = score_vocabulary("[INST]", "[/INST]")
    with choose_template(tokenizer) as template:
        token_ids = template.encode([Message("user", "[/INST]"), Message("assistant", "Hi"), Message("user", "Yo")])
    pieces = [tokenizer.piece(token_id).decode() for token_id in token_ids]
    assert pieces[:3] == ["<s>", "[INST]", "▁"]
    assert "".join(pieces) == "<s>[INST]▁[/INST][/INST]▁Hi</s>[INST]▁Yo[/INST]"
    assert names_of(tokenizer, token_ids) == ["<s>", "[INST]", "[/INST]", "</s>", "[INST]", "[/INST]"]


# The bundled model.


def test_the_bundled_model_has_a_template_of_its_own() -> None:
    tokenizer = Tokenizer.from_file(Path(dllama.__file__).parent / "demo" / "tokenizer.t")
    with choose_template(tokenizer) as stored, choose_template(tokenizer, "llama3") as named:
        assert stored.name == "stored"
        assert stored.encode(TURNS) == named.encode(TURNS)
        assert tokenizer.special_names["<|eot_id|>"] in stored.stop_ids


def test_a_broken_stored_template_says_where_and_what_to_do() -> None:
    tokenizer = rank_vocabulary("<s>", "</s>", chat_template="{% if messages %}\n{{ bos_token }}\n{% endfor %}")
    with choose_template(tokenizer) as template, pytest.raises(TemplateError) as error:
        template.render(TURNS)
    assert "line 3" in str(error.value)
    assert "--chat-template NAME" in str(error.value)
