"""Pieces of text as tokens come: whole characters, nothing lost, nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import byte_tokenizer_data  # type: ignore[import-not-found]

from dllama.formats.t_file import TokenizerData
from dllama.text.detokenizer import Detokenizer
from dllama.text.tokenizer import Tokenizer

BYTES = Tokenizer(byte_tokenizer_data())  # ids below 256 are bytes
SPECIAL = [token_id for token_id in range(BYTES.vocab_size) if BYTES.is_special(token_id)]
# Bytes that make characters of every length likely, and broken ones likelier still.
UTF8_LIKE = st.sampled_from([0x41, 0x20, 0x7F, 0x80, 0xA9, 0xBF, 0xC2, 0xC3, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xFF])


def score_tokenizer() -> Tokenizer:
    """Give a Llama 2 vocabulary: unk, bos, eos, 256 bytes, then words with their spaces."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(bytes([byte]) for byte in range(256))]
    pieces += [b" hello", b" world", b" ", b"\xe2\x96\x81marked", b"!", "é".encode()]
    scores = np.array([0] * 259 + list(range(0, -6, -1)), np.float32)
    return Tokenizer(TokenizerData(tuple(pieces), scores, 1, (2,)))


SCORED = score_tokenizer()
HELLO, WORLD, SPACE, MARKED, BANG, E_ACUTE = range(259, 265)


def feed(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [detokenizer.add(token_id) for token_id in token_ids] + [detokenizer.finish()]


@given(st.lists(st.integers(0, 255) | UTF8_LIKE | st.sampled_from(SPECIAL)))
def test_the_pieces_are_the_whole_text(token_ids):
    raw = bytes(token_id for token_id in token_ids if token_id < 256)
    assert "".join(feed(Detokenizer(BYTES), token_ids)) == raw.decode("utf-8", "replace")
    assert BYTES.decode(token_ids) == raw.decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_piece_ends_inside_a_character(text):
    pieces = feed(Detokenizer(BYTES), list(text.encode()))
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)
    assert pieces[-1] == ""


def test_a_character_comes_with_its_last_byte():
    assert feed(Detokenizer(BYTES), list("a€b".encode())) == ["a", "", "", "€", "b", ""]


def test_a_character_cut_short_becomes_one_mark():
    assert feed(Detokenizer(BYTES), [0xE2, 0x82]) == ["", "", "�"]
    assert feed(Detokenizer(BYTES), [0xE2, 0x41]) == ["", "�A", ""]


def test_special_tokens_are_silent_inside_a_character():
    assert feed(Detokenizer(BYTES), [0xC3, BYTES.bos_id, 0xA9, BYTES.eos_ids[0]]) == ["", "", "é", "", ""]


def test_ids_that_only_the_model_has_are_silent():
    assert feed(Detokenizer(BYTES), [BYTES.vocab_size, 65, -1]) == ["", "A", "", ""]


def test_after_the_end_a_new_text_starts():
    detokenizer = Detokenizer(SCORED)
    assert feed(detokenizer, [HELLO, 3 + 0xC3]) == ["hello", "", "�"]
    assert feed(detokenizer, [HELLO, 3 + 0xC3, 3 + 0xA9]) == ["hello", "", "é", ""]


@pytest.mark.parametrize(
    ("token_ids", "at_start", "after_others"),
    [
        ([HELLO, WORLD, BANG], "hello world!", " hello world!"),
        ([1, HELLO, WORLD, 2], "hello world", " hello world"),  # after BOS
        ([SPACE, HELLO], " hello", "  hello"),  # one space is left out, not two
        ([MARKED], "marked", " marked"),
        ([BANG, HELLO], "! hello", "! hello"),
        ([3 + 0x20, HELLO], "  hello", "  hello"),  # a space that is a byte was in the text
        ([0, HELLO], "hello", " hello"),
        ([E_ACUTE, 3 + 0xE2, 3 + 0x82, 3 + 0xAC], "é€", "é€"),
    ],
)
def test_the_space_put_before_a_text_is_left_out(token_ids, at_start, after_others):
    assert "".join(feed(Detokenizer(SCORED), token_ids)) == at_start
    assert "".join(feed(Detokenizer(SCORED, continues=True), token_ids)) == after_others


def test_rank_vocabularies_keep_every_space():
    token_ids = BYTES.encode(" the rain", add_bos=False)
    assert feed(Detokenizer(BYTES), token_ids)[0].startswith(" ")
