"""Vocabularies as ``.t`` files hold them, wherever such a file gives the same ids.

A ``.t`` file has pieces and scores, and nothing that says how text is cut: readers know Llama 3's and Qwen's patterns,
and SentencePiece's plain form. Scores are minus the id, or SentencePiece's own; pieces are what distributed-llama's
converters write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dllama.errors import UnsupportedModel
from dllama.formats.quants import Floats
from dllama.formats.spm_model import BYTE, NORMAL, USER_DEFINED
from dllama.formats.t_file import TokenizerData
from dllama.formats.tokenizer_json import AddedToken, TokenizerJson
from dllama.text import byte_level
from dllama.text.rank_bpe import LLAMA3_PATTERN, QWEN_PATTERN, check_pieces, is_qwen
from dllama.text.score_bpe import SPACE_MARK, first_byte_id
from dllama.text.vocabulary import NO_ID, Facts, is_name, is_silent

if TYPE_CHECKING:
    from dllama.text.json_vocabulary import JsonVocabulary
    from dllama.text.spm_vocabulary import SpmVocabulary

_EXPECTED = "a vocabulary that a .t file can hold"
_ADVICE = "use the file itself: --tokenizer takes it"


def json_to_t(vocabulary: JsonVocabulary) -> TokenizerData:
    """Turn a ``tokenizer.json``'s vocabulary into a ``.t`` file's.

    Raises:
        UnsupportedModel: A ``.t`` file would give other ids.
    """
    file = vocabulary.file
    problem = _bytes_problem(vocabulary) if vocabulary.is_byte_level else _pairs_problem(file)
    if problem:
        raise _refused(file.path, problem)
    pieces = tuple(vocabulary.piece(token_id) for token_id in range(vocabulary.vocab_size))
    return _data(file.path, pieces, -np.arange(len(pieces), dtype=np.float32), vocabulary.facts)


def spm_to_t(path: str, vocabulary: SpmVocabulary) -> TokenizerData:
    """Turn a SentencePiece model into a ``.t`` file's vocabulary.

    Raises:
        UnsupportedModel: A ``.t`` file would give other ids.
    """
    model = vocabulary.model
    pieces = [vocabulary.text_bytes(token_id, False) for token_id in range(vocabulary.vocab_size)]
    words = [token_id for token_id, kind in enumerate(model.kinds) if kind in (NORMAL, USER_DEFINED)]
    first_byte = first_byte_id(pieces)
    problem = None
    if not model.adds_space or model.removes_spaces or model.charsmap:
        problem = "one that treats spaces or characters in its own way"
    elif first_byte is None or BYTE not in model.kinds:
        problem = "one without 256 byte tokens in a row"
    elif vocabulary.vocab_size > len(model.pieces) or any(model.kinds[each] == USER_DEFINED for each in words):
        problem = "one with tokens that were added"
    elif any(each < first_byte for each in words):
        problem = "one with words before the bytes"
    if problem:
        raise _refused(path, problem)
    return _data(path, tuple(pieces), model.scores, vocabulary.facts)


def _data(path: str, pieces: tuple[bytes, ...], scores: Floats, facts: Facts) -> TokenizerData:
    if facts.bos_id == NO_ID:
        raise _refused(path, "one without a BOS token, of which config.json says nothing either")
    if not all(pieces):
        raise _refused(path, f"none for id {pieces.index(b'')}")
    scores = np.asarray(scores, np.float32)
    return TokenizerData(
        pieces, scores, facts.bos_id, facts.eos_ids, facts.add_bos, facts.chat_templates.get("default")
    )


def _refused(path: str, found: str) -> UnsupportedModel:
    return UnsupportedModel(path, "vocabulary", _EXPECTED, f"{found}; {_ADVICE}")


def _bytes_problem(vocabulary: JsonVocabulary) -> str | None:
    """Say why a byte-level vocabulary cannot be held."""
    file = vocabulary.file
    first = min([token.id for token in file.added], default=len(file.pieces))
    regular = [byte_level.to_bytes(piece or "") for piece in file.pieces[:first]]
    special = [token.content.encode() for token in file.added]
    qwen = is_qwen(regular, special)
    normalizer = (file.parts["normalizer"] or {}).get("type")
    if _pattern(file) != (QWEN_PATTERN if qwen else LLAMA3_PATTERN) or normalizer != ("NFC" if qwen else None):
        return "one that cuts text in another way than Llama 3 and Qwen"
    num_amid = sum(token.id < len(file.pieces) for token in file.added)
    if num_amid != max(0, len(file.pieces) - first) or not all(map(_is_plain, file.added)):
        return "one with added tokens amid its pieces, or that are text or take spaces"
    if not all(is_silent(token.content) for token in file.added if token.id < vocabulary.facts.bos_id):
        return "one with other added tokens before BOS"
    try:
        check_pieces(regular)
    except ValueError as error:
        return str(error).split(", found ", 1)[1]
    if NO_ID < vocabulary.facts.bos_id < first:
        return "one whose BOS is a piece of text"
    return None if _merges_are_ranks(file, regular) else "one whose merges do not follow its ids"


def _is_plain(token: AddedToken) -> bool:
    return is_name(token.content, token.special) and not (token.lstrip or token.rstrip or token.single_word)


def _pattern(file: TokenizerJson) -> str | None:
    """Give the only pattern by which a byte-level tokenizer cuts text."""
    part = file.parts["pre_tokenizer"] or {}
    members = part.get("pretokenizers")
    if not isinstance(members, list) or [each.get("type") for each in members] != ["Split", "ByteLevel"]:
        return None
    split, letters = members
    is_plain = split.get("behavior") == "Isolated" and not split.get("invert")
    pattern = split.get("pattern")
    if not is_plain or letters.get("use_regex", True) or letters.get("add_prefix_space", True):
        return None
    return pattern.get("Regex") if isinstance(pattern, dict) else None


def _made(file: TokenizerJson) -> list[int]:
    """Give the id of what each merge makes, in the order of the merges."""
    ids = {piece: token_id for token_id, piece in enumerate(file.pieces) if piece is not None}
    return [ids[left + right] for left, right in file.merges()]


def _merges_are_ranks(file: TokenizerJson, regular: list[bytes]) -> bool:
    """Whether joining the pair whose piece has the lowest id is what the merges say.

    It is if merges come in the order of what they make, and all pieces but bytes are made by one, or words that are
    pieces are taken whole, as readers of ranks do.
    """
    made = _made(file)
    is_ordered = made == sorted(made)
    longer = {token_id for token_id, piece in enumerate(regular) if len(piece) > 1}
    return is_ordered and (file.ignores_merges or longer == set(made))


def _pairs_problem(file: TokenizerJson) -> str | None:
    """Say why a BPE of SentencePiece's form cannot be held."""
    if file.kind != "BPE" or not file.has_byte_fallback or file.parts["pre_tokenizer"] is not None:
        return "one that is neither byte-level nor a BPE of SentencePiece's form"
    if not _puts_space(file):
        return "one that treats spaces in its own way"
    made = _made(file)
    if made != sorted(made):
        return "one whose merges do not follow its ids"
    first_byte = first_byte_id([(piece or "").encode() for piece in file.pieces])
    if first_byte is None:
        return "one without 256 byte tokens in a row"
    if any(token.id >= first_byte or not is_name(token.content, token.special) for token in file.added):
        return "one with added tokens behind its bytes"
    return None


def _puts_space(file: TokenizerJson) -> bool:
    """Whether the normalizer is Llama 2's: a space before every text, and spaces marked."""
    part = file.parts["normalizer"] or {}
    members = part.get("normalizers")
    if not isinstance(members, list) or not all(isinstance(each, dict) for each in members):
        return False
    if [each.get("type") for each in members] != ["Prepend", "Replace"]:
        return False
    written = (members[0].get("prepend"), members[1].get("pattern"), members[1].get("content"))
    return written == (SPACE_MARK, {"String": " "}, SPACE_MARK)
