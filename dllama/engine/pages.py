"""KV memory as the root sees it: which page of the pool holds which positions of which sequence.

Only bookkeeping; the pages themselves are in every node's memory, in the same places. Changes of the page tables are
collected here and travel with the next step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_NO_CHANGES = np.empty((0, 3), np.int32)


@dataclass(slots=True)
class PageTable:
    """The pages of one sequence, in the order of its positions, and the slot under which the nodes know it."""

    slot: int
    pages: list[int] = field(default_factory=list)


class PagePool:
    """Deals fixed pages of ``page_size`` positions and slots out to sequences.

    Args:
        num_pages: Pages in every node's pool.
        num_slots: Sequences that can have pages at once.
        page_size: Positions in a page.
    """

    def __init__(self, num_pages: int, num_slots: int, page_size: int) -> None:
        self.page_size = page_size
        self._free_pages = list(reversed(range(num_pages)))
        self._free_slots = list(reversed(range(num_slots)))
        self._changes: dict[tuple[int, int], int] = {}  # (slot, page index) -> page id, not yet known to the nodes

    @property
    def num_free(self) -> int:
        """Pages that nobody has."""
        return len(self._free_pages)

    @property
    def has_free_slot(self) -> bool:
        """Whether ``open`` can give a table."""
        return bool(self._free_slots)

    def num_pages_for(self, num_positions: int) -> int:
        """Pages that hold ``num_positions``."""
        return -(-num_positions // self.page_size)

    def open(self) -> PageTable:
        """Give an empty table in a free slot; there must be one."""
        return PageTable(self._free_slots.pop())

    def grow(self, table: PageTable, num_positions: int) -> bool:
        """Make room for ``num_positions`` in all; False, and no change, if the pool has too few pages."""
        missing = self.num_pages_for(num_positions) - len(table.pages)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            page = self._free_pages.pop()
            self._changes[table.slot, len(table.pages)] = page
            table.pages.append(page)
        return True

    def shrink(self, table: PageTable, num_positions: int) -> None:
        """Take the pages beyond ``num_positions`` back.

        Nodes need not hear of it: they read no position that nobody wrote, and hear of the page that comes instead.
        """
        while len(table.pages) > self.num_pages_for(num_positions):
            self._free_pages.append(table.pages.pop())
            self._changes.pop((table.slot, len(table.pages)), None)

    def close(self, table: PageTable) -> None:
        """Take the slot and all pages back."""
        self.shrink(table, 0)
        self._free_slots.append(table.slot)

    def changes(self) -> npt.NDArray[np.int32]:
        """What the nodes must learn before the next step: int32 ``[P, 3]`` of (slot, page index, page id)."""
        if not self._changes:
            return _NO_CHANGES
        rows = [(slot, index, page) for (slot, index), page in self._changes.items()]
        return np.array(rows, np.int32).reshape(-1, 3)

    def changes_done(self) -> None:
        """Forget the changes: a step took them along."""
        self._changes.clear()
