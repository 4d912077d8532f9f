"""Checkpoints as others publish them, written byte by byte: safetensors files, and archives of PyTorch without it."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def bf16(values: np.ndarray) -> np.ndarray:
    """Give the upper halves of float32 values, which is bfloat16 rounded towards zero, as uint16."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def from_bf16(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def kind_of(array: np.ndarray) -> str:
    """Give the number type of an array: uint16 stands for bfloat16."""
    return {"<f4": "F32", "<f2": "F16", "<u2": "BF16"}[array.dtype.str]


def write_safetensors(path: Path, tensors: Arrays) -> None:
    header, begin = {}, 0
    for name, array in tensors.items():
        end = begin + array.nbytes
        header[name] = {"dtype": kind_of(array), "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(array.tobytes() for array in tensors.values()))


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Arrays, shards: int = 1) -> Path:
    """Write a Hugging Face folder; tensors go to its files in turns, so that no file is in the order of layers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    names = [f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)]
    weight_map = {name: names[index % shards] for index, name in enumerate(tensors)}
    for file in names:
        write_safetensors(folder / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


# --- PyTorch ------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor_program(kind: str, key: str, shape: Sequence[int], strides: Sequence[int], count: int, first: int) -> bytes:
    """Give the instructions that rebuild a tensor, as PyTorch writes them."""
    storage = b"(" + text("storage") + f"ctorch\n{STORAGES.get(kind, kind)}\n".encode() + text(key) + text("cpu")
    storage += number(count) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + number(first) + numbers(shape) + numbers(strides) + b"\x89" + hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def dictionary_program(items: Mapping[str, bytes]) -> bytes:
    """Give the pickle of an ordered dictionary of tensors, with the attribute that a module's has."""
    body = b"".join(text(name) + program for name, program in items.items())
    attribute = b"}" + text("_metadata") + b"}s"
    return b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(" + body + b"u" + attribute + b"b."


def program_of(tensors: Arrays) -> bytes:
    items = {}
    for index, (name, array) in enumerate(tensors.items()):
        strides = [stride // array.itemsize for stride in array.strides]
        items[name] = tensor_program(kind_of(array), str(index), array.shape, strides, array.size, 0)
    return dictionary_program(items)


def write_pth(path: Path, tensors: Arrays, program: bytes | None = None) -> Path:
    """Write an archive as ``torch.save`` does; ``program`` stands in for its pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("consolidated/data.pkl", program_of(tensors) if program is None else program)
        for index, array in enumerate(tensors.values()):
            archive.writestr(f"consolidated/data/{index}", array.tobytes())
        archive.writestr("consolidated/version", "3\n")
    return path
