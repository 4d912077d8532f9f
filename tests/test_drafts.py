"""Guesses of what a sequence says next: where they come from, how sure they are, and how much of them is worth it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama.engine.drafts import Drafter, TokenIndex, draft_lengths

FEW_TOKENS = st.lists(st.integers(0, 2), max_size=60)
CHANCES = st.lists(st.lists(st.floats(0.01, 0.99), max_size=4).map(lambda each: sorted(each, reverse=True)), max_size=3)


def best_match(token_ids: list[int]) -> int:
    """Length of the longest match of the end further up, at most 32, looked for everywhere."""
    end = len(token_ids)
    lengths = [
        length
        for place in range(2, end)
        for length in range(2, min(place, 32) + 1)
        if token_ids[place - length : place] == token_ids[end - length :]
    ]
    return max(lengths, default=0)


@given(FEW_TOKENS, st.lists(st.integers(1, 7), max_size=20))
def test_a_place_found_has_the_match_it_is_said_to_have(token_ids: list[int], pieces: list[int]) -> None:
    index, end = TokenIndex(), 0
    for piece in pieces:
        end += piece
        known = token_ids[:end]
        place, length = index.find(known)
        longest = best_match(known)
        assert (length == 0) == (longest == 0)
        assert length <= longest
        if length:
            assert length <= place < len(known)
            assert known[place - length : place] == known[len(known) - length :]
            is_maximal = length in (32, place) or known[place - length - 1] != known[-length - 1]
            assert is_maximal


@given(st.lists(st.integers(0, 400), max_size=80), st.integers(0, 60), st.integers(2, 20))
def test_the_longest_of_a_few_places_is_found(token_ids: list[int], begin: int, count: int) -> None:
    known = token_ids + token_ids[begin : begin + count]
    _, length = TokenIndex().find(known)
    assert length == best_match(known)


def test_of_equal_matches_the_last_counts() -> None:
    assert TokenIndex().find([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]) == (7, 3)
    assert TokenIndex().find([0, 1, 2, 3, 7, 1, 2, 3, 8, 0, 1, 2, 3]) == (4, 4)


@pytest.mark.parametrize("token_ids", [[], [1], [1, 1], [1, 2, 3, 4, 5, 6], [1, 2, 1, 9, 1]])
def test_without_two_equal_tokens_nothing_is_guessed(token_ids: list[int]) -> None:
    assert Drafter(8).guess(token_ids).token_ids == []


def test_guesses_are_what_followed() -> None:
    assert Drafter(3).guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3]).token_ids == [4, 5, 6]


def test_a_text_that_repeats_itself_goes_on_so() -> None:
    assert Drafter(5).guess([9, 1, 2, 1, 2, 1, 2, 1]).token_ids == [2, 1, 2, 1, 2]
    assert Drafter(3).guess([7, 7, 7, 7]).token_ids == [7, 7, 7]


@given(FEW_TOKENS, FEW_TOKENS, st.integers(1, 16))
def test_chances_fall_and_are_neither_certain_nor_hopeless(prompt: list[int], said: list[int], most: int) -> None:
    drafter = Drafter(most)
    for end in range(len(said) + 1):
        guess = drafter.guess(prompt + said[:end])
        assert len(guess.token_ids) == len(guess.chances) in (0, most)
        assert all(1 > before > after > 0 for before, after in zip(guess.chances, guess.chances[1:], strict=False))
        assert guess.first(2).token_ids == guess.token_ids[:2]


def learnt(is_right: bool) -> float:
    """Chance of a first token after twenty guesses that were all right, or all wrong."""
    drafter, token_ids = Drafter(1), [1, 2, 3, 4]
    for number in range(20):
        token_ids += [1, 2, 3]
        assert drafter.guess(token_ids).token_ids == [token_ids[-4]]
        token_ids.append(token_ids[-4] if is_right else 10 + number)
    token_ids += [1, 2, 3]
    return drafter.guess(token_ids).chances[0]


def test_what_came_tells_how_likely_guesses_are() -> None:
    assert learnt(is_right=False) < 0.2
    assert learnt(is_right=True) > 0.8


def test_nothing_is_learnt_twice() -> None:
    drafter, token_ids = Drafter(2), [1, 2, 3, 4, 1, 2, 3]
    first = drafter.guess(token_ids)
    assert drafter.guess(token_ids) == first  # as when a step is run again


@given(CHANCES, st.lists(st.floats(1.0, 3.0), min_size=20, max_size=20), st.integers(0, 12))
def test_lengths_give_the_most_tokens_per_time(chances: list[list[float]], times: list[float], room: int) -> None:
    def rate(lengths: tuple[int, ...]) -> float:
        tokens = sum(1 + sum(each[:length]) for each, length in zip(chances, lengths, strict=True))
        return tokens / times[len(chances) + sum(lengths)]

    lengths = draft_lengths(chances, times.__getitem__, room)
    assert sum(lengths) <= room
    assert all(0 <= length <= len(each) for length, each in zip(lengths, chances, strict=True))
    if not chances:
        return
    everything = product(*(range(len(each) + 1) for each in chances))
    best = max(rate(each) for each in everything if sum(each) <= room)
    none = rate((0,) * len(chances))
    if any(lengths):
        assert rate(tuple(lengths)) == pytest.approx(best)
        assert best > 1.03 * none
    else:
        assert best <= 1.031 * none


def test_free_tokens_are_all_taken_and_dear_ones_are_not() -> None:
    likely = [[0.9, 0.8, 0.7, 0.6]]
    assert draft_lengths(likely, lambda _count: 1.0, 16) == [4]
    assert draft_lengths(likely, float, 16) == [0]
    assert draft_lengths([*likely, []], lambda count: 1.0 if count <= 4 else 9.0, 16) == [2, 0]
