"""Which files of a Hugging Face folder hold the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile
from dllama.formats.json_file import bound_members, one_line
from dllama.hub.folders import INDEX, SINGLE

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MOST_INDEX_BYTES = 64 << 20  # several times that of the largest mixtures of experts
_MOST_COLONS = 1 << 18  # one a tensor, and a few: several times those of the largest mixtures of experts


class _Index(msgspec.Struct):
    weight_map: dict[str, str]  # name of a tensor to that of its file


_decoder = msgspec.json.Decoder(_Index)


def shard_names(path: str, names: Sequence[str]) -> list[str]:
    """Give the names of the files with weights: the one that is all, or else those that the index lists, or else all.

    Files beside those are others' forms of the same weights.

    Args:
        path: The folder.
        names: Of all files in it.

    Raises:
        BadFile: There are none that dllama reads, or the index is not what it must be.
    """
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return _listed(Path(path, INDEX))
    found = [name for name in names if name.endswith(".safetensors")]
    if not found:
        raise BadFile(path, "weights", "files in the form .safetensors", _what_else(names))
    return found


def _listed(path: Path) -> list[str]:
    with CheckedFile(path, "index") as file:
        if file.size > _MOST_INDEX_BYTES:
            raise file.bad("size", f"at most {_MOST_INDEX_BYTES} bytes", f"{file.size} bytes")
        raw = file.read(0, file.size, "text")
        bound_members(file.path, "", raw, _MOST_COLONS, f"at most {_MOST_COLONS} tensors")
        try:
            index = _decoder.decode(raw)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise file.bad("", "a weight_map of tensors to files", one_line(error)) from None
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
