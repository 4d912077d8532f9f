"""Writing any model as a GGUF file, its numbers as they are: Q40 is Q4_0 there and Q80 is Q8_0, byte for byte."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from dllama.config import DType
from dllama.errors import UsageError
from dllama.formats.gguf_arch import EMBEDDING, HEAD, GgufArch, Stored, interleaved_head_dim, stored_tensors
from dllama.formats.gguf_metadata import arch_for, model_metadata
from dllama.formats.gguf_types import GGML_TYPES
from dllama.formats.gguf_writer import NewTensor, Value, write_container
from dllama.formats.quants import RawRows
from dllama.formats.source import ModelSource, StoredTensor
from dllama.formats.tensor import interleaved_from_halves

# For a file without a vocabulary, which is for token ids alone.
NO_VOCABULARY: Mapping[str, Value] = {"tokenizer.ggml.model": "no_vocab"}
_TOKENIZER = "tokenizer.ggml."
_PADDING = f"{_TOKENIZER}padding_token_id"
_UNUSED, _LOWEST = 5, -1e4  # llama.cpp's kind of a token that is never written, and a score below all others
_TYPE_IDS = {DType.F32: 0, DType.F16: 1, DType.Q40: 2, DType.Q80: 8}
_PIECE_BYTES = 1 << 22
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}


def export_gguf(
    source: ModelSource,
    path: str | os.PathLike[str],
    tokenizer: Mapping[str, Value] = NO_VOCABULARY,
    name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a model as a GGUF file; ``path`` is untouched until it is complete.

    Args:
        source: The model.
        path: Where to write.
        tokenizer: Metadata of its vocabulary, whose tokens beyond the model's are left out.
        name: What the file calls the model.
        progress: Called with the bytes of tensors written, and all of them.

    Raises:
        UsageError: GGUF cannot hold the model, a token that steers it is none of its own, or ``path`` cannot be
            written.
        BadFile: The source no longer holds its tensors.
        DllamaError: The disk is full or fails.
    """
    arch = arch_for(source.config)
    metadata, vectors = model_metadata(source.config)
    tensors = [
        NewTensor(each, GGML_TYPES[0], values.shape, partial(iter, [values.view(np.uint8)]))
        for each, values in vectors.items()
    ]
    stored_as = [each for each in stored_tensors(source.config, arch) if each.name != HEAD or arch.has_head]
    tensors += [_new_tensor(source, arch, stored) for stored in stored_as]
    named = {"general.name": _harmless(name, tokenizer)} if name else {}
    write_container(path, named | metadata | _fitted(tokenizer, source.config.vocab_size), tensors, progress)


def _harmless(name: str, tokenizer: Mapping[str, Any]) -> str:
    """Spell a name of Phi-3 otherwise where its vocabulary lacks the tokens that llama.cpp looks for by that name."""
    is_whole = set(tokenizer.get(f"{_TOKENIZER}tokens", ())) >= _PHI3_TOKENS
    return name if is_whole else re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)


def _fitted(tokenizer: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Give a vocabulary as many tokens as the model has, which is what llama.cpp wants.

    Tokens beyond them were added for what the model lacks, as for Gemma 3's images.

    Raises:
        UsageError: A token that steers the model is among those.
    """
    metadata = dict(tokenizer)
    missing = range(len(metadata.get(f"{_TOKENIZER}tokens", ())), vocab_size)
    fillers: dict[str, list[Any]] = {
        "tokens": [f"[PAD{token_id}]" for token_id in missing],
        "token_type": [_UNUSED] * len(missing),
        "scores": [_LOWEST] * len(missing),
    }
    for name, filler in fillers.items():
        if values := metadata.get(_TOKENIZER + name):
            metadata[_TOKENIZER + name] = [*values[:vocab_size], *filler]
    if metadata.get(_PADDING, 0) >= vocab_size:
        del metadata[_PADDING]
    for key, value in metadata.items():
        if key.endswith("_token_id") and value >= vocab_size:
            raise UsageError(f"{key}: expected one of the model's {vocab_size} tokens, found {value}")
    return metadata


def _new_tensor(source: ModelSource, arch: GgufArch, stored: Stored) -> NewTensor:
    names = [part.name for part in stored.parts]
    if stored.name == EMBEDDING and not arch.has_head and source.tensors["lm_head"].dtype is DType.F16:
        names = ["lm_head"]  # the embedding too, in the type of all others
    parts = [source.tensors[name] for name in names]
    dtypes = {part.dtype for part in parts}
    if len(dtypes) > 1:
        found = ", ".join(sorted(dtype.name for dtype in dtypes))
        raise UsageError(f"{stored.name}: a GGUF file holds this tensor in one number type, and the model has {found}")

    def rows() -> Iterator[RawRows]:
        for part in parts:
            yield from _rows(part, interleaved_head_dim(source.config, arch, part.name))

    return NewTensor(stored.name, GGML_TYPES[_TYPE_IDS[dtypes.pop()]], stored.shape, rows)


def _rows(tensor: StoredTensor, head_dim: int) -> Iterator[RawRows]:
    """Read a tensor in pieces; ``head_dim`` is 0 unless rows are to lie in pairs."""
    unit = head_dim or 1
    step = max(1, _PIECE_BYTES // tensor.row_bytes // unit) * unit
    for begin in range(0, tensor.rows, step):
        rows = tensor.read_rows(begin, min(begin + step, tensor.rows))
        yield interleaved_from_halves(rows, head_dim) if head_dim else rows
