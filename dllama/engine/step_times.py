"""How much longer a step takes that has more tokens, as measured on these nodes while they run."""

from __future__ import annotations

from dataclasses import dataclass

_BELIEVED = 128  # steps for which a measurement counts at least; it may be twice as many
_LEAST_WEIGHT = 1 / 8  # of a new measurement
_SPEED_WEIGHT = 0.2  # of a new measurement of how fast everything is just now


@dataclass(slots=True)
class _Measured:
    """The time of a step relative to others, how often it was measured, and in which step the last time."""

    ratio: float
    count: int = 0
    last: int = 0


class StepTimes:
    """Learns the relative times of steps by their number of tokens.

    Memory shared with others, clocks and long contexts make all steps faster or slower together. So each measurement
    tells on a common factor, and on the ratio of its number of tokens the less, the better that is known.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Measured] = {}
        self._num_steps, self._unit = 0, 0.0  # seconds of a step of ratio 1

    def note(self, num_tokens: int, seconds: float) -> None:
        """Take what a step of decode tokens took."""
        if seconds <= 0:
            return
        measured = self._known.get(num_tokens) or self._first(num_tokens, seconds)
        change = min(max(seconds / (self._unit * measured.ratio), 0.5), 2.0) - 1  # an interrupted step tells little
        weight = max(1 / (measured.count + 1), _LEAST_WEIGHT)
        measured.ratio *= 1 + weight * change
        self._unit *= 1 + (1 - weight) * _SPEED_WEIGHT * change
        self._num_steps += 1
        measured.count, measured.last = measured.count + 1, self._num_steps
        if self._num_steps % _BELIEVED == 0:
            oldest = self._num_steps - _BELIEVED
            self._known = {count: each for count, each in self._known.items() if each.last > oldest}

    def _first(self, num_tokens: int, seconds: float) -> _Measured:
        """Begin with what is thought of a step that was not measured yet."""
        if not self._known:
            self._unit = seconds / num_tokens
        self._known[num_tokens] = _Measured(self.of(num_tokens))
        return self._known[num_tokens]

    def of(self, num_tokens: int) -> float:
        """Give the relative time of a step; what was not measured is taken to be good enough to be tried."""
        if measured := self._known.get(num_tokens):
            return measured.ratio
        fewer = max((count for count in self._known if count < num_tokens), default=0)
        more = min((count for count in self._known if count > num_tokens), default=0)
        if not fewer and not more:
            return float(num_tokens)  # nothing is known, and nothing should be tried
        if not more:
            return self._known[fewer].ratio * _growth(num_tokens / fewer)
        if not fewer:
            return self._known[more].ratio / _growth(more / num_tokens)
        low, high = self._known[fewer].ratio, self._known[more].ratio
        return low + (high - low) * ((num_tokens - fewer) / (more - fewer)) ** 2


def _growth(times_as_many: float) -> float:
    """Guess how much longer a step with so many times the tokens takes: hardly at first, then in proportion."""
    return max(1 + 0.1 * (times_as_many - 1), times_as_many / 2)
