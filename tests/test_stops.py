"""Stops against a plain search of the whole text, however it is cut into tokens."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import byte_tokenizer_data  # type: ignore[import-not-found]

from dllama.text.detokenizer import Detokenizer
from dllama.text.stops import Stop, StopFilter, TextUntilStop
from dllama.text.tokenizer import Tokenizer

BYTES = Tokenizer(byte_tokenizer_data())  # ids below 256 are bytes
PAIRS = [token_id for token_id in range(256, BYTES.vocab_size) if not BYTES.is_special(token_id)]
LETTERS = "ab€\ufffd"  # few, so that stops overlap and contain each other
STRINGS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=5)
# Bytes of these letters in any order: whole characters, halves of them, and what is no UTF-8 at all.
RAW = st.lists(st.sampled_from(["a", "b", "€", "ab"]).map(str.encode) | st.sampled_from([b"\xe2", b"\x82", b"\xac"]))


def detokenizer() -> Detokenizer:
    return Detokenizer(BYTES, continues=True)


def plain_search(stream, stops):
    """The specification: what is left of ``stream``, and the stop that ended it."""
    for end in range(1, len(stream) + 1):
        found = [stop for stop in stops if stream[max(0, end - len(stop)) : end] == stop]
        if found:
            longest = max(found, key=len)
            return stream[: end - len(longest)], longest
    return stream, None


def feed(text: TextUntilStop, token_ids) -> tuple[list[str], Stop | None, int]:
    """The pieces of text, the stop, and the number of tokens taken."""
    pieces = []
    for count, token_id in enumerate(token_ids, 1):
        piece, stop = text.add(token_id)
        pieces.append(piece)
        if stop is not None:
            return pieces, stop, count
    return [*pieces, text.finish()], None, len(token_ids)


@given(st.text(LETTERS), STRINGS, st.data())
def test_strings_in_pieces_of_any_size(text, stops, data):
    stop_filter, given_out, stop, rest = StopFilter("", stops), "", None, text
    while rest and stop is None:
        size = data.draw(st.integers(1, 4))
        piece, stop = stop_filter.add(rest[:size])
        given_out, rest = given_out + piece, rest[size:]
    if stop is None:
        given_out += stop_filter.finish()
    assert (given_out, stop) == plain_search(text, stops)


@given(RAW, STRINGS)
def test_strings_across_tokens_and_broken_characters(raw, stops):
    token_ids = list(b"".join(raw))
    pieces, _, _ = feed(TextUntilStop(detokenizer, strings=stops), token_ids)
    assert "".join(pieces) == plain_search(bytes(token_ids).decode("utf-8", "replace"), stops)[0]


@given(st.lists(st.sampled_from(PAIRS[:30]) | st.sampled_from(list(b"eta")), max_size=30), st.data())
def test_cuts_into_tokens_do_not_matter(token_ids, data):
    whole = BYTES.decode(token_ids)
    stops = data.draw(st.lists(st.text("eta", min_size=1, max_size=4), max_size=3))
    by_token, stop, _ = feed(TextUntilStop(detokenizer, strings=stops), token_ids)
    by_byte, same_stop, _ = feed(TextUntilStop(detokenizer, strings=stops), whole.encode())
    assert ("".join(by_token), stop) == ("".join(by_byte), same_stop) == plain_search(whole, stops)


@given(
    st.lists(st.sampled_from([97, 98, 0xE2, 0x82, 0xAC]), max_size=40),
    st.lists(st.lists(st.sampled_from([97, 98, 0xE2, 0x82]), min_size=1, max_size=4).map(tuple), max_size=4),
    st.lists(st.sampled_from([97, 98, 0xE2, 0x82, 0xAC]), max_size=1),
    STRINGS,
)
def test_ids_sequences_and_strings_together(token_ids, sequences, stop_ids, strings):
    text = TextUntilStop(detokenizer, stop_ids, sequences, strings)
    pieces, stop, count = feed(text, token_ids)
    for end in range(1, len(token_ids) + 1):  # plain searches of everything so far, token by token
        by_id = plain_search(tuple(token_ids[:end]), [*sequences, *((token_id,) for token_id in stop_ids)])
        decoder = detokenizer()
        by_text = plain_search("".join(map(decoder.add, token_ids[:end])), strings)
        if by_id[1] is not None:
            kept = bytes(by_id[0]).decode("utf-8", "replace")
            assert stop in (by_id[1], by_id[1][0])
            assert "".join(pieces) == plain_search(kept, strings)[0]
            assert count == end
            return
        if by_text[1] is not None:
            assert ("".join(pieces), stop, count) == (*by_text, end)
            return
    assert stop is None
    assert "".join(pieces) == plain_search(bytes(token_ids).decode("utf-8", "replace"), strings)[0]


@given(st.text(LETTERS, min_size=1), STRINGS)
def test_nothing_is_held_back_that_is_certain(text, stops):
    stop_filter, given_out = StopFilter("", stops), ""
    for index, character in enumerate(text):
        piece, stop = stop_filter.add(character)
        if stop is not None:
            return
        given_out += piece
        held = text[len(given_out) : index + 1]
        assert not held or any(pattern.startswith(held) for pattern in stops)


def test_what_was_held_back_comes_when_it_is_no_stop():
    text = TextUntilStop(detokenizer, strings=["<end>"])
    assert feed(text, b"a<en<ent") == (["a", "", "", "", "<en", "", "", "<ent", ""], None, 8)
    text = TextUntilStop(detokenizer, sequences=[(97, 98, 99)])
    assert feed(text, b"xababd") == (["x", "", "", "ab", "", "abd", ""], None, 6)


def test_the_end_of_a_request_gives_what_was_held_back():
    text = TextUntilStop(detokenizer, sequences=[(97, 98)], strings=["xyz"])
    assert feed(text, b"xya") == (["", "", "", "xya"], None, 3)
    text = TextUntilStop(detokenizer, stop_ids=[0], strings=["xyz"])
    assert feed(text, b"xy\x00") == (["", "", "xy"], 0, 3)


def test_what_stopped_is_named_and_removed():
    stops: dict[str, Any] = {"stop_ids": [0], "sequences": [(97, 98), (120, 0)], "strings": ["no more"]}
    for answer, expected, reason in (
        (b"hi\0", "hi", 0),
        (b"hiab", "hi", (97, 98)),
        (b"hix\0", "hi", (120, 0)),  # the longer of two that end alike
        (b"hi no more", "hi ", "no more"),
    ):
        pieces, stop, count = feed(TextUntilStop(detokenizer, **stops), answer + b"never seen")
        assert ("".join(pieces), stop, count) == (expected, reason, len(answer))


def test_the_first_to_end_wins_and_then_the_longest():
    for stops, expected in (
        (["bcd", "c"], ("ab", "c")),
        (["abc", "c", "bc"], ("", "abc")),
        (["abcde", "cd"], ("ab", "cd")),
    ):
        pieces, stop, _ = feed(TextUntilStop(detokenizer, strings=stops), b"abcdef")
        assert ("".join(pieces), stop) == expected


def test_a_string_inside_ids_that_are_held_back_is_seen_at_once():
    text = TextUntilStop(detokenizer, sequences=[(97, 98, 99)], strings=["b"])
    assert feed(text, b"abc") == (["", "a"], "b", 2)


def test_without_text_only_ids_stop():
    assert feed(TextUntilStop(None, stop_ids=[5], sequences=[(6, 7)]), [6, 6, 7, 8]) == (["", "", ""], (6, 7), 3)


@pytest.mark.parametrize("answer", ["ab" * 100_000, "a" * 200_000])
def test_long_text_is_looked_at_once(answer):
    stops = ["a" * size + "!" for size in range(1, 30)] + ["ab" * 100 + "?"]
    stop_filter, start = StopFilter("", stops), time.perf_counter()
    given_out = sum(len(stop_filter.add(character)[0]) for character in answer)
    assert len(answer) - 256 < given_out + 1
    assert time.perf_counter() - start < 5  # about 0.2 s
