"""Write `tests/golden/chat_templates.json`: what transformers renders for the makers' chat templates and some of ours.

    python tools/golden/make_chat_templates.py FOLDER

FOLDER holds the makers' Jinja texts as NAME.jinja, for the names in VENDORS. They are not ours and not in this
repository: only what transformers makes of them is. Needs transformers; the rest is in `tests/golden/README.md`.
"""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import transformers
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "tests" / "golden" / "chat_templates.json"
NOW = datetime.datetime(2024, 2, 29, 13, 5, 7)  # a clock on a wall, as templates see it

CONVERSATIONS = {
    "one": [("user", "Hello")],
    "system": [("system", "You are terse."), ("user", "Hello")],
    "turns": [
        ("system", "You are terse."),
        ("user", "Hello"),
        ("assistant", "Hi there"),
        ("user", "Who are you?"),
        ("assistant", "A model."),
        ("user", "Of what?"),
    ],
    "history": [("user", "Hello"), ("assistant", "Hi there"), ("user", "Who are you?")],
    "answered": [("user", "Hello"), ("assistant", "Hi there")],
    "blanks": [
        ("system", "  be terse\n"),
        ("user", "\n  Hello  \n\n"),
        ("assistant", "  Hi\tthere \n"),
        ("user", " Who\n\nare you? "),
    ],
    "reasoning": [
        ("user", "2 + 2?"),
        ("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4."),
        ("user", "And 3 + 3?"),
        ("assistant", "<think>\n\n</think>\n\n6"),
        ("user", "Sure?"),
    ],
    "odd": [
        ("user", "{{ 7 * 7 }} {% raw %} <b>&amp;</b> 'quotes\" \\n 😀 \uff46\uff55ll e\u0301\r\n"),
        ("assistant", ""),
        ("user", "x"),
    ],
}


@dataclass(frozen=True)
class Vendor:
    """Whose template one of ours equals, and for what.

    Attributes:
        ours: The name in `dllama.text.chat_template.NAMES`.
        bos: The vocabulary's token before every text.
        eos: The one at the end of an answer.
        special: Other special tokens that matter.
        without: Conversations that this maker renders otherwise, or refuses.
        variables: More variables, each set a case of its own.
        prompts: The values of `add_generation_prompt` for which they agree.
    """

    ours: str
    bos: str = "<s>"
    eos: str = "</s>"
    special: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    variables: tuple[dict[str, Any], ...] = ({},)
    prompts: tuple[bool, ...] = (False, True)


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_IM = ("<|im_start|>", "<|im_end|>")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_BAR = "\uff5c"
VENDORS = {
    "llama2": Vendor("llama2"),
    "llama3": Vendor("llama3", "<|begin_of_text|>", "<|end_of_text|>", _HEADERS),
    "deepseek_r1": Vendor(
        "deepSeek3",
        f"<{_BAR}begin▁of▁sentence{_BAR}>",
        f"<{_BAR}end▁of▁sentence{_BAR}>",
        (f"<{_BAR}User{_BAR}>", f"<{_BAR}Assistant{_BAR}>"),
    ),
    "openhermes": Vendor("chatml", "<s>", "<|im_end|>", _IM, without=("reasoning",)),
    # Opens every answer that nothing follows with a section for reasoning, even an empty one.
    "qwen3": Vendor(
        "chatml",
        "<|endoftext|>",
        "<|im_end|>",
        _IM,
        without=("answered",),
        variables=({}, {"enable_thinking": True}, {"enable_thinking": False}),
    ),
    "zephyr": Vendor("zephyr", special=("<|system|>", "<|user|>", "<|assistant|>")),
    # Without a generation prompt it ends the whole conversation with the end of text.
    "phi35": Vendor(
        "zephyr",
        "<s>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        prompts=(True,),
    ),
    "mistral_v1": Vendor("mistral"),
    # Puts the system message into the last turn, where it would move with every answer.
    "mistral_nemo": Vendor("mistral", special=("[INST]", "[/INST]"), without=("turns", "blanks")),
    "gemma": Vendor("gemma", "<bos>", "<eos>", _TURNS, without=("system", "turns", "blanks")),
    "gemma3": Vendor("gemma", "<bos>", "<eos>", _TURNS),
    "alpaca": Vendor("alpaca"),
    "plain": Vendor("plain"),
}


@dataclass(frozen=True)
class Trick:
    """A template of ours that asks something of the machinery."""

    template: str
    conversation: str = "turns"
    add_generation_prompt: bool = True
    variables: dict[str, Any] = field(default_factory=dict)


_TOOL = {"name": "häß", "parameters": {"b": ["<i>", None, 1.5, True], "a": "it's & so"}}
TRICKS = {
    "tojson": Trick("{{ tool | tojson }}|{{ messages[0] | tojson }}", variables={"tool": _TOOL}),
    "tojson with layout": Trick(
        "{{ tool | tojson(indent=2) }}\n{{ tool | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
        variables={"tool": _TOOL},
    ),
    "break and continue": Trick(
        "{% for message in messages %}\n"
        "  {% if message.role == 'assistant' %}\n    {% continue %}\n  {% endif %}\n"
        "  {% if loop.index0 > 3 %}\n    {% break %}\n  {% endif %}\n"
        "[{{ loop.index }} {{ message.content }}]\n"
        "{% endfor %}\n"
    ),
    "white space": Trick(
        "start\n    {% if true %}\n    kept\n    {%- endif %}\n  {# note #}  \n\t{{ 'a' }} \n"
        "{%+ if true %}b{% endif +%}\n  {{- 'c' -}}  \n\n  d\n{% raw %}  {{ raw }}\n{% endraw %}\nend\n\n"
    ),
    "namespace and slices": Trick(
        "{% set found = namespace(last='', count=0) %}"
        "{% for message in messages[::-1] if message.role == 'user' %}"
        "{% if loop.first %}{% set found.last = message.content %}{% endif %}{% set found.count = loop.length %}"
        "{% endfor %}{{ found.last }} {{ found.count }} {{ messages[1:3] | map(attribute='role') | join('+') }}"
    ),
    "macros": Trick(
        "{% macro turn(message, mark='*') %}{{ mark }}{{ message.role | upper }}: {{ caller() if caller else '' }}"
        "{{ message.content }}{{ mark }}{% endmacro %}"
        "{% for message in messages %}{{ turn(message) }}\n{% endfor %}"
        "{% call turn(messages[0], mark='#') %}({{ messages | length }}) {% endcall %}"
    ),
    "the time": Trick("{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%A %H:%M:%S %j') }}|{{ strftime_now('') }}"),
    "generation": Trick(
        "{% for message in messages %}{% if message.role == 'assistant' %}\n"
        "{% generation %}\n<{{ message.content }}>\n{% endgeneration %}\n"
        "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    ),
    "refusal": Trick(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    ),
    "what is defined": Trick(
        "{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ builtin_tools is defined }} "
        "{{ add_generation_prompt }} {{ messages[0].tool_calls is defined }} {{ 'name' in messages[0] }} "
        "{{ messages[0]['name'] }}|{{ nothing }}|{{ messages is iterable }} {{ messages[0] is mapping }} "
        "{{ messages[0].content is string }} {{ none }} {{ true }} {{ 1.0 }} {{ flag is true }} {{ flag == 1 }}",
        variables={"flag": True},
    ),
    "reasoning taken out": Trick(
        "{% for message in messages %}{% set content = message.content %}"
        "{% if '</think>' in content %}"
        "{% set reason = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{% set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
        "{% else %}{% set reason = '-' %}{% endif %}[{{ reason }}|{{ content }}]{% endfor %}",
        conversation="reasoning",
    ),
    "text methods": Trick(
        "{{ messages[0].content.title() }} {{ '%s-%03d' % ('a', 7) }} {{ '{0}{1!r}'.format('b', 'c') }} "
        "{{ 'x' ~ 1 ~ none }} {{ 'ß' | upper }} {{ '  y ' | trim }}| {{ [3, 1, 2] | sort | join(',') }} "
        "{{ 'a b' | replace(' ', '_') }} {{ {'k': 1}.items() | list }} {{ 'ab'[::-1] }} {{ '<' | e }} {{ '<' | safe }} "
        "{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ 'abc' | length }} {{ 'b' in 'abc' }} {{ [1, [2]] | tojson }} "
        "{{ messages[0].items() | list | length }} {{ messages[0].get('name', 'none') }} {{ '\\u00e9\\t' | tojson }}"
    ),
    "no prompt": Trick(
        "{% if add_generation_prompt is defined %}a{% endif %}{% if add_generation_prompt %}b{% else %}c{% endif %}",
        add_generation_prompt=False,
    ),
    "odd contents": Trick("{% for message in messages %}{{ message.content }}|{% endfor %}", conversation="odd"),
}


class _Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return NOW


def render(template: str, conversation: str, add_generation_prompt: bool, variables: dict[str, Any]) -> dict[str, str]:
    """Give what transformers renders, or the text of the template's refusal."""
    messages = [{"role": role, "content": content} for role, content in CONVERSATIONS[conversation]]
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **variables
        )
    except jinja2.TemplateError as error:
        return {"refusal": str(error)}
    return {"text": rendered[0]}


def named_cases(folder: Path) -> list[dict[str, Any]]:
    """Give the renderings of every maker's template that one of ours equals."""
    cases = []
    for vendor_name, vendor in VENDORS.items():
        own = ROOT / "dllama" / "text" / "templates" / f"{vendor_name}.jinja"
        is_ours = vendor_name in ("alpaca", "plain")
        template = (own if is_ours else folder / f"{vendor_name}.jinja").read_text("utf-8")
        tokens = {"bos_token": vendor.bos, "eos_token": vendor.eos}
        for conversation in sorted(set(CONVERSATIONS) - set(vendor.without)):
            for variables in vendor.variables:
                for prompt in vendor.prompts:
                    outcome = render(template, conversation, prompt, {**tokens, **variables})
                    assert "text" in outcome, (vendor_name, conversation, outcome)
                    cases.append(_case(vendor_name, vendor, conversation, prompt, variables) | outcome)
    return cases


def _case(
    vendor_name: str, vendor: Vendor, conversation: str, prompt: bool, variables: dict[str, Any]
) -> dict[str, Any]:
    return {
        "template": vendor.ours,
        "vendor": vendor_name,
        "special": [vendor.bos, vendor.eos, *(name for name in vendor.special if name != vendor.eos)],
        "conversation": conversation,
        "add_generation_prompt": prompt,
        "variables": variables,
    }


def main() -> None:
    """Write the file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    chat_template_utils.datetime = _Clock
    tricks = []
    for name, trick in TRICKS.items():
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        outcome = render(trick.template, trick.conversation, trick.add_generation_prompt, {**tokens, **trick.variables})
        tricks.append({"name": name, **vars(trick), **outcome})
    content = {
        "made_with": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "now": NOW.isoformat(),
        "conversations": CONVERSATIONS,
        "named": named_cases(Path(sys.argv[1])),
        "machinery": tricks,
    }
    TARGET.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"{TARGET}: {len(content['named'])} renderings of named templates, {len(tricks)} of the machinery")


if __name__ == "__main__":
    main()
