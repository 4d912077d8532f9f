"""Encoding with a rank vocabulary (byte-level BPE: Llama 3, Qwen), by tiktoken.

A text is first cut into words, numbers and runs of spaces by the vocabulary's own pattern; inside each, the pair of
neighbours that makes the piece of lowest rank is joined until none can be.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

# How Llama 3 and Qwen cut a text, alternative by alternative; they differ in the number of digits taken together.
_PATTERN = "|".join(  # noqa: FLY002 - one line each, with what it takes
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English endings
        r"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+",  # a word and the one sign or space before it
        r"\p{{N}}{digits}",
        r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*",  # signs and the line ends after them
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # spaces, but for the last, which belongs to the word after them
        r"\s+",
    )
)
LLAMA3_PATTERN, QWEN_PATTERN = _PATTERN.format(digits="{1,3}"), _PATTERN.format(digits="")
_LLAMA3_REGULAR_SIZE = 128000  # also under other names for the special tokens: DeepSeek-R1-Distill-Llama
_LLAMA3_NAMES = {b"<|begin_of_text|>", b"<|start_header_id|>"}
_QWEN_NAMES = {b"<|im_start|>", b"<|endoftext|>"}
# tiktoken's regular expressions run out of stack, and panic, in runs of white space near a million characters.
_LONGEST_SPACES = 200_000
_SPACES = re.compile(r"\s+")


def check_pieces(regular: Sequence[bytes]) -> None:
    """Check that tiktoken can work with these pieces; it panics on others.

    Raises:
        ValueError: It cannot; the text is ``"<expected>, found <what>"``.
    """
    pieces = set(regular)
    if len(pieces) < len(regular):
        raise ValueError(f"different pieces, found {len(regular) - len(pieces)} that are there before")
    missing = [byte for byte in range(256) if bytes([byte]) not in pieces]
    if missing:
        found = f"none for {len(missing)}, the first of them 0x{missing[0]:02X}"
        raise ValueError(f"a piece for every single byte, found {found}")


class RankEncoder:
    """Encodes ordinary text with pieces whose ids are their ranks.

    Args:
        regular: Pieces by id, which ``check_pieces`` takes.
        special: The other pieces, which tell whose vocabulary this is.
    """

    def __init__(self, regular: Sequence[bytes], special: Sequence[bytes]) -> None:
        qwen = is_qwen(regular, special)
        self._encoding = _build(regular, QWEN_PATTERN if qwen else LLAMA3_PATTERN)
        self._composes = qwen

    def encode(self, text: str) -> list[int]:
        """Give the ids of ``text``; names of special tokens in it are ordinary text."""
        if self._composes:  # Qwen's tokenizers put accents and letters together before anything else
            text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        for part in cut_long_spaces(text):
            ids += self._encoding.encode_ordinary(part)
        return ids


def is_qwen(regular: Sequence[bytes], special: Sequence[bytes]) -> bool:
    """Whether a vocabulary is Qwen's: every digit alone, letters and accents composed.

    Known by the names of the special tokens, then by size; an unknown vocabulary that has numbers of several digits was
    trained with them, and is read as Llama 3's, any other as Qwen's.
    """
    names = set(special)
    if names & _LLAMA3_NAMES or len(regular) == _LLAMA3_REGULAR_SIZE:
        return False
    if names & _QWEN_NAMES:
        return True
    return not any(len(piece) > 1 and piece.isdigit() for piece in regular)


def _build(regular: Sequence[bytes], pattern: str) -> tiktoken.Encoding:
    import tiktoken

    ranks = {piece: rank for rank, piece in enumerate(regular)}
    return tiktoken.Encoding("dllama", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def cut_long_spaces(text: str) -> Iterator[str]:
    """Cut inside runs of white space too long for regular expressions; all other text comes in one part."""
    begin = 0
    if len(text) > _LONGEST_SPACES:
        for run in _SPACES.finditer(text):
            for cut in range(run.start() + _LONGEST_SPACES, run.end(), _LONGEST_SPACES):
                yield text[begin:cut]
                begin = cut
    yield text[begin:]
