"""Conversations to prompts: the model's own Jinja template, or one of ours by name.

A template writes special tokens by name, and so might a user. ``encode`` keeps them apart: a guard character is put
into every such name in a message before the template sees it, so that only the template's own names become tokens. The
Jinja text is run by ``template_renderer``, which trusts it with nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from dllama.errors import UsageError
from dllama.text.guard import GUARD, Guard, clean
from dllama.text.template_renderer import TemplateError, TemplateRenderer
from dllama.text.tokenizer import Tokenizer
from dllama.text.vocabulary import ENDS

__all__ = ["GUARD", "NAMES", "ChatTemplate", "Message", "TemplateError", "choose_template"]

# `zephyr` is the second form of chatml, with one special token for each role; Phi-3 has it too.
NAMES = ("llama2", "llama3", "deepSeek3", "chatml", "zephyr", "mistral", "gemma", "alpaca", "plain")
STORED = "stored"  # the name of the tokenizer file's own
_FOLDER = Path(__file__).with_name("templates")
# The first template whose tokens are all special in a vocabulary is taken to be its own.
_SIGNS = (
    ("deepSeek3", ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")),
    ("llama3", ("<|start_header_id|>", "<|eot_id|>")),
    ("chatml", ("<|im_start|>", "<|im_end|>")),
    ("zephyr", ("<|user|>", "<|assistant|>")),
    ("gemma", ("<start_of_turn>", "<end_of_turn>")),
    ("mistral", ("[INST]", "[/INST]")),
)
# What a model writes into its answers and templates look for; no message ends with it.
_ANSWER_TAGS = {"<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>"}
_STOPS = {"alpaca": ("\n### Instruction:",), "plain": ("\nUser:",)}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``"system"``, ``"user"``, ``"assistant"`` or what a template knows.
        content: What was said.
        more: What else a template may ask of the turn, such as ``tool_calls``: values that JSON can hold.
    """

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)


class ChatTemplate:
    """Turns conversations into prompts; made by ``choose_template``.

    The first rendering starts a process, which ``close`` ends.

    Attributes:
        name: One of ``NAMES``, or ``"stored"`` for the tokenizer file's own.
        stop_strings: Texts that end an answer, beside special tokens.
        stop_ids: Special tokens that end an answer: the tokenizer's ``eos_ids`` and the template's own end of turn.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, text: str, tool_text: str | None = None) -> None:
        self.name, self._tokenizer = name, tokenizer
        what = "the tokenizer's chat template" if name == STORED else f"chat template {name}"
        self._renderer = TemplateRenderer(text, what)
        self._tool_renderer = TemplateRenderer(tool_text, what) if tool_text is not None else self._renderer
        self._variables, names = _token_variables(tokenizer, name), tokenizer.special_names
        if name != STORED:  # what our own ask beside
            end = "<|end|>" if "<|end|>" in names else self._variables.get("eos_token", "")
            self._variables |= {"end_token": end, "inst_is_special": "[INST]" in names}
        ends = [end for end in ENDS if end in text] + ["<|end|>"] * (name == "zephyr" and "<|end|>" in names)
        self.stop_strings = tuple(end for end in ends if end not in names) + _STOPS.get(name, ())
        self.stop_ids = tuple(dict.fromkeys([*tokenizer.eos_ids, *(names[end] for end in ends if end in names)]))
        # An answer is told to the model as it gave it, so that the tokens stay the same; whole names are none of those.
        self._guard, self._answer_guard = Guard(names), Guard(set(names) - _ANSWER_TAGS, whole_only=True)

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process that renders; the template can still be used, and starts another."""
        self._renderer.close()
        self._tool_renderer.close()

    def render(
        self,
        messages: Iterable[Message],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Give the prompt as text, as transformers would.

        Args:
            messages: The conversation; lone surrogates in it become U+FFFD, and U+FDD0 is left out.
            add_generation_prompt: Whether to open the assistant's answer.
            now: The time that the template is told; None for the real one.
            variables: What the template knows beside, e.g. ``{"enable_thinking": False}``; numbers, texts, lists and
                dictionaries.

        Raises:
            TemplateError: The template is broken, refuses these messages, or takes too much time or space.
        """
        said = [_as_dict(message, clean, clean) for message in messages]
        return self._render(said, add_generation_prompt, now, variables)

    def render_guarded(
        self,
        messages: Iterable[Message],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Give what ``render`` does, with ``GUARD`` inside whatever a message says that reads as a special token."""
        said = [self._guarded(message) for message in messages]
        return self._render(said, add_generation_prompt, now, variables)

    def encode(
        self,
        messages: Iterable[Message],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Give the prompt as token ids; arguments and errors as in ``render``."""
        text = self.render_guarded(messages, add_generation_prompt=add_generation_prompt, now=now, variables=variables)
        return self.encode_guarded(text)

    def encode_guarded(self, text: str) -> list[int]:
        """Give the token ids of what ``render_guarded`` gave, with BOS once where the model wants it."""
        ids = self._tokenizer.encode(text, add_bos=False, parse_special=True)
        starts = ids[:1] == [self._tokenizer.bos_id]
        return ids if starts or not self._tokenizer.add_bos else [self._tokenizer.bos_id, *ids]

    def _guarded(self, message: Message) -> dict[str, Any]:
        guard = self._answer_guard if message.role == "assistant" else self._guard
        return _as_dict(message, lambda text: self._guard(clean(text)), lambda text: guard(clean(text)))

    def _render(
        self,
        said: list[dict[str, Any]],
        add_generation_prompt: bool,
        now: datetime | None,
        variables: Mapping[str, object] | None,
    ) -> str:
        known = {"tools": None, "documents": None, **self._variables, **(variables or {})}
        known |= {"messages": said, "add_generation_prompt": add_generation_prompt}
        renderer = self._tool_renderer if known["tools"] else self._renderer
        return renderer.render(known, now or datetime.now())


def choose_template(tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
    """Give a template: by ``name``, else the tokenizer file's own, else the one its special tokens speak for.

    Args:
        tokenizer: The vocabulary of the model.
        name: One of ``NAMES``, in any case.

    Raises:
        UsageError: There is no template ``name``.
        TemplateError: The stored template is too long.
    """
    own = tokenizer.chat_templates
    if name is None and "default" in own:
        return ChatTemplate(tokenizer, STORED, own["default"], own.get("tool_use"))
    name = _detect(tokenizer) if name is None else _known(name)
    return ChatTemplate(tokenizer, name, (_FOLDER / f"{name}.jinja").read_text("utf-8"))


def _known(name: str) -> str:
    names = {known.lower(): known for known in NAMES}
    if name.lower() in names:
        return names[name.lower()]
    close = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {names[close[0]]}? " if close else ""
    raise UsageError(f"--chat-template {name!r}: {hint}there are {', '.join(NAMES)}")


def _detect(tokenizer: Tokenizer) -> str:
    names = tokenizer.special_names
    return next((name for name, signs in _SIGNS if all(sign in names for sign in signs)), "plain")


def _as_dict(message: Message, of_role: Callable[[str], str], of_text: Callable[[str], str]) -> dict[str, Any]:
    """Give a message as templates know it, its texts changed."""
    return {"role": of_role(message.role), "content": of_text(message.content), **_changed(message.more, of_text)}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Change every text in a value that JSON can hold, however deep; keys are texts too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _changed(each, change) for key, each in value.items()}
    return [_changed(each, change) for each in value] if isinstance(value, list | tuple) else value


def _token_variables(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """Give the special tokens by the names that templates have for them; the model's own gets what its files name."""
    if name == STORED and tokenizer.token_texts is not None:
        return dict(tokenizer.token_texts)
    names = tokenizer.special_names
    by_id = {token_id: name for name, token_id in names.items()}
    eos = by_id.get(tokenizer.eos_ids[0], "") if tokenizer.eos_ids else ""
    known = {"bos_token": by_id.get(tokenizer.bos_id, ""), "eos_token": eos}
    known |= {f"{kind}_token": f"<{kind}>" for kind in ("unk", "pad") if f"<{kind}>" in names}
    return known | dict(tokenizer.token_texts or {})
