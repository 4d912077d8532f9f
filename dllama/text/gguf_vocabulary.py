"""The vocabularies of GGUF files, from their ``tokenizer.ggml.*`` metadata.

Byte-level BPE (``gpt2``) becomes what a ``tokenizer.json`` would say, SentencePiece's kinds (``llama``, ``t5``) a model
of SentencePiece; both are then like any other of their kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.generation_config import generation_defaults
from dllama.formats.spm_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, SpmModel, check_charsmap
from dllama.formats.tokenizer_json import AddedToken, TokenizerJson, parse_tokenizer_json
from dllama.text.json_vocabulary import JsonVocabulary
from dllama.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from dllama.text.score_bpe import SPACE_MARK
from dllama.text.spm_vocabulary import SpmVocabulary
from dllama.text.vocabulary import ENDS, NO_ID, Facts, Vocabulary

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_SAMPLING = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}  # ours for GGUF's other names
_ENDS = (*ENDS, "<|eom_id|>")  # where a file does not say which token ends an answer


class GgufMetadata:
    """Metadata by short names, each compared with the type it must have.

    Args:
        path: The file, for messages.
        metadata: Its metadata.
    """

    def __init__(self, path: str, metadata: Mapping[str, object]) -> None:
        self.path, self._metadata = path, metadata

    def get(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """Give the value of a key of the tokenizer, or ``default`` if it has none.

        Raises:
            BadFile: It has another type.
        """
        return self.get_full(_PREFIX + key, kind, default)

    def get_full(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """Give the value of any key; as ``get``."""
        value = self._metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadFile(self.path, key, kind.__name__, type(value).__name__)
        return value

    def with_prefix(self, prefix: str) -> dict[str, object]:
        """Give all keys that begin so, without the beginning."""
        return {key.removeprefix(prefix): value for key, value in self._metadata.items() if key.startswith(prefix)}

    def need(self, key: str) -> Sequence[Any]:
        """Give a list of the tokenizer that must be there."""
        value = self._metadata.get(_PREFIX + key)
        if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
            found = "none" if value is None else type(value).__name__
            raise BadFile(self.path, _PREFIX + key, "a list", found)
        return value  # type: ignore[return-value]

    def numbers(self, key: str, size: int, kind: str) -> np.ndarray[Any, Any] | None:
        """Give an array of ``size`` numbers of the kinds ``kind`` (``"iu"``, ``"f"``), or None if it is not there."""
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            return None
        array = np.asarray(value)
        if array.shape != (size,) or array.dtype.kind not in kind:
            raise BadFile(self.path, _PREFIX + key, f"{size} numbers", f"shape {array.shape} of {array.dtype}")
        return array


def gguf_vocabulary(path: str, metadata: Mapping[str, object]) -> Vocabulary:
    """Make the vocabulary that the metadata of a GGUF file describes.

    Raises:
        BadFile: It is not a sound one. UnsupportedModel: It is of a kind, or cuts text in a way, that dllama lacks.
    """
    known = GgufMetadata(path, metadata)
    kind = known.get("model", str)
    if kind == "gpt2":
        return _byte_level(known)
    if kind in ("llama", "t5"):
        return _sentencepiece(known, is_unigram=kind == "t5")
    if kind is None:
        raise BadFile(path, _PREFIX + "model", "a tokenizer", "none; name one with --tokenizer")
    expected = "a tokenizer of kind gpt2, llama or t5"
    raise UnsupportedModel(path, _PREFIX + "model", expected, f"{kind!r:.80}; name another with --tokenizer")


def _byte_level(known: GgufMetadata) -> JsonVocabulary:
    name = known.get("pre", str, "default")
    cuts = PRE_TOKENIZERS.get(name)
    if cuts is None:
        found = f"{name!r:.80}; use the model's own tokenizer.json (--tokenizer)"
        raise UnsupportedModel(known.path, _PREFIX + "pre", f"one of {', '.join(PRE_TOKENIZERS)}", found)
    file = _as_tokenizer_json(known, cuts)
    pieces = [piece or "" for piece in file.pieces]
    return JsonVocabulary(file, _facts(known, pieces, (NO_ID, NO_ID), adds_bos=cuts.adds_bos))


def _as_tokenizer_json(known: GgufMetadata, cuts: PreTokenizer) -> TokenizerJson:
    tokens = _texts(known, known.need("tokens"))
    kinds = known.numbers("token_type", len(tokens), "iu")
    merges = [str(merge) for merge in known.need("merges")]
    named = [] if kinds is None else np.flatnonzero((kinds == CONTROL) | (kinds == USER_DEFINED)).tolist()
    added = [AddedToken(each, tokens[each], special=bool(kinds[each] == CONTROL)) for each in named]  # type: ignore[index]
    used = list(range(len(tokens))) if kinds is None else np.flatnonzero(kinds != UNUSED).tolist()
    vocab = {tokens[each]: each for each in used}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": cuts.ignores_merges}
    if len(vocab) < len(used):
        raise BadFile(known.path, _PREFIX + "tokens", "different tokens", "some that are there before")
    top = {"added_tokens": [msgspec.structs.asdict(token) for token in added], **cuts.parts(), "model": model}
    try:
        return parse_tokenizer_json(known.path, msgspec.json.encode(top))
    except UnicodeEncodeError:
        raise BadFile(known.path, _PREFIX + "merges", "UTF-8", "other bytes") from None


def _texts(known: GgufMetadata, tokens: Sequence[Any]) -> list[str]:
    """Give the tokens as text; one that is empty gets a name that no text has."""
    texts = [token or f"[EMPTY_{each}]" for each, token in enumerate(tokens)]
    try:
        "".join(texts).encode("utf-8")
    except (TypeError, UnicodeEncodeError):
        raise BadFile(known.path, _PREFIX + "tokens", "texts in UTF-8", "others") from None
    return texts


def _sentencepiece(known: GgufMetadata, is_unigram: bool) -> SpmVocabulary:
    pieces = _texts(known, known.need("tokens"))
    scores = known.numbers("scores", len(pieces), "f")
    if scores is None or not np.isfinite(scores).all():
        raise BadFile(known.path, _PREFIX + "scores", "a finite score for each token", "others")
    kinds = _kinds(known, pieces)
    charsmap = known.numbers("precompiled_charsmap", _length(known, "precompiled_charsmap"), "iu")
    table = b"" if charsmap is None else charsmap.astype(np.uint8).tobytes()
    check_charsmap(known.path, table)
    facts = _facts(known, pieces, (NO_ID, 1) if is_unigram else (1, 2), adds_bos=not is_unigram, adds_eos=is_unigram)
    written = [
        piece.replace(" ", SPACE_MARK) if kind in (NORMAL, USER_DEFINED) else piece
        for piece, kind in zip(pieces, kinds, strict=True)
    ]
    model = SpmModel(
        pieces=written,
        scores=scores.astype(np.float32),
        kinds=kinds,
        is_unigram=is_unigram,
        adds_space=known.get("add_space_prefix", bool, True),
        removes_spaces=known.get("remove_extra_whitespaces", bool, False),
        charsmap=table,
    )
    return SpmVocabulary(known.path, model, facts, unused_is_text=False)


def _length(known: GgufMetadata, key: str) -> int:
    value = known.get(key, object)
    return len(value) if hasattr(value, "__len__") else 0


def _kinds(known: GgufMetadata, pieces: Sequence[str]) -> list[int]:
    given = known.numbers("token_type", len(pieces), "iu")
    if given is None:
        raise BadFile(known.path, _PREFIX + "token_type", "a kind for each token", "none")
    kinds = [int(kind) if NORMAL <= kind <= BYTE else NORMAL for kind in given.tolist()]
    unknown_id = known.get("unknown_token_id", int, 0)
    if UNKNOWN not in kinds and 0 <= unknown_id < len(kinds):
        kinds[unknown_id] = UNKNOWN
    return kinds


def _facts(
    known: GgufMetadata, pieces: Sequence[str], defaults: tuple[int, int], adds_bos: bool, adds_eos: bool = False
) -> Facts:
    bos_id = _id(known, "bos", len(pieces), defaults[0])
    eos_id = _id(known, "eos", len(pieces), defaults[1])
    ends = [eos_id, *(_id(known, name, len(pieces), NO_ID) for name in ("eot", "eom"))]
    if known.get("eot_token_id", int) is None:
        places = {piece: token_id for token_id, piece in enumerate(pieces)}
        ends += [places[name] for name in _ENDS if name in places]
    ids = {"bos": bos_id, "eos": eos_id}
    ids |= {name: _id(known, full, len(pieces), NO_ID) for name, full in (("unk", "unknown"), ("pad", "padding"))}
    return Facts(
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(each for each in ends if each != NO_ID)),
        add_bos=known.get("add_bos_token", bool, adds_bos) and bos_id != NO_ID,
        add_eos=known.get("add_eos_token", bool, adds_eos) and eos_id != NO_ID,
        chat_templates=_templates(known),
        token_texts={f"{name}_token": pieces[each] for name, each in ids.items() if each != NO_ID},
        generation=generation_defaults(_sampling(known)),
    )


def _id(known: GgufMetadata, name: str, vocab_size: int, default: int) -> int:
    key = f"{name}_token_id"
    value: int = known.get(key, int, default)
    if value == default and not 0 <= value < vocab_size:
        return NO_ID
    if not 0 <= value < vocab_size:
        raise BadFile(known.path, _PREFIX + key, f"0 to {vocab_size - 1}", str(value))
    return value


def _templates(known: GgufMetadata) -> dict[str, str]:
    """Give the chat templates: one, and others behind a dot and their names."""
    default = known.get_full(_TEMPLATE, str)
    named = {name: text for name, text in known.with_prefix(f"{_TEMPLATE}.").items() if isinstance(text, str)}
    return named | ({"default": default} if default else {})


def _sampling(known: GgufMetadata) -> dict[str, object]:
    """Give ``general.sampling.*`` by the names of ``generation_config.json``."""
    values = known.with_prefix("general.sampling.")
    rounded = {
        name: float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value
        for name, value in values.items()
    }
    return {_SAMPLING.get(name, name): value for name, value in rounded.items()}
