"""What lies beside a tokenizer in a Hugging Face folder: its settings, chat templates, and how to generate.

Every file may be missing. Where two say the same thing, the one wins that transformers believes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dllama.errors import BadFile
from dllama.formats.checked_file import read_whole
from dllama.formats.generation_config import eos_ids_of, generation_defaults
from dllama.formats.json_file import read_object
from dllama.formats.tokenizer_json import AddedToken
from dllama.text.vocabulary import NO_ID, Facts

_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_MAX_TEMPLATE_SIZE = 1 << 18  # bytes; the renderer takes less
_MOST_TEMPLATES = 32


@dataclass(frozen=True)
class HfFiles:
    """The JSON objects of a folder, empty where there is no file.

    Attributes:
        folder: Where they are.
        tokenizer: ``tokenizer_config.json``, completed by ``special_tokens_map.json``.
        model: ``config.json``.
        generation: ``generation_config.json``.
    """

    folder: Path
    tokenizer: Mapping[str, Any]
    model: Mapping[str, Any]
    generation: Mapping[str, Any]

    @property
    def tokenizer_class(self) -> str:
        """The name of transformers' class, without the ending that says how it is built."""
        name = self.tokenizer.get("tokenizer_class")
        return name.removesuffix("Fast") if isinstance(name, str) else ""

    def flag(self, name: str) -> bool | None:
        """Give a switch of ``tokenizer_config.json``; None if it says nothing."""
        value = self.tokenizer.get(name)
        return value if isinstance(value, bool) else None

    def token_texts(self) -> dict[str, str]:
        """Give the special tokens by the names that templates have for them."""
        given = {name: self.tokenizer.get(name) for name in _TOKENS}
        texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in given.items()}
        return {name: text for name, text in texts.items() if isinstance(text, str)}

    def added_tokens(self) -> list[AddedToken]:
        """Give what ``added_tokens_decoder`` of ``tokenizer_config.json`` and ``added_tokens.json`` list, by id.

        Raises:
            BadFile: They do not have their known form.
        """
        path = self.folder / "tokenizer_config.json"
        by_id: dict[int, AddedToken] = {}
        listed = self.tokenizer.get("added_tokens_decoder")
        for key, token in listed.items() if isinstance(listed, dict) else ():
            by_id.setdefault(*_added_token(path, key, token))
        for name, token_id in read_if_there(self.folder / "added_tokens.json").items():
            by_id.setdefault(*_added_token(self.folder / "added_tokens.json", token_id, {"content": name}))
        return [by_id[token_id] for token_id in sorted(by_id)]

    def facts(self, find: Callable[[str], int | None], vocab_size: int, default: Facts) -> Facts:
        """Say what goes with a vocabulary.

        Args:
            find: Gives the id of a token by its text.
            vocab_size: Number of tokens.
            default: What the vocabulary's own file says, which holds where the others say nothing.

        Raises:
            BadFile: A template is no text.
        """
        texts = self.token_texts()
        bos_id = _known(find, texts.get("bos_token"), default.bos_id)
        named = [self.generation, self.model]
        if bos_id == NO_ID:
            bos_id = next((each for each in map(_bos_of, named) if 0 <= each < vocab_size), NO_ID)
        ends = next((ids for ids in map(eos_ids_of, named) if ids), ())
        if not ends:
            ends = tuple(each for each in [_known(find, texts.get("eos_token"), NO_ID)] if each != NO_ID)
        return Facts(
            bos_id=bos_id,
            eos_ids=tuple(each for each in ends if 0 <= each < vocab_size) or default.eos_ids,
            add_bos=default.add_bos and bos_id != NO_ID,
            add_eos=default.add_eos,
            chat_templates=self._templates(),
            token_texts=texts,
            generation=generation_defaults(self.generation),
        )

    def _templates(self) -> dict[str, str]:
        """Give the chat templates by name; a file wins over what ``tokenizer_config.json`` has."""
        own = self.folder / "chat_template.jinja"
        others = sorted((self.folder / "additional_chat_templates").glob("*.jinja"))[:_MOST_TEMPLATES]
        if own.is_file() or others:
            files = {path.stem: path for path in others} | ({"default": own} if own.is_file() else {})
            return {name: _read_template(path) for name, path in files.items()}
        given = self.tokenizer.get("chat_template")
        if isinstance(given, str):
            return {"default": given}
        rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
        pairs = [(row.get("name"), row.get("template")) for row in rows]
        return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def read_hf_files(folder: Path) -> HfFiles:
    """Read the small files of a folder; errors as in ``read_object``."""
    tokenizer = read_if_there(folder / "special_tokens_map.json") | read_if_there(folder / "tokenizer_config.json")
    model, generation = read_if_there(folder / "config.json"), read_if_there(folder / "generation_config.json")
    return HfFiles(folder, tokenizer, model, generation)


def read_if_there(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty if there is no such file."""
    return read_object(path, "configuration") if path.is_file() else {}


def missing_from(names: Iterable[str], added: Iterable[AddedToken]) -> list[AddedToken]:
    """Give those added tokens that a vocabulary with these names lacks."""
    known = set(names)
    return [token for token in added if token.content not in known]


def _added_token(path: Path, token_id: object, fields: object) -> tuple[int, AddedToken]:
    try:
        number = int(token_id) if isinstance(token_id, str | int) else -1
        given = fields if isinstance(fields, dict) else {}
        return number, msgspec.convert({**given, "id": number}, AddedToken)
    except (ValueError, msgspec.ValidationError) as error:
        raise BadFile(path, "added tokens", "ids and names of tokens", str(error)[:200]) from None


def _known(find: Callable[[str], int | None], text: str | None, default: int) -> int:
    token_id = None if text is None else find(text)
    return default if token_id is None else token_id


def _bos_of(config: Mapping[str, Any]) -> int:
    value = config.get("bos_token_id")
    return value if isinstance(value, int) and not isinstance(value, bool) else NO_ID


def _read_template(path: Path) -> str:
    try:
        return read_whole(path, "chat template", _MAX_TEMPLATE_SIZE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(path, f"byte {error.start}", "UTF-8 text", "another byte") from None
