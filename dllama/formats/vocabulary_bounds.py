"""How large a vocabulary and its pieces may be, whatever file they come from."""

from __future__ import annotations

from typing import Final

MAX_VOCAB_SIZE: Final = 1 << 20  # four times the largest in use
MAX_PIECE: Final = 1 << 12  # bytes, or characters where a file holds text
