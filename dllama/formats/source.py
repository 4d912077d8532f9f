"""What a model is to the rest of the project, whatever holds it: a config, named tensors read by rows, embeddings.

``.m`` files, Hugging Face folders and GGUF files are each a ``ModelSource``; behind ``open_model`` nobody asks which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from dllama.config import DType, ModelConfig
from dllama.formats.quants import Floats, RawRows


class StoredTensor(Protocol):
    """One tensor of a model; rows come in Hugging Face's order, in the canonical form of ``dtype``.

    Where the source holds other numbers, reading converts them: ``dtype`` is what comes out.
    """

    @property
    def name(self) -> str:
        """Our name, as ``m_layout`` has them."""

    @property
    def dtype(self) -> DType:
        """Number type of the rows that are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, cols)``, or ``(cols,)`` of a vector, which is read as one row."""

    @property
    def rows(self) -> int:
        """Outputs of a matrix, 1 for a vector."""

    @property
    def cols(self) -> int:
        """Values per row."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as read."""

    def read_rows(self, begin: int, end: int, out: RawRows | None = None) -> RawRows:
        """Read rows ``begin`` to ``end`` as bytes ``[end - begin, row_bytes]``, into ``out`` if it is given.

        Raises:
            BadFile: The source no longer holds these rows, or they are not finite.
        """

    def read_floats(self, begin: int = 0, end: int | None = None) -> Floats:
        """Read rows ``begin`` to ``end`` (all of them by default) as float32 values ``[end - begin, cols]``."""


class ModelSource(Protocol):
    """An open model."""

    @property
    def path(self) -> str:
        """What was opened, for messages."""

    @property
    def config(self) -> ModelConfig:
        """The model, in the number types that its tensors are read in."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name, in the order in which reading them is cheapest."""

    def embedding_rows(self, token_ids: Sequence[int]) -> Floats:
        """Read the embeddings of some tokens, float32 ``[len(token_ids), hidden_size]``, without the multiplier.

        Raises:
            UsageError: An id is outside the model's vocabulary.
            BadFile: The source no longer holds these rows.
        """

    def summary(self, max_seq_len: int | None = None) -> dict[str, str]:
        """Give the facts that distributed-llama prints when it loads a model, under its names and in its order."""

    def identity(self) -> str:
        """Say which files these are, as of when, and how they are read: what changes when a tile's bytes could."""

    def close(self) -> None:
        """Close all files; tensors can no longer be read."""

    def __enter__(self) -> Self:
        """Return the model itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
