"""Vocabularies as GGUF files hold them: what ``tokenizer.ggml.*`` says of each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dllama.errors import UnsupportedModel
from dllama.formats.spm_model import BYTE, BYTE_PIECE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, SpmModel
from dllama.formats.tokenizer_json import TokenizerJson, walk
from dllama.text import byte_level
from dllama.text.json_vocabulary import JsonVocabulary
from dllama.text.pre_tokenizers import GPT2_PATTERN, name_of
from dllama.text.score_bpe import SPACE_MARK
from dllama.text.spm_vocabulary import SpmVocabulary
from dllama.text.t_vocabulary import TVocabulary
from dllama.text.tokenizer import Tokenizer
from dllama.text.vocabulary import NO_ID, Vocabulary

_PREFIX = "tokenizer.ggml."
_EXPECTED = "a vocabulary that llama.cpp cuts the same way"
_ENDS = ("eos", "eot", "eom")  # the keys that name a token which ends an answer


def gguf_metadata(tokenizer: Tokenizer, path: str = "tokenizer") -> dict[str, Any]:
    """Give the metadata of a GGUF file that describe a tokenizer, by full keys: texts, numbers, and lists of them.

    Args:
        tokenizer: The tokenizer.
        path: Where it came from, for messages.

    Raises:
        UnsupportedModel: llama.cpp would give other ids, but for what ``losses`` says.
    """
    vocabulary = tokenizer.vocabulary
    if isinstance(vocabulary, JsonVocabulary):
        own = _of_bytes(vocabulary) if vocabulary.is_byte_level else _of_pairs(vocabulary)
    elif isinstance(vocabulary, SpmVocabulary):
        own = _of_spm(vocabulary)
    elif isinstance(vocabulary, TVocabulary):
        own = _of_t(vocabulary)
    else:
        raise UnsupportedModel(path, "vocabulary", _EXPECTED, type(vocabulary).__name__)
    kinds = own[f"{_PREFIX}token_type"]
    if UNKNOWN in kinds:
        own[f"{_PREFIX}unknown_token_id"] = kinds.index(UNKNOWN)
    own |= {f"{_PREFIX}{name}": value for name, value in _ids(tokenizer).items()}
    templates = dict(tokenizer.chat_templates)
    default = {"tokenizer.chat_template": templates.pop("default")} if "default" in templates else {}
    return own | default | {f"tokenizer.chat_template.{name}": text for name, text in templates.items()}


def losses(tokenizer: Tokenizer) -> list[str]:
    """Say in a line each what ``gguf_metadata`` leaves out."""
    lines = []
    if left_out := [tokenizer.piece(each).decode("utf-8", "replace") for each in tokenizer.eos_ids[len(_ENDS) :]]:
        lines.append(f"GGUF names {len(_ENDS)} tokens that end an answer; left out: {' '.join(left_out)}")
    if _composes(tokenizer.vocabulary):
        lines.append("llama.cpp puts no letters and accents together (NFC): where text has them apart, tokens differ")
    return lines


def _composes(vocabulary: Vocabulary) -> bool:
    if isinstance(vocabulary, JsonVocabulary):
        return any(each["type"] == "NFC" for each in walk(vocabulary.file.parts["normalizer"]))
    return isinstance(vocabulary, TVocabulary) and vocabulary.has_ranks and vocabulary.is_qwen


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Give the special ids, and whether BOS and EOS are added."""
    values: dict[str, Any] = {"add_bos_token": tokenizer.add_bos}
    values["add_eos_token"] = tokenizer.vocabulary.facts.add_eos
    if tokenizer.bos_id != NO_ID:
        values["bos_token_id"] = tokenizer.bos_id
    for name, eos_id in zip(_ENDS, tokenizer.eos_ids, strict=False):
        values[f"{name}_token_id"] = eos_id
    texts = tokenizer.token_texts or {}
    for name, key in (("unk_token", "unknown"), ("pad_token", "padding")):
        if texts.get(name) in tokenizer.special_names:
            values[f"{key}_token_id"] = tokenizer.special_names[texts[name]]
    return values


def _of_bytes(vocabulary: JsonVocabulary) -> dict[str, Any]:
    file = vocabulary.file
    tokens, kinds = _tokens(file, vocabulary.vocab_size)
    pre = _pre_name(file)
    if pre is None:
        raise UnsupportedModel(file.path, "pre_tokenizer", _EXPECTED, "one without a name there")
    merges = [f"{left} {right}" for left, right in file.merges()]
    return _metadata("gpt2", pre, tokens, kinds) | {f"{_PREFIX}merges": merges}


def _tokens(file: TokenizerJson, vocab_size: int) -> tuple[list[str], list[int]]:
    """Give the texts and kinds of all tokens; an id without a token gets a name that no text has."""
    texts = [f"[PAD{token_id}]" for token_id in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for token_id, piece in enumerate(file.pieces):
        if piece is not None:
            texts[token_id], kinds[token_id] = piece, NORMAL
    for token in file.added:
        texts[token.id], kinds[token.id] = token.content, CONTROL if token.special else USER_DEFINED
    return texts, kinds


def _pre_name(file: TokenizerJson) -> str | None:
    """Find llama.cpp's name for a pre-tokenizer."""
    patterns: list[str] = []
    for each in walk(file.parts["pre_tokenizer"]):
        pattern = each.get("pattern")
        if each["type"] == "Split" and isinstance(pattern, dict) and each.get("behavior") == "Isolated":
            patterns.append(str(pattern.get("Regex", pattern.get("String"))))
        elif each["type"] == "Digits" and each.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif each["type"] == "ByteLevel" and not each.get("add_prefix_space", True):
            patterns += [GPT2_PATTERN] if each.get("use_regex", True) else []
        elif each["type"] != "Sequence":
            return None
    normalizer = (file.parts["normalizer"] or {"type": None}).get("type")
    if normalizer not in (None, "NFC"):
        return None
    found = name_of(tuple(patterns), normalizer == "NFC", file.ignores_merges)
    return found or name_of(tuple(patterns), False, file.ignores_merges)


def _of_pairs(vocabulary: JsonVocabulary) -> dict[str, Any]:
    """Give a BPE or Unigram of SentencePiece's form, scored by the order of its merges."""
    file = vocabulary.file
    tokens, kinds = _tokens(file, vocabulary.vocab_size)
    unk = {token.id for token in file.added if token.content == "<unk>"}
    kinds = [UNKNOWN if token_id in unk else kind for token_id, kind in enumerate(kinds)]
    bytes_ids = {token_id for token_id, text in enumerate(tokens) if BYTE_PIECE.fullmatch(text)}
    kinds = [BYTE if token_id in bytes_ids and kind == NORMAL else kind for token_id, kind in enumerate(kinds)]
    adds_space = _adds_space(file)
    if adds_space is None:
        raise UnsupportedModel(file.path, "normalizer", _EXPECTED, "one that changes more than spaces")
    scores = file.scores or _merge_scores(file, len(tokens))
    more = {f"{_PREFIX}add_space_prefix": adds_space, f"{_PREFIX}scores": scores}
    kind = "t5" if file.kind == "Unigram" else "llama"
    return _metadata(kind, "default", tokens, kinds) | more


def _merge_scores(file: TokenizerJson, size: int) -> list[float]:
    """Give each piece minus the place of the first merge that makes it; those that none makes come last."""
    ids = {piece: token_id for token_id, piece in enumerate(file.pieces) if piece is not None}
    merges = file.merges()
    scores = [-float(len(merges))] * size
    for place in range(len(merges) - 1, -1, -1):
        left, right = merges[place]
        scores[ids[left + right]] = -float(place)
    return scores


def _adds_space(file: TokenizerJson) -> bool | None:
    """Whether a space goes before a text; None if more is changed than spaces."""
    normalizers = [each for each in walk(file.parts["normalizer"]) if each["type"] != "Sequence"]
    pre_tokenizers = [each for each in walk(file.parts["pre_tokenizer"]) if each["type"] not in ("Sequence", "Split")]
    marks = [each for each in normalizers if each["type"] == "Replace" and each.get("content") == SPACE_MARK]
    prepends = [each for each in normalizers if each["type"] == "Prepend" and each.get("prepend") == SPACE_MARK]
    spaces = [each for each in pre_tokenizers if each["type"] == "Metaspace"]
    if len(marks) + len(prepends) < len(normalizers) or len(spaces) < len(pre_tokenizers):
        return None
    return bool(prepends) or any(each.get("prepend_scheme", "always") != "never" for each in spaces)


def _of_spm(vocabulary: SpmVocabulary) -> dict[str, Any]:
    model = vocabulary.model
    texts = [vocabulary.piece(token_id).decode("utf-8") for token_id in range(vocabulary.vocab_size)]
    kinds, scores = list(model.kinds), model.scores.tolist()
    for token_id in range(len(model.pieces), vocabulary.vocab_size):
        kinds.append(CONTROL if token_id in vocabulary.special_ids else USER_DEFINED)
        scores.append(-1000.0)
    kind = "t5" if model.is_unigram else "llama"
    return _metadata(kind, "default", texts, kinds) | _spm_settings(model) | {f"{_PREFIX}scores": scores}


def _spm_settings(model: SpmModel) -> dict[str, Any]:
    settings: dict[str, Any] = {"add_space_prefix": model.adds_space, "remove_extra_whitespaces": model.removes_spaces}
    if model.charsmap:
        settings["precompiled_charsmap"] = np.frombuffer(model.charsmap, np.uint8)
    return {f"{_PREFIX}{name}": value for name, value in settings.items()}


def _of_t(vocabulary: TVocabulary) -> dict[str, Any]:
    if not vocabulary.has_ranks:
        model = vocabulary.spm_model()
        texts = [
            vocabulary.piece(token_id).decode("utf-8", "replace").strip() if kind in (CONTROL, UNKNOWN) else piece
            for token_id, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True))
        ]
        kind = "t5" if model.is_unigram else "llama"
        own = _metadata(kind, "default", texts, model.kinds) | _spm_settings(model)
        return own | {f"{_PREFIX}scores": model.scores.tolist()}
    regular, special = vocabulary.regular, vocabulary.data.pieces[len(vocabulary.regular) :]
    tokens = [byte_level.to_letters(piece) for piece in regular]
    tokens += [piece.decode("utf-8", "replace") for piece in special]
    ids = range(len(regular), vocabulary.vocab_size)
    kinds = [NORMAL] * len(regular) + [CONTROL if each in vocabulary.special_ids else USER_DEFINED for each in ids]
    pre = "qwen2" if vocabulary.is_qwen else "llama-bpe"
    return _metadata("gpt2", pre, tokens, kinds) | {f"{_PREFIX}merges": rank_merges(regular)}


def rank_merges(regular: Sequence[bytes]) -> list[str]:
    """Give the merges of a rank vocabulary: for each piece, by rank, all pairs of pieces that make it."""
    known = set(regular)
    merges: list[str] = []
    for piece in regular:
        cuts = [(piece[:place], piece[place:]) for place in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in known and pair[1] in known]
        merges += [f"{byte_level.to_letters(left)} {byte_level.to_letters(right)}" for left, right in pairs]
    return merges


def _metadata(kind: str, pre: str, tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, Any]:
    known: Mapping[str, Any] = {"model": kind, "pre": pre, "tokens": list(tokens), "token_type": list(kinds)}
    return {f"{_PREFIX}{name}": value for name, value in known.items()}
