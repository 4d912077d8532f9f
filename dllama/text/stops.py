"""Ending a text at the first stop: token ids, sequences of token ids, and strings.

What may be the beginning of a stop is held back until it is certain that it is none. Each token and each character is
looked at once, by an automaton over all stops together (Aho and Corasick), so the cost does not grow with the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from dllama.text.detokenizer import Detokenizer

Stop = int | str | tuple[int, ...]  # a token id, a string, a sequence of token ids
Piece = TypeVar("Piece", str, tuple[int, ...])


class StopAutomaton:
    """Knows after each symbol how much of its patterns has just been seen.

    A state is a prefix of a pattern: the longest that the symbols so far end with. State 0 is the empty one.

    Args:
        patterns: What to look for; none of them empty.

    Attributes:
        depths: By state, how many of the last symbols may be the beginning of a pattern.
        matches: By state, the length of the longest pattern that ends here; 0: none does.
    """

    def __init__(self, patterns: Iterable[Sequence[Hashable]]) -> None:
        self.depths, self.matches = [0], [0]
        self._next: list[dict[Hashable, int]] = [{}]
        self._shorter = [0]  # the state to go on from where a state knows no next symbol
        for pattern in patterns:
            self._insert(pattern)
        self._link()

    def step(self, state: int, symbol: Hashable) -> int:
        """Give the state after one more symbol."""
        while state and symbol not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(symbol, 0)

    def _insert(self, pattern: Sequence[Hashable]) -> None:
        state = 0
        for symbol in pattern:
            if symbol not in self._next[state]:
                self._next[state][symbol] = len(self._next)
                self._next.append({})
                self.depths.append(self.depths[state] + 1)
                self.matches.append(0)
                self._shorter.append(0)
            state = self._next[state][symbol]
        self.matches[state] = len(pattern)

    def _link(self) -> None:
        """Find for each state its longest proper suffix that is a state too, shorter states first."""
        states = deque(self._next[0].values())
        while states:
            state = states.popleft()
            self.matches[state] = self.matches[state] or self.matches[self._shorter[state]]
            for symbol, longer in self._next[state].items():
                self._shorter[longer] = self.step(self._shorter[state], symbol)
                states.append(longer)


class StopFilter(Generic[Piece]):
    """Lets symbols through up to the first stop, and holds back what may be the beginning of one.

    The first stop is the one that ends first, and of several that end at the same symbol the longest. So what comes
    out does not depend on the pieces in which the symbols come.

    Args:
        empty: A piece of nothing.
        stops: What ends the stream.
    """

    def __init__(self, empty: Piece, stops: Iterable[Piece]) -> None:
        self._automaton, self._state = StopAutomaton(stops), 0
        self._held: Piece = empty

    def add(self, piece: Piece) -> tuple[Piece, Piece | None]:
        """Take the next piece; give what is now certain, and the stop if there is one. Nothing may follow a stop."""
        automaton = self._automaton
        for index, symbol in enumerate(piece):
            self._state = automaton.step(self._state, symbol)
            if length := automaton.matches[self._state]:
                seen, self._held = self._held + piece[: index + 1], piece[:0]
                return seen[:-length], seen[-length:]
        seen = self._held + piece
        certain = len(seen) - automaton.depths[self._state]
        self._held = seen[certain:]
        return seen[:certain], None

    def finish(self) -> Piece:
        """Give what is still held back: no stop will come of it."""
        held = self._held
        self._held = held[:0]
        return held


class TextUntilStop:
    """The text that a request's tokens say, as they come, up to the first stop.

    Of stops that are complete with the same token, ids win over strings: the text of ids that stop is never looked at.

    Args:
        new_detokenizer: Makes a Detokenizer of this text; None: there is no text, and only ids stop.
        stop_ids: Tokens that stop.
        sequences: Sequences of tokens that stop.
        strings: Texts that stop.
    """

    def __init__(
        self,
        new_detokenizer: Callable[[], Detokenizer] | None,
        stop_ids: Iterable[int] = (),
        sequences: Iterable[tuple[int, ...]] = (),
        strings: Sequence[str] = (),
    ) -> None:
        self._reasons: dict[tuple[int, ...], Stop] = {sequence: sequence for sequence in sequences}
        holds_ids = any(len(sequence) > 1 for sequence in self._reasons)
        self._reasons |= {(token_id,): token_id for token_id in stop_ids}
        self._ids: StopFilter[tuple[int, ...]] = StopFilter((), self._reasons)
        self._strings: StopFilter[str] = StopFilter("", strings)
        self._detokenizer = new_detokenizer and new_detokenizer()
        # Sees the text of ids that are held back here, in which a string may be complete.
        self._scout = TextUntilStop(new_detokenizer, strings=strings) if holds_ids and strings else None

    def add(self, token_id: int) -> tuple[str, Stop | None]:
        """Take the next token; give the text that is now certain, and the stop if there is one."""
        ids, sequence = self._ids.add((token_id,))
        if sequence is not None:
            return self._decode(ids)[0] + self.finish(), self._reasons[sequence]
        if self._scout and self._scout.add(token_id)[1] is not None:
            ids += self._ids.finish()
        return self._decode(ids)

    def finish(self) -> str:
        """Give all text that was held back, as far as no string stops it: no token follows."""
        text, _ = self._decode(self._ids.finish())
        if self._detokenizer:
            text += self._strings.add(self._detokenizer.finish())[0]
        return text + self._strings.finish()

    def _decode(self, ids: tuple[int, ...]) -> tuple[str, str | None]:
        """Give the certain text after tokens of which no stop can come any more."""
        if self._detokenizer is None:
            return "", None
        return self._strings.add("".join(map(self._detokenizer.add, ids)))
