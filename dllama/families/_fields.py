"""Typed access to the fields of a ``config.json``, and the errors for those that are wrong or ask for too much."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from reprlib import repr as brief

from dllama.errors import BadFile, UnsupportedModel
from dllama.limits import LARGEST_NUMBER, SMALLEST_NUMBER


class Fields:
    """A parsed ``config.json``; a null counts as absent but where a method says otherwise."""

    def __init__(self, raw: Mapping[str, object], path: str | PathLike[str], place: str = "") -> None:
        self._raw, self._path, self._place = raw, path, place

    def has(self, name: str) -> bool:
        """Whether ``name`` is there with a value."""
        return self._raw.get(name) is not None

    def mentions(self, name: str) -> bool:
        """Whether ``name`` is there, be it null."""
        return name in self._raw

    def integer(self, name: str, default: int | None = None) -> int:
        """Give a whole number; without a default the field is required."""
        value = self._value(name, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(name, "a whole number", brief(value))
        if abs(value) >= 1 << 63:  # JSON's have no bound
            raise self.bad(name, "a whole number", "one too large")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Give a number; without a default the field is required."""
        value = self._value(name, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, "a number", brief(value))
        try:
            return float(value)
        except OverflowError:
            raise self.bad(name, "a number", "one too large") from None

    def positive(self, name: str, default: float | None = None) -> float:
        """Give a number above 0 that is neither tiny nor huge; without a default the field is required."""
        value = self.number(name, default)
        if not SMALLEST_NUMBER <= value <= LARGEST_NUMBER:
            raise self.bad(name, f"a number from {SMALLEST_NUMBER} to {LARGEST_NUMBER}", str(value))
        return value

    def window(self, name: str, default: int) -> int:
        """Give a number of positions that null turns off: 0 for null, ``default`` if the field is absent."""
        if not self.has(name):
            return 0 if self.mentions(name) else default
        value = self.integer(name)
        if value < 1:
            raise self.bad(name, "1 or more", str(value))
        return value

    def cap(self, name: str, default: float) -> float:
        """Give a soft cap that null turns off: 0 for null, ``default`` if the field is absent."""
        if not self.has(name):
            return 0.0 if self.mentions(name) else default
        return self.positive(name)

    def text(self, name: str, default: str) -> str:
        """Give a string."""
        value = self._value(name, default, "a string")
        if not isinstance(value, str):
            raise self.bad(name, "a string", brief(value))
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Give true or false."""
        value = self._value(name, default, "true or false")
        if not isinstance(value, bool):
            raise self.bad(name, "true or false", brief(value))
        return value

    def texts(self, name: str) -> list[str]:
        """Give a list of strings; an empty one if it is absent."""
        value = self._value(name, [], "a list of strings")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.bad(name, "a list of strings", brief(value))
        return value

    def integers(self, name: str) -> list[int]:
        """Give a list of whole numbers; an empty one if it is absent."""
        value = self._value(name, [], "a list of whole numbers")
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.bad(name, "a list of whole numbers", brief(value))
        return value

    def numbers(self, name: str, most: int) -> tuple[float, ...]:
        """Give a list of up to ``most`` numbers; the field is required."""
        value = self._value(name, None, "a list of numbers")
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise self.bad(name, "a list of numbers", brief(value))
        if len(value) > most or any(abs(item) > LARGEST_NUMBER for item in value):
            raise self.bad(name, f"up to {most} numbers", f"{len(value)}, or some too large")
        return tuple(map(float, value))

    def group(self, name: str) -> Fields:
        """Give the object ``name``; an empty one if it is absent."""
        value = self._value(name, {}, "an object")
        if not isinstance(value, Mapping):
            raise self.bad(name, "an object", brief(value))
        return Fields(value, self._path, f"{self._place}{name}.")

    def bad(self, name: str, expected: str, found: str) -> BadFile:
        """Build the error for a field that is not what it must be."""
        return BadFile(self._path, self._place + name, expected, found)

    def refuse(self, name: str, supported: str, found: object) -> UnsupportedModel:
        """Build the error for a feature that the core lacks."""
        return UnsupportedModel(self._path, self._place + name, supported, brief(found))

    def require_off(self, *names: str) -> None:
        """Refuse the model if a flag is on whose feature the core lacks."""
        for name in names:
            if self.flag(name):
                raise self.refuse(name, "false, the only choice supported", True)

    def require_absent(self, *names: str) -> None:
        """Refuse the model if a field is there whose feature the core lacks."""
        for name in names:
            if self.has(name):
                raise self.refuse(name, "no such field, as it is not supported", self._raw[name])

    def _value(self, name: str, default: object, expected: str) -> object:
        value = self._raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.bad(name, expected, "no such field")
        return value
