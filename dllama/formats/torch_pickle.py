"""What a PyTorch checkpoint's ``data.pkl`` says of its tensors, read as data: nothing that it names is ever called.

A pickle is a program for a stack machine. This one knows the instructions that ``torch.save`` writes for a dictionary
of tensors, and of the functions that such a program may ask for the three that rebuild a tensor or an ordered
dictionary, by name; anything else ends in ``BadFile``. Written against Python's ``pickletools`` and what PyTorch 2
writes.
"""

from __future__ import annotations

import pickletools
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
_MOST_STEPS = 2_000_000  # some 30 for each tensor


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
    machine, step = _Machine(), 0
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if step > _MOST_STEPS:
                raise _Bad(f"at most {_MOST_STEPS} steps", "more")
            machine.run(opcode.name, argument)
        return machine.tensors()
    except _Bad as error:
        expected, found = error.args
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
        expected, found = "a pickle of tensors", f"{type(error).__name__}: {error}"[:120]
    raise BadFile(path, f"data.pkl, step {step}", expected, found)


class _Machine:
    """The stack, the memo, and what each instruction does with them."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._is_over = False

    def run(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _TUPLES:
            self._push_tuple(_TUPLES[name])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise _Bad("tensors alone", f"the instruction {name}")

    def tensors(self) -> dict[str, View]:
        """Give the result: what was on the stack at the end."""
        if not self._is_over or len(self._stack) != 1 or not isinstance(self._stack[0], dict):
            raise _Bad("a dictionary of tensors", "something else")
        return {name: value for name, value in self._stack[0].items() if isinstance(value, View)}

    def _push_tuple(self, size: int) -> None:
        if size > len(self._stack):
            raise _Bad("values for a tuple", "an empty stack")
        values = tuple(self._stack[-size:])
        del self._stack[-size:]
        self._stack.append(values)

    def _group(self) -> list[Any]:
        """Take the values above the last mark."""
        values: list[Any] = []
        while self._stack and not isinstance(self._stack[-1], _Mark):
            values.append(self._stack.pop())
        if not self._stack:
            raise _Bad("a mark", "none")
        self._stack.pop()
        return values[::-1]

    def do_stop(self, _: Any) -> None:
        self._is_over = True

    def do_mark(self, _: Any) -> None:
        self._stack.append(_Mark())

    def do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._group()))

    def do_name(self, argument: str) -> None:
        if argument not in (*_STORAGES, _REBUILD, _PARAMETER, _ORDERED):
            raise _Bad("tensors of F32, F16 or BF16 alone", f"{brief(argument.replace(' ', '.'))}, which is never run")
        self._stack.append(_Name(argument))

    def do_put(self, argument: int) -> None:
        self._memo[argument] = self._stack[-1]

    def do_get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    def do_storage(self, _: Any) -> None:
        """Take ``("storage", kind, key, place, count)``."""
        what, kind, key, _, count = self._stack.pop()
        dtype = _STORAGES.get(kind.text) if isinstance(kind, _Name) else None
        if what != "storage" or dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise _Bad("a storage of numbers", "something else")
        self._stack.append(Storage(key, dtype, count))

    def do_call(self, _: Any) -> None:
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

    def do_set_items(self, _: Any) -> None:
        values = self._group()
        self._set(values)

    def do_set_item(self, _: Any) -> None:
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

    def do_build(self, _: Any) -> None:
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


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda _machine, _argument: None,
    "STOP": _Machine.do_stop,
    "MARK": _Machine.do_mark,
    "TUPLE": _Machine.do_tuple,
    "GLOBAL": _Machine.do_name,
    "BINPUT": _Machine.do_put,
    "LONG_BINPUT": _Machine.do_put,
    "BINGET": _Machine.do_get,
    "LONG_BINGET": _Machine.do_get,
    "BINPERSID": _Machine.do_storage,
    "REDUCE": _Machine.do_call,
    "SETITEM": _Machine.do_set_item,
    "SETITEMS": _Machine.do_set_items,
    "BUILD": _Machine.do_build,
}
