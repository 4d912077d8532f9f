"""Special tokens typed by a user stay text, whatever the template does with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import pytest
from chat_vocabularies import BAR, HEADERS, names_of, rank_vocabulary, spelled  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import byte_tokenizer_data  # type: ignore[import-not-found]

from dllama.text.chat_template import GUARD, ChatTemplate, Message, choose_template
from dllama.text.guard import Guard
from dllama.text.tokenizer import Tokenizer

LLAMA3 = Tokenizer(byte_tokenizer_data())
VOCABULARIES = [
    rank_vocabulary("<|begin_of_text|>", "<|end_of_text|>", *HEADERS, "<|reserved_special_token_0|>"),
    rank_vocabulary("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<tool_response>", add_bos=False),
    rank_vocabulary(
        f"<{BAR}begin{BAR}>", f"<{BAR}end▁of▁sentence{BAR}>", f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"
    ),
    rank_vocabulary("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    rank_vocabulary("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    rank_vocabulary("<s>", "</s>", "[INST]", "[/INST]", "X", "ab", "abc", "<<s>"),
    rank_vocabulary("<s>", "</s>"),
]
TEMPLATES = [choose_template(tokenizer) for tokenizer in VOCABULARIES]
# Takes text out of messages, which might bring the two halves of a name together.
STORED = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content | replace('b', '') | trim }}{{ m.content[1:] }}</s>"
    "{% endfor %}"
)
TEMPLATES.append(choose_template(rank_vocabulary("<s>", "</s>", "<|user|>", chat_template=STORED)))


@pytest.fixture(scope="module", autouse=True)
def _close_templates() -> Iterator[None]:
    yield
    for template in TEMPLATES:
        template.close()


SIGNS = ["<", ">", "|", "<|", "|>", "[", "]", "</s", "a", "b", "\n", " ", "\0", GUARD, "\ud800", "😀", "</think>"]


def contents_for(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    pieces = st.sampled_from([*tokenizer.special_names]) | st.sampled_from(SIGNS) | st.text(max_size=4)
    return st.lists(pieces, max_size=6).map("".join)


def composed(text: str) -> str:
    """Put accents and letters together, as some vocabularies do."""
    return unicodedata.normalize("NFC", text)


@settings(max_examples=40)
@given(st.data())
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_special_tokens_in_messages_stay_text(template: ChatTemplate, data: st.DataObject) -> None:
    tokenizer = template._tokenizer
    roles = ["system", "user", "assistant", "user"]
    messages = [Message(role, data.draw(contents_for(tokenizer), label=role)) for role in roles]
    guarded = template.render_guarded(messages)
    token_ids = template.encode_guarded(guarded)
    harmless = template.encode([Message(role, "-") for role in roles])
    assert names_of(tokenizer, token_ids) == names_of(tokenizer, harmless)
    bos = tokenizer.piece(tokenizer.bos_id).decode() if tokenizer.add_bos else ""
    text = ("" if guarded.startswith(bos) else bos) + guarded.replace(GUARD, "")
    assert composed(spelled(tokenizer, token_ids)) == composed(text)


@given(contents_for(LLAMA3), contents_for(LLAMA3))
def test_rendering_is_the_same_with_and_without_guards(question: str, answer: str) -> None:
    messages = [Message("user", question), Message("assistant", answer)]
    template = TEMPLATES[0]
    assert template.render_guarded(messages).replace(GUARD, "") == template.render(messages)


def test_names_that_appear_when_a_template_takes_text_out_are_guarded_too() -> None:
    stored = "{{ messages[0].content | replace('!', '') }}"
    tokenizer = rank_vocabulary("<s>", "</s>", "[INST]", chat_template=stored)
    with choose_template(tokenizer) as template:
        token_ids = template.encode([Message("user", "<!/s!>[!INST]")])
    assert names_of(tokenizer, token_ids) == ["<s>"]
    assert spelled(tokenizer, token_ids) == "<s></s>[INST]"


def test_half_characters_become_replacement_characters() -> None:
    with choose_template(LLAMA3, "plain") as template:
        assert template.render([Message("user", "a\ud800b\ud83d\ude00")]) == "User: a\ufffdb😀\nAssistant:"


def test_a_role_may_not_hold_special_tokens_either() -> None:
    with choose_template(LLAMA3) as template:
        token_ids = template.encode([Message("user<|eot_id|>", "Hi")], add_generation_prompt=False)
    assert names_of(LLAMA3, token_ids).count("<|eot_id|>") == 1


def test_reasoning_tags_are_tokens_in_answers_and_text_elsewhere() -> None:
    tokenizer = rank_vocabulary("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", add_bos=False)
    answer = "<think>\nHm.\n</think>\n\nHi<|im_end|>"
    with choose_template(tokenizer) as template:
        last = template.encode([Message("user", "<think>"), Message("assistant", answer)], add_generation_prompt=False)
        earlier = template.encode([Message("user", "a"), Message("assistant", answer), Message("user", "b")])
    assert [name for name in names_of(tokenizer, last) if "think" in name] == ["<think>", "</think>"]
    assert names_of(tokenizer, last).count("<|im_end|>") == 2
    assert "Hm." not in spelled(tokenizer, earlier)
    assert "assistant\nHi<|im_end|><|im_end|>" in spelled(tokenizer, earlier)


def test_reasoning_is_dropped_before_the_last_question_even_if_asked_before() -> None:
    turns = [Message("user", "Again"), Message("assistant", "<think>x</think>\n\ny"), Message("user", "Again")]
    with choose_template(LLAMA3, "chatml") as template:
        assert "think" not in template.render(turns)


def test_megabytes_are_rendered() -> None:
    text = "<|eot_id|> 深い " * 200_000
    with choose_template(LLAMA3) as template:
        assert text.strip() in template.render([Message("user", text)])


NAMES = ["<s>", "[X]", "a b", "é", "|", "<<s>"]
TEXTS = st.lists(st.sampled_from([*NAMES, *"<s>[]Xab", " "]) | st.text(max_size=3)).map("".join)


@given(st.sets(st.sampled_from(NAMES)), TEXTS, st.booleans())
def test_a_guarded_text_has_no_name_in_it_and_is_the_same_text(names: set[str], text: str, whole_only: bool) -> None:
    text = text.replace(GUARD, "")
    guarded = Guard(names, whole_only)(text)
    assert guarded.replace(GUARD, "") == text
    assert not [name for name in names if len(name) > 1 and name in guarded]
    if whole_only:
        assert (guarded == text) == (not any(name in text for name in names))


def test_an_answer_without_names_is_given_back_as_it_was() -> None:
    answer = "if (a < b) { return <b>[0]</b>; } </think>"
    with choose_template(LLAMA3) as template:
        assert answer in template.render_guarded([Message("user", "Code!"), Message("assistant", answer)])
