"""Whether a file is what its name says, by its own header: what can be told before anything is installed.

A ``.m`` file must have the size that its header's numbers give. That is the arithmetic of ``dllama.formats``, which
needs numpy, told once more in a few lines; a test holds both together.
"""

from __future__ import annotations

import struct
from pathlib import Path

from dllama.errors import BadFile

_M_MAGIC, _LLAMA, _QWEN3, _QWEN3_MOE = 0x0A00ABCD, 0xABCD00, 0xABCD01, 0xABCD02
_T_MAGICS = (0x567124, 0x567123)
_BLOCK_BYTES = {0: 128, 1: 64, 2: 18, 3: 34}  # of 32 values, by number type
_MAX_HEADER = 8 + 8 * 1024
# Keys of the header.
_ARCH, _EXPERTS, _WEIGHTS, _HEAD_DIM, _EXPERT_FFN = 1, 7, 13, 19, 21
_DIMS = (2, 3, 4, 5, 6, 9)  # hidden size, FFN size, layers, heads, KV heads, vocabulary


def check_file(path: Path, suffix: str) -> None:
    """Check the header of a file and what it says of the file's size.

    Args:
        path: The file, whatever its name.
        suffix: What it should be: ``.m``, ``.t``, ``.safetensors``, ``.gguf``, ``.json``; of others nothing is known.

    Raises:
        BadFile: It is something else, or cut short.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
    size = path.stat().st_size
    if suffix not in (".m", ".t"):
        _check_start(path, suffix, head, size)
        return
    magic, header_size = struct.unpack("<Ii", head[:8].ljust(8, b"\0"))
    if suffix == ".t":
        if magic not in _T_MAGICS:
            raise BadFile(path, "byte 0 (magic number)", "that of a .t tokenizer file", f"0x{magic:08X}")
        return
    if magic in (_LLAMA, _QWEN3):  # the oldest files, which do not say what their weights are
        return
    if magic != _M_MAGIC:
        raise BadFile(path, "byte 0 (magic number)", f"0x{_M_MAGIC:08X}, a .m model file", f"0x{magic:08X}")
    if not 8 <= header_size <= len(head) or header_size % 8:
        raise BadFile(path, "byte 4 (header size)", f"8 plus 8 per key, at most {_MAX_HEADER}", str(header_size))
    values = dict(struct.iter_unpack("<ii", head[8:header_size]))
    expected = _m_size(values)
    if expected == 0:
        raise BadFile(path, "header", "sizes above 0", str({key: values.get(key) for key in _DIMS}))
    if expected is not None and size != header_size + expected:
        raise BadFile(path, "size", f"{header_size + expected} bytes, by its header", f"{size} bytes")


def _check_start(path: Path, suffix: str, head: bytes, size: int) -> None:
    """Tell a file of a repository from an error page, or from the pointer that stands for it in git."""
    if suffix == ".gguf" and not head.startswith(b"GGUF"):
        raise BadFile(path, "byte 0", "GGUF, a model file", repr(head[:16]))
    if suffix == ".json" and head.lstrip()[:1] not in (b"{", b"["):
        raise BadFile(path, "byte 0", "JSON", repr(head[:16]))
    header_size = int.from_bytes(head[:8], "little")
    if suffix == ".safetensors" and (header_size > size - 8 or head[8:9] != b"{"):
        raise BadFile(path, "byte 0 (header size)", "that of a safetensors file", repr(head[:16]))


def _m_size(values: dict[int, int]) -> int | None:
    """Bytes of all tensors; 0 if there can be none, None for a kind of model that is not known here."""
    arch, weights = values.get(_ARCH), values.get(_WEIGHTS)
    experts, expert_ffn = values.get(_EXPERTS, 0), values.get(_EXPERT_FFN, 0)
    is_known = expert_ffn > 0 if arch == _QWEN3_MOE else arch in (_LLAMA, _QWEN3) and not experts
    if not is_known or weights not in _BLOCK_BYTES:
        return None
    dims = [values.get(key, 0) for key in _DIMS]
    if min(dims) < 1:
        return 0
    hidden, ffn, layers, heads, kv_heads, vocab = dims
    head_dim = values.get(_HEAD_DIM, hidden // heads)
    ffn = experts * expert_ffn if arch == _QWEN3_MOE else ffn
    matrices = hidden * (2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * ffn)
    floats = 2 * hidden + (0 if arch == _LLAMA else 2 * head_dim) + (experts * hidden if arch == _QWEN3_MOE else 0)
    values_4_bytes = vocab * hidden + layers * floats + hidden
    return 4 * values_4_bytes + (layers * matrices + vocab * hidden) // 32 * _BLOCK_BYTES[weights]
