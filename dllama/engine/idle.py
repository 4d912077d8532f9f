"""Sequences that ended: their KV stays in its pages until someone needs them, for a prompt that begins alike.

An idle sequence has a slot and pages as a running one has, and is taken over by one request with both. Sequences that
share pages would need a count of owners per page in ``PagePool``, and would begin where ``take`` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama.engine.pages import PagePool, PageTable

I32Array = npt.NDArray[np.int32]

_MOST_LOST = 4  # a table is taken over only if at least a quarter of its tokens is common


@dataclass(slots=True, eq=False)
class IdleSequence:
    """The tokens whose KV is in ``table``, which has no page beyond them."""

    token_ids: I32Array
    table: PageTable


class IdleSequences:
    """Keeps page tables nobody uses now, and gives them up a page at a time, those used longest ago first.

    Args:
        pool: What the tables are from.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._sequences: list[IdleSequence] = []  # oldest use first

    def __len__(self) -> int:
        """Give the number of idle sequences, which is that of their slots."""
        return len(self._sequences)

    @property
    def num_pages(self) -> int:
        """Pages that can be had by giving up everything."""
        return sum(len(idle.table.pages) for idle in self._sequences)

    def put(self, token_ids: Sequence[int], table: PageTable) -> None:
        """Keep a table in which ``token_ids`` are computed; what it has beyond them goes back to the pool."""
        self._pool.shrink(table, len(token_ids))
        if token_ids:
            self._sequences.append(IdleSequence(np.array(token_ids, np.int32), table))
        else:
            self._pool.close(table)

    def take(self, token_ids: Sequence[int]) -> tuple[PageTable, int] | None:
        """Hand over the table that begins with the most of ``token_ids``, and say how many tokens it shares with them.

        None if no table begins alike, or if too much would be thrown away for too little: a short system prompt must
        not cost another conversation its memory.
        """
        wanted, best, most = np.array(token_ids, np.int32), None, 0
        for idle in self._sequences:
            common = _num_common(idle.token_ids, wanted)
            is_worth_it = common == len(wanted) or common * _MOST_LOST >= len(idle.token_ids)
            if common > most and is_worth_it:
                best, most = idle, common
        if best is None:
            return None
        self._sequences.remove(best)
        self._pool.shrink(best.table, most)
        return best.table, most

    def give_page(self) -> bool:
        """Return the last page of the sequence used longest ago to the pool; False if there is none."""
        if not self._sequences:
            return False
        oldest = self._sequences[0]
        oldest.token_ids = oldest.token_ids[: (len(oldest.table.pages) - 1) * self._pool.page_size]
        self._pool.shrink(oldest.table, len(oldest.token_ids))
        if not len(oldest.token_ids):
            self.give_slot()
        return True

    def give_slot(self) -> None:
        """Return the slot and all pages of the sequence used longest ago to the pool; there must be one."""
        self._pool.close(self._sequences.pop(0).table)


def _num_common(a: I32Array, b: I32Array) -> int:
    """Count the tokens in which both begin alike."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length
