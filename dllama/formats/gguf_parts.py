"""Opening a GGUF file, or all parts of a model that llama.cpp's ``gguf-split`` made: the first has the metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dllama.errors import BadFile
from dllama.formats.checked_file import CheckedFile
from dllama.formats.gguf_container import GgufContainer, GgufTensorInfo, parse_container

_NUMBER, _COUNT = "split.no", "split.count"
_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_MAX_PARTS = 1 << 12


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and the open file that holds it."""

    file: CheckedFile
    info: GgufTensorInfo


def open_parts(
    path: str | os.PathLike[str], files: list[CheckedFile]
) -> tuple[Mapping[str, object], dict[str, Placed]]:
    """Open all parts and add them to ``files``, also when something fails later.

    Returns:
        The metadata of the first, and the tensors of all.

    Raises:
        UsageError, BadFile: As ``read_container``; a part is missing, or of another model.
    """
    first = _open(path, files)
    count, tensors = _split_number(first, _COUNT, 1), _placed(files[0], first)
    number = _split_number(first, _NUMBER, 0)
    if count > 1 and number:
        raise files[0].bad(_NUMBER, f"0: name the first part, {_part_name(first.path, 0, count)}", str(number))
    for number in range(1, count):
        part = _open(_part_name(first.path, number, count), files)
        found = (_split_number(part, _NUMBER, 0), _split_number(part, _COUNT, 1))
        if found != (number, count):
            raise BadFile(part.path, _NUMBER, f"part {number} of {count}", f"part {found[0]} of {found[1]}")
        placed = _placed(files[-1], part)
        if twice := tensors.keys() & placed.keys():
            raise BadFile(
                part.path, f"tensor {min(twice)}", "every tensor in one part", "one that is in an earlier part too"
            )
        tensors |= placed
    return first.metadata, tensors


def part_paths(path: str | os.PathLike[str]) -> list[str]:
    """Give the files of a model by the name of its first: all parts that are there, in their order."""
    path = os.fspath(path)
    match = _NAME.fullmatch(path)
    if match is None or int(match[2]) != 1:
        return [path]
    names = [_part_name(path, number, int(match[3])) for number in range(1, min(int(match[3]), _MAX_PARTS))]
    return [path, *(name for name in names if os.path.exists(name))]  # noqa: PTH110 - any text is a path here


def _open(path: str | os.PathLike[str], files: list[CheckedFile]) -> GgufContainer:
    files.append(CheckedFile(path, "model"))
    return parse_container(files[-1])


def _placed(file: CheckedFile, container: GgufContainer) -> dict[str, Placed]:
    return {name: Placed(file, info) for name, info in container.tensors.items()}


def _split_number(container: GgufContainer, key: str, default: int) -> int:
    value = container.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_PARTS:
        raise BadFile(container.path, key, f"0 to {_MAX_PARTS}", repr(value)[:50])
    return value


def _part_name(path: str, number: int, count: int) -> str:
    """Give the name of another part, counted from 0."""
    match = _NAME.fullmatch(path)
    if match is None or int(match[3]) != count:
        expected = f"a name that ends in -00001-of-{count:05}.gguf, as this is one of {count} parts"
        raise BadFile(path, "file name", expected, os.path.basename(path))  # noqa: PTH119 - any text is a path here
    return f"{match[1]}-{number + 1:05}-of-{count:05}.gguf"
