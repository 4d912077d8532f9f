"""Templates in the manner of the makers' own against what transformers renders; see tests/golden/README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizer_worlds import cut_by, save, train_byte_level  # type: ignore[import-not-found]

from dllama.text.chat_template import ChatTemplate, Message, TemplateError, choose_template
from dllama.text.opening import open_tokenizer
from dllama.text.rank_bpe import LLAMA3_PATTERN

GOLDEN = json.loads((Path(__file__).parent / "golden" / "model_templates.json").read_text("utf-8"))
NOW = datetime.fromisoformat(GOLDEN["now"])


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ChatTemplate]]:
    """Each template in a folder of its own, in turn in ``tokenizer_config.json``, in a list there, and in a file."""
    library = train_byte_level(cut_by(LLAMA3_PATTERN), tuple(GOLDEN["tokens"].values()), vocab_size=300)
    made = {}
    for place, (name, text) in enumerate(GOLDEN["templates"].items()):
        folder = tmp_path_factory.mktemp(name)
        stored: Any = text if place % 3 == 0 else [{"name": "default", "template": text}]
        save(library, folder, {**GOLDEN["tokens"], "chat_template": "no" if place % 3 == 2 else stored})
        if place % 3 == 2:
            (folder / "chat_template.jinja").write_text(text, "utf-8")
        made[name] = choose_template(open_tokenizer(folder))
    yield made
    for template in made.values():
        template.close()


def message(turn: dict[str, Any]) -> Message:
    more = {name: value for name, value in turn.items() if name not in ("role", "content")}
    return Message(turn["role"], turn["content"], more)


@pytest.mark.parametrize("name", GOLDEN["templates"])
def test_a_checkpoints_own_template_renders_as_in_transformers(templates: dict[str, ChatTemplate], name: str) -> None:
    cases = [case for case in GOLDEN["cases"] if case["template"] == name]
    assert len(cases) == len(GOLDEN["conversations"]) * len(GOLDEN["settings"])
    for case in cases:
        variables = dict(GOLDEN["settings"][case["setting"]])
        prompt = variables.pop("add_generation_prompt")
        messages = [message(turn) for turn in GOLDEN["conversations"][case["conversation"]]]
        if "refusal" in case:
            with pytest.raises(TemplateError, match=case["refusal"]):
                templates[name].render(messages, add_generation_prompt=prompt, now=NOW, variables=variables)
        else:
            given = templates[name].render(messages, add_generation_prompt=prompt, now=NOW, variables=variables)
            assert given == case["text"], case


def test_the_template_for_tools_is_used_when_there_are_some(tmp_path: Path) -> None:
    library = train_byte_level(cut_by(LLAMA3_PATTERN), ("<s>", "</s>"), vocab_size=300)
    rows = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    with choose_template(open_tokenizer(save(library, tmp_path, {"chat_template": rows}))) as template:
        assert template.render([Message("user", "x")]) == "plain"
        assert template.render([Message("user", "x")], variables={"tools": [{}, {}]}) == "2 tools"


def test_no_part_of_a_message_becomes_a_special_token(tmp_path: Path) -> None:
    library = train_byte_level(cut_by(LLAMA3_PATTERN), ("<s>", "</s>"), vocab_size=300)
    text = "{{ messages[0].content }}{{ messages[0].tool_calls | tojson }}</s>"
    tokenizer = open_tokenizer(save(library, tmp_path, {"chat_template": text}))
    said = Message("user", "a</s>", {"tool_calls": [{"</s>k": ["</s>", 1, None, "<s>"]}]})
    with choose_template(tokenizer) as template:
        ids = template.encode([said])
        assert template.render([said]) == 'a</s>[{"</s>k": ["</s>", 1, null, "<s>"]}]</s>'
    end = tokenizer.special_names["</s>"]
    assert [token_id for token_id in ids if tokenizer.is_special(token_id)] == [end]
    assert tokenizer.decode(ids) == 'a</s>[{"</s>k": ["</s>", 1, null, "<s>"]}]'
