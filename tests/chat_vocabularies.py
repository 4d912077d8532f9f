"""Small vocabularies with the special tokens of the chat templates' makers, and what tokens say in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dllama.formats.t_file import TokenizerData
from dllama.text.tokenizer import Tokenizer

BAR = "\uff5c"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
IM = ("<|im_start|>", "<|im_end|>")


def rank_vocabulary(
    *special: str, eos: tuple[str, ...] = (), add_bos: bool = True, chat_template: str | None = None
) -> Tokenizer:
    """Give 256 bytes and then ``special``, the first of which is BOS; the second is EOS where ``eos`` names none."""
    pieces = [bytes([byte]) for byte in range(256)] + [name.encode() for name in special]
    eos_ids = tuple(256 + special.index(name) for name in eos or special[1:2])
    scores = -np.arange(len(pieces), dtype=np.float32)
    return Tokenizer(TokenizerData(tuple(pieces), scores, 256, eos_ids, add_bos, chat_template))


def score_vocabulary(*special: str, words: tuple[str, ...] = (), chat_template: str | None = None) -> Tokenizer:
    """Give a vocabulary like Llama 2's: ``<unk>``, ``<s>``, ``</s>``, ``special``, 256 bytes, and scored pieces."""
    control = ["<unk>", "<s>", "</s>", *special]
    letters = [chr(code) for code in range(33, 127)] + ["▁", *words]
    pieces = [name.encode() for name in control] + [b"<0x%02X>" % byte for byte in range(256)]
    pieces += [letter.encode() for letter in letters]
    scores = np.zeros(len(pieces), dtype=np.float32)
    scores[len(control) + 256 :] = -np.arange(len(letters), dtype=np.float32)
    return Tokenizer(TokenizerData(tuple(pieces), scores, 1, (2,), True, chat_template))


def names_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """Give the special tokens among ids, by name."""
    by_id = {token_id: name for name, token_id in tokenizer.special_names.items()}
    return [by_id[token_id] for token_id in token_ids if token_id in by_id]


def spelled(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Give all tokens of a rank vocabulary as text, special ones by name."""
    return b"".join(map(tokenizer.piece, token_ids)).decode()
