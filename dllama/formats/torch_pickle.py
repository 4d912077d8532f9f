"""What a PyTorch checkpoint's ``data.pkl`` says of its tensors, read as data: nothing that it names is ever called.

A pickle is a program for a stack machine. This one knows the instructions that ``torch.save`` writes for a dictionary
of tensors, and of the functions that such a program may ask for the three that rebuild a tensor, a parameter or an
ordered dictionary; all else is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from dllama.errors import BadFile

_STORAGES = {
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
}
_REBUILD, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"
_MOST_STEPS = 1_000_000  # some 30 for each tensor
_LONGEST_NAME = 256  # bytes


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that tensors are views of.

    Attributes:
        key: Name of their file in the archive's folder ``data``.
        dtype: ``F32``, ``F16`` or ``BF16``.
        count: How many.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: rows of a storage, each of ``cols`` numbers without gaps.

    Attributes:
        storage: Where its numbers are.
        first: The first of them, counted in numbers.
        shape: Its one or two sizes.
    """

    storage: Storage
    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """Something outside that the program names."""

    text: str


class _Mark:
    """Where a group of values on the stack begins."""


class _Bad(Exception):
    """What is wrong: what was expected, and found."""


def read_tensors(raw: bytes, path: str) -> dict[str, View]:
    """Run a ``data.pkl`` that holds a dictionary of tensors.

    Args:
        raw: The program.
        path: The checkpoint, for messages.

    Raises:
        BadFile: It is broken, or asks for anything else.
    """
    machine = _Machine(raw)
    try:
        return machine.run()
    except _Bad as error:
        expected, found = error.args
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
        expected, found = "a pickle of tensors", f"{type(error).__name__}: {error}"[:120]
    raise BadFile(path, f"data.pkl, byte {machine.at}", expected, found)


class _Machine:
    """The program, the stack, the memo, and what each instruction does with them.

    Attributes:
        at: The byte of the program that comes next.
    """

    def __init__(self, raw: bytes) -> None:
        self.at = 0
        self._raw = raw
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> dict[str, View]:
        """Run all of it, and give the tensors of the dictionary that is left."""
        for _ in range(_MOST_STEPS):
            code = self._take(1)
            if code == _STOP:
                return self._result()
            if code not in _ACTIONS:
                raise _Bad("tensors alone", f"the instruction {code!r}")
            _ACTIONS[code](self)
        raise _Bad(f"at most {_MOST_STEPS} steps", "more")

    def _result(self) -> dict[str, View]:
        if len(self._stack) != 1 or not isinstance(self._stack[0], dict):
            raise _Bad("a dictionary of tensors", "something else")
        return {name: value for name, value in self._stack[0].items() if isinstance(value, View)}

    def _take(self, count: int) -> bytes:
        """Take bytes of the program."""
        if count > len(self._raw) - self.at:
            raise _Bad(f"{count} bytes more of the program", f"{len(self._raw) - self.at}")
        self.at += count
        return self._raw[self.at - count : self.at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._raw.find(b"\n", self.at, self.at + _LONGEST_NAME)
        if end < 0:
            raise _Bad("the end of a name", "none")
        return self._take(end + 1 - self.at)[:-1].decode("ascii")

    def _group(self) -> list[Any]:
        """Take the values above the last mark."""
        values: list[Any] = []
        while self._stack and not isinstance(self._stack[-1], _Mark):
            values.append(self._stack.pop())
        if not self._stack:
            raise _Bad("a mark", "none")
        self._stack.pop()
        return values[::-1]

    def skip_version(self) -> None:
        self._take(1)

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_number(self, form: str) -> None:
        self._stack.append(self._number(form))

    def push_long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number("B")), "little", signed=True))

    def push_text(self, form: str) -> None:
        self._stack.append(self._take(self._number(form)).decode("utf-8"))

    def push_tuple(self, size: int) -> None:
        if size > len(self._stack):
            raise _Bad("values for a tuple", "an empty stack")
        values = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._stack.append(values)

    def push_group(self) -> None:
        self._stack.append(tuple(self._group()))

    def push_name(self) -> None:
        name = f"{self._line()} {self._line()}"
        if name not in (*_STORAGES, _REBUILD, _PARAMETER, _ORDERED):
            raise _Bad("tensors of F32, F16 or BF16 alone", f"{brief(name.replace(' ', '.'))}, which is never run")
        self._stack.append(_Name(name))

    def put(self, form: str) -> None:
        self._memo[self._number(form)] = self._stack[-1]

    def get(self, form: str) -> None:
        self._stack.append(self._memo[self._number(form)])

    def push_storage(self) -> None:
        """Take ``("storage", kind, key, place, count)``."""
        what, kind, key, _, count = self._stack.pop()
        dtype = _STORAGES.get(kind.text) if isinstance(kind, _Name) else None
        if what != "storage" or dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise _Bad("a storage of numbers", "something else")
        self._stack.append(Storage(key, dtype, count))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Bad("a tensor", "a call of something else")
        if function.text == _ORDERED and arguments == ():
            self._stack.append({})
        elif function.text == _PARAMETER and isinstance(arguments[0], View):
            self._stack.append(arguments[0])
        elif function.text == _REBUILD:
            self._stack.append(_view(*arguments[:4]))
        else:
            raise _Bad("a tensor or an empty dictionary", f"a call of {function.text}")

    def set_items(self) -> None:
        self._set(self._group())

    def set_item(self) -> None:
        values = self._stack[-2:]
        del self._stack[-2:]
        self._set(values)

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise _Bad("a dictionary to fill", "something else")
        for name, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(name, str) or name in target:
                raise _Bad("names of tensors, each once", brief(name))
            target[name] = value

    def build(self) -> None:
        """Drop what an ordered dictionary holds beside its items: the versions of the modules that it was made of."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise _Bad("an attribute of a dictionary", "one of something else")


def _view(storage: Any, first: Any, shape: Any, strides: Any) -> View:
    """Check a tensor: inside its storage, of one or two sizes, its rows whole and in order."""
    if not isinstance(storage, Storage) or type(first) is not int or not isinstance(shape, tuple):
        raise _Bad("a tensor", "something else")
    if not 1 <= len(shape) <= 2 or not all(type(size) is int and 0 < size < 1 << 40 for size in shape):
        raise _Bad("a tensor of one or two sizes", brief(shape))
    count = shape[0] * (shape[1] if len(shape) == 2 else 1)
    whole = (shape[1], 1) if len(shape) == 2 else (1,)
    if strides != whole:
        raise _Bad(f"rows one after the other, strides {whole}", brief(strides))
    if first < 0 or first + count > storage.count:
        raise _Bad(f"a tensor inside its {storage.count} numbers", f"{count} from {first} on")
    return View(storage, first, shape)


_STOP = b"."
_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.skip_version,
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"}": lambda machine: machine.push({}),
    b")": lambda machine: machine.push(()),
    b"(": lambda machine: machine.push(_Mark()),
    b"K": lambda machine: machine.push_number("B"),
    b"M": lambda machine: machine.push_number("<H"),
    b"J": lambda machine: machine.push_number("<i"),
    b"\x8a": _Machine.push_long,
    b"\x8c": lambda machine: machine.push_text("B"),
    b"X": lambda machine: machine.push_text("<I"),
    b"\x85": lambda machine: machine.push_tuple(1),
    b"\x86": lambda machine: machine.push_tuple(2),
    b"\x87": lambda machine: machine.push_tuple(3),
    b"t": _Machine.push_group,
    b"c": _Machine.push_name,
    b"q": lambda machine: machine.put("B"),
    b"r": lambda machine: machine.put("<I"),
    b"h": lambda machine: machine.get("B"),
    b"j": lambda machine: machine.get("<I"),
    b"Q": _Machine.push_storage,
    b"R": _Machine.call,
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"b": _Machine.build,
}
