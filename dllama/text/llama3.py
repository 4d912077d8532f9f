"""Llama 3's ``tokenizer.model``, a file of tiktoken: the special tokens that it does not list.

They follow its pieces, 256 of them, under the names that Meta's own program gives them.
"""

from __future__ import annotations

import os

import numpy as np

from dllama.formats.t_file import TokenizerData
from dllama.formats.tiktoken_file import read_tiktoken

_NUM_SPECIAL = 256
_NAMED = ("begin_of_text", "end_of_text", *(f"reserved_special_token_{number}" for number in range(4)))
_NAMED += ("start_header_id", "end_header_id", "reserved_special_token_4", "eot_id")
_END_OF_TEXT, _END_OF_TURN = 1, 9  # places among them


def special_tokens() -> list[str]:
    """Give their names, in the order of their ids."""
    others = [f"reserved_special_token_{number}" for number in range(5, _NUM_SPECIAL - 5)]
    return [f"<|{name}|>" for name in (*_NAMED, *others)]


def llama3_data(path: str | os.PathLike[str]) -> TokenizerData:
    """Read the file, and add what it does not say; errors as in ``read_tiktoken``."""
    regular = read_tiktoken(path)
    pieces = (*regular, *(name.encode() for name in special_tokens()))
    bos_id, scores = len(regular), -np.arange(len(pieces), dtype=np.float32)
    return TokenizerData(pieces, scores, bos_id, (bos_id + _END_OF_TEXT, bos_id + _END_OF_TURN))
