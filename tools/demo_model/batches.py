"""Documents in rows: one document a row from its first token on, rows of like length together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]
WIDTH_STEP, MAX_WIDTH, IGNORED = 64, 1024, -100


def split_documents(stream: npt.NDArray[np.uint16]) -> list[Ids]:
    """Cut a token stream where its first token, BOS, comes again."""
    begins = np.flatnonzero(stream == stream[0])
    return [document.astype(np.int64) for document in np.split(stream, begins[1:])]


def batches(documents: list[Ids], tokens_per_batch: int, seed: int) -> list[list[int]]:
    """Group documents (by index) into batches of about equal area, in shuffled order.

    Every batch has an even number of rows, so that two processes can share it; documents that are left over or too
    long are left out.
    """
    rng = np.random.default_rng(seed)
    by_width: dict[int, list[int]] = {}
    for index in rng.permutation(len(documents)).tolist():
        by_width.setdefault(_width(documents[index]), []).append(index)
    grouped = []
    for width, members in by_width.items():
        if width <= MAX_WIDTH:
            rows = max(2, tokens_per_batch // width // 2 * 2)
            grouped += [members[at : at + rows] for at in range(0, len(members) - rows + 1, rows)]
    return [grouped[index] for index in rng.permutation(len(grouped))]


def rows_of(documents: list[Ids]) -> tuple[Tensor, Tensor]:
    """Inputs and targets (row, seq), padded at the end; padded targets are IGNORED."""
    width = max(map(_width, documents))
    rows = np.full((len(documents), width + 1), IGNORED, dtype=np.int64)
    for row, document in zip(rows, documents, strict=True):
        row[: len(document)] = document
    return torch.from_numpy(np.maximum(rows[:, :-1], 0)), torch.from_numpy(rows[:, 1:].copy())


def is_again(documents: list[Ids], width: int) -> Tensor:
    """Whether a target (row, seq) came before in its document."""
    again = np.zeros((len(documents), width), dtype=bool)
    for row, document in zip(again, documents, strict=True):
        _, firsts = np.unique(document, return_index=True)
        row[: len(document) - 1] = True
        row[firsts[firsts > 0] - 1] = False
    return torch.from_numpy(again)


def _width(document: Ids) -> int:
    """Inputs of a document's row: all tokens but the last, rounded up."""
    return -(-(len(document) - 1) // WIDTH_STEP) * WIDTH_STEP
