"""Chat templates against what transformers renders for the makers' own; see tests/golden/README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from chat_vocabularies import rank_vocabulary  # type: ignore[import-not-found]

from dllama.text.chat_template import NAMES, ChatTemplate, Message, TemplateError, choose_template

GOLDEN = json.loads((Path(__file__).parent / "golden" / "chat_templates.json").read_text("utf-8"))
NOW = datetime.fromisoformat(GOLDEN["now"])
VENDORS = list(dict.fromkeys(case["vendor"] for case in GOLDEN["named"]))


def render(template: ChatTemplate, case: dict[str, Any]) -> str:
    messages = [Message(*turn) for turn in GOLDEN["conversations"][case["conversation"]]]
    prompt = case["add_generation_prompt"]
    return template.render(messages, add_generation_prompt=prompt, now=NOW, variables=case["variables"])


@pytest.mark.parametrize("vendor", VENDORS)
def test_named_templates_equal_their_makers(vendor: str) -> None:
    cases = [case for case in GOLDEN["named"] if case["vendor"] == vendor]
    tokenizer = rank_vocabulary(*cases[0]["special"])
    with choose_template(tokenizer, cases[0]["template"]) as template:
        for case in cases:
            assert render(template, case) == case["text"], case["conversation"]


def test_every_name_has_golden_renderings() -> None:
    assert {case["template"] for case in GOLDEN["named"]} == set(NAMES)


@pytest.fixture(scope="module")
def tricks() -> Iterator[dict[str, ChatTemplate]]:
    texts = {case["name"]: case["template"] for case in GOLDEN["machinery"]}
    templates = {
        name: choose_template(rank_vocabulary("<s>", "</s>", chat_template=text)) for name, text in texts.items()
    }
    yield templates
    for template in templates.values():
        template.close()


@pytest.mark.parametrize("case", GOLDEN["machinery"], ids=lambda case: case["name"].replace(" ", "-"))
def test_stored_templates_render_as_in_transformers(tricks: dict[str, ChatTemplate], case: dict[str, Any]) -> None:
    template = tricks[case["name"]]
    assert template.name == "stored"
    if "refusal" in case:
        with pytest.raises(TemplateError, match=case["refusal"]):
            render(template, case)
    else:
        assert render(template, case) == case["text"]
