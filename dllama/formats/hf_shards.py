"""Which files of a Hugging Face folder hold the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MOST_INDEX_BYTES = 64 << 20  # several times that of the largest mixtures of experts


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # name of a tensor to that of its file


_decoder = msgspec.json.Decoder(_Index)


def shard_names(path: str, names: Sequence[str]) -> list[str]:
    """Give the names of the files with weights: those that the index lists, or else the only one, or else all.

    Files beside those that an index lists are others' forms of the same weights.

    Args:
        path: The folder.
        names: Of all files in it.

    Raises:
        BadFile: There are none that dllama reads, or the index is not what it must be.
    """
    if INDEX in names:
        return _listed(Path(path, INDEX))
    if _SINGLE in names:
        return [_SINGLE]
    found = [name for name in names if name.endswith(".safetensors")]
    if not found:
        raise BadFile(path, "weights", "files in the form .safetensors", _what_else(names))
    return found


def _listed(path: Path) -> list[str]:
    with CheckedFile(path, "index") as file:
        if file.size > _MOST_INDEX_BYTES:
            raise file.bad("size", f"at most {_MOST_INDEX_BYTES} bytes", f"{file.size} bytes")
        try:
            index = _decoder.decode(file.read(0, file.size, "text"))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise file.bad("", "a weight_map of tensors to files", " ".join(str(error).split())[:200]) from None
        listed = sorted(set(index.weight_map.values()))
        for name in listed:
            if not (name.endswith(".safetensors") and name == Path(name).name and name.isprintable()):
                raise file.bad("weight_map", "names of .safetensors files in this folder", f"{name!r:.200}")
        if not listed:
            raise file.bad("weight_map", "names of files", "none")
    return listed


def _what_else(names: Sequence[str]) -> str:
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not pickles:
        return "none; is the download complete?"
    return (
        f"{pickles[0]!r:.100}, a pickle, which can run any program when it is read; save the model again as "
        ".safetensors, as save_pretrained of transformers does"
    )
