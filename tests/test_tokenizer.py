"""Encoding against references: a naive rank merge written here, and sentencepiece's own models trained here."""

from __future__ import annotations

import io
import random
import time
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import regex  # type: ignore[import-untyped]  # tiktoken brings it
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from model_files import byte_tokenizer_data, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.errors import BadFile
from dllama.formats.t_file import TokenizerData, write_t_file
from dllama.text import rank_bpe
from dllama.text.tokenizer import Tokenizer

LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN3 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
SAMPLE = (
    "The cat sat on the mat, and the dog didn't. In 2024 there were 1234 cats and 56789 dogs; they're all here.\n\n"
    "  It's raining again: über allen Gipfeln ist Ruh'. I'll be there at 12:30, we've 100 reasons!\r\n\tdef f(x): x\n"
) * 3
TEXTS = st.text(
    st.sampled_from("aehtsT 's.,!?\n\r\t0123456789éüßñ€中文\u0301🙂") | st.characters(exclude_categories=["Cs"])
)
SENTENCES = st.lists(st.sampled_from(SAMPLE.split(" ")), max_size=12).map(" ".join)
# A pattern stands for a vocabulary: what it may join. These follow from its alternatives, by hand.
SPLITS = [
    ("The cat's 12345", ["The", " cat", "'s", " ", "123", "45"], ["The", " cat", "'s", " ", "1", "2", "3", "4", "5"]),
    ("a  b   ", ["a", " ", " b", "   "], None),
    ("I'LL we'Ve 'x", ["I", "'LL", " we", "'Ve", " '", "x"], None),
    ("x\n\n y", ["x", "\n\n", " y"], None),
    ("  \n  z", ["  \n", " ", " z"], None),
    ("(foo) ...!\n\nbar", ["(foo", ")", " ...!\n\n", "bar"], None),
    ("ab-cd_ef", ["ab", "-cd", "_ef"], None),
    ("x²³1½", ["x", "²³1", "½"], ["x", "²", "³", "1", "½"]),
]


def pattern(digits: str) -> regex.Pattern[str]:
    return regex.compile(rank_bpe._PATTERN.format(digits=digits))


def train_ranks(text: str, num_merges: int, digits: str) -> list[bytes]:
    """Train a byte-level BPE: again and again the most frequent pair becomes a piece."""
    words = Counter(tuple(bytes([byte]) for byte in word.encode()) for word in pattern(digits).findall(text))
    pieces = [bytes([byte]) for byte in range(256)]
    for _ in range(num_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        (left, right), _count = pairs.most_common(1)[0]
        pieces.append(left + right)
        words = Counter({merge(word, left, right): count for word, count in words.items()})
    return list(dict.fromkeys(pieces))


def merge(word: tuple[bytes, ...], left: bytes, right: bytes) -> tuple[bytes, ...]:
    merged: list[bytes] = []
    for piece in word:
        if merged and merged[-1] == left and piece == right:
            merged[-1] = left + right
        else:
            merged.append(piece)
    return tuple(merged)


def naive_encode(pieces: list[bytes], digits: str, text: str) -> list[int]:
    """Join the neighbours of lowest rank, the first of them on a tie, until none can be joined."""
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    ids = []
    for word in pattern(digits).findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            joined = [(ranks[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
            if not joined:
                break
            _, at = min(joined)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def rank_data(pieces: list[bytes], special: tuple[str, ...]) -> TokenizerData:
    everything = (*pieces, *(name.encode() for name in special))
    scores = -np.arange(len(everything), dtype=np.float32)
    return TokenizerData(everything, scores, len(pieces), (len(pieces) + 1,), special is LLAMA3)


LLAMA3_PIECES = train_ranks(SAMPLE, 150, "{1,3}")
QWEN3_PIECES = train_ranks(SAMPLE, 150, "")
LLAMA3_TOKENIZER = Tokenizer(rank_data(LLAMA3_PIECES, LLAMA3))
QWEN3_TOKENIZER = Tokenizer(rank_data(QWEN3_PIECES, QWEN3))


# ---- rank vocabularies ----


@given(TEXTS | SENTENCES)
def test_ranks_are_merged_as_the_naive_reference_merges(text):
    assert LLAMA3_TOKENIZER.encode(text, add_bos=False) == naive_encode(LLAMA3_PIECES, "{1,3}", text)
    assert LLAMA3_TOKENIZER.decode(LLAMA3_TOKENIZER.encode(text)) == text


@given(TEXTS | SENTENCES)
def test_qwen_composes_accents_first(text):
    composed = unicodedata.normalize("NFC", text)
    assert QWEN3_TOKENIZER.encode(text) == naive_encode(QWEN3_PIECES, "", composed)
    assert QWEN3_TOKENIZER.decode(QWEN3_TOKENIZER.encode(text)) == composed


def test_an_accent_that_comes_apart_is_put_together_for_qwen_alone():
    assert QWEN3_TOKENIZER.decode(QWEN3_TOKENIZER.encode("e\u0301")) == "\xe9"
    assert LLAMA3_TOKENIZER.decode(LLAMA3_TOKENIZER.encode("e\u0301")) == "e\u0301"


@pytest.mark.parametrize(("text", "llama3", "qwen3"), SPLITS)
def test_texts_are_cut_as_the_vocabulary_was_trained(text, llama3, qwen3):
    # With every word a piece, encoding shows the cuts.
    for names, expected in ((LLAMA3, llama3), (QWEN3, qwen3 or llama3)):
        words = [word.encode() for word in dict.fromkeys(expected) if len(word.encode()) > 1]
        whole = [text.encode()] if text.encode() not in words else []
        tokenizer = Tokenizer(rank_data([bytes([b]) for b in range(256)] + words + whole, names))
        ids = tokenizer.encode(text, add_bos=False)
        assert [tokenizer.token_bytes(token_id).decode() for token_id in ids] == expected


@pytest.mark.parametrize(
    ("pieces", "names", "qwen"),
    [
        ([b"1", b"12"], LLAMA3, False),
        ([b"1"], LLAMA3, False),
        ([b"1", b"12"], QWEN3, True),
        ([b"1", b"12"], ("<bos>",), False),
        ([b"1", b"ab"], ("<bos>",), True),
        ([b"x"] * 128000, ("<\uff5cbegin▁of▁sentence\uff5c>", "<\uff5cUser\uff5c>"), False),
    ],
)
def test_whose_vocabulary_it_is(pieces, names, qwen):
    assert rank_bpe.is_qwen(pieces, [name.encode() for name in names]) is qwen


def test_bos_is_added_as_the_model_wants():
    bos = LLAMA3_TOKENIZER.bos_id
    assert LLAMA3_TOKENIZER.encode("a") == [bos, 97]
    assert LLAMA3_TOKENIZER.encode("", add_bos=True) == [bos]
    assert LLAMA3_TOKENIZER.encode("a", add_bos=False) == [97]
    assert QWEN3_TOKENIZER.encode("a") == [97]
    assert QWEN3_TOKENIZER.encode("a", add_bos=True) == [QWEN3_TOKENIZER.bos_id, 97]


def test_names_of_special_tokens_are_text_unless_asked():
    text = "a<|eot_id|><|start_header_id|>b<|eot_"
    eot, start = LLAMA3_TOKENIZER.bos_id + 4, LLAMA3_TOKENIZER.bos_id + 2
    plain = LLAMA3_TOKENIZER.encode(text, add_bos=False)
    assert max(plain) < LLAMA3_TOKENIZER.bos_id
    assert LLAMA3_TOKENIZER.decode(plain) == text
    parsed = LLAMA3_TOKENIZER.encode(text, add_bos=False, parse_special=True)
    assert parsed == [97, eot, start, 98, *LLAMA3_TOKENIZER.encode("<|eot_", add_bos=False)]


def test_the_longest_special_name_wins():
    tokenizer = Tokenizer(rank_data(LLAMA3_PIECES, ("<|a|>", "<|a|>b", "<|a|>bc")))
    base = tokenizer.bos_id
    ids = tokenizer.encode("<|a|>bc<|a|>bd", add_bos=False, parse_special=True)
    assert ids == [base + 2, base + 1, 100]


def test_special_tokens_print_nothing_but_thinking_marks_do():
    base = QWEN3_TOKENIZER.bos_id
    assert [QWEN3_TOKENIZER.is_special(base + step) for step in range(5)] == [True, True, True, False, False]
    assert QWEN3_TOKENIZER.decode([base + 1, 97, base + 3, 98, base + 4, base]) == "a<think>b</think>"
    assert QWEN3_TOKENIZER.encode("<think>", parse_special=True) == [base + 3]
    assert max(QWEN3_TOKENIZER.encode("<think>")) < base
    assert QWEN3_TOKENIZER.piece(base + 1) == b"<|im_start|>"


def test_special_tokens_may_stand_before_bos():
    """As in DeepSeek-R1-Distill-Qwen, whose BOS is the fourth of them."""
    data = replace(rank_data(QWEN3_PIECES, QWEN3[:3]), bos_id=len(QWEN3_PIECES) + 2)
    tokenizer = Tokenizer(data)
    assert tokenizer.is_special(len(QWEN3_PIECES))
    assert tokenizer.encode("<|im_start|>", add_bos=False, parse_special=True) == [len(QWEN3_PIECES) + 1]
    assert max(tokenizer.encode("<|im_start|>", add_bos=False)) < len(QWEN3_PIECES)


def test_lone_surrogates_become_marks():
    assert LLAMA3_TOKENIZER.decode(LLAMA3_TOKENIZER.encode("a\ud800b")) == "a\ufffdb"
    assert LLAMA3_TOKENIZER.decode(LLAMA3_TOKENIZER.encode("\ud83d\ude42")) == "🙂"


@pytest.mark.parametrize("text", [" ", "a", "ab", "\n", "1", "!", " \n", "é", "<|", "'s"])
def test_long_repetitions_take_no_long_time(text):
    start = time.perf_counter()
    for parse_special in (False, True):
        ids = LLAMA3_TOKENIZER.encode(text * 100_000, add_bos=False, parse_special=parse_special)
    assert time.perf_counter() - start < 5
    assert LLAMA3_TOKENIZER.decode(ids) == text * 100_000


def test_endless_spaces_do_not_exhaust_the_stack():
    text = "a" + " " * 1_200_000 + "b"  # tiktoken alone panics on a million
    assert LLAMA3_TOKENIZER.decode(LLAMA3_TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (LLAMA3_PIECES[1:], "a piece for every single byte, found none for 1, the first of them 0x00"),
        ([*LLAMA3_PIECES, b"a"], "different pieces, found 1 that are there before"),
    ],
)
def test_rank_vocabularies_that_cannot_encode_are_refused(tmp_path, pieces, text):
    write_t_file(tmp_path / "a.t", rank_data(pieces, LLAMA3))
    with pytest.raises(BadFile, match=f"a.t: vocabulary: expected {text}"):
        Tokenizer.from_file(tmp_path / "a.t")


def test_a_vocabulary_of_neither_kind_is_refused():
    data = byte_tokenizer_data()
    with pytest.raises(BadFile, match="scores of minus the id, or 256 byte tokens in a row"):
        Tokenizer(replace(data, pieces=(b"x", *data.pieces[1:]), scores=-data.scores))


def test_a_tokenizer_comes_from_a_file(tmp_path):
    data = write_tiny_tokenizer(tmp_path / "a.t")
    tokenizer = Tokenizer.from_file(tmp_path / "a.t")
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (data.vocab_size, data.eos_ids)
    assert tokenizer.summary() == {
        "AddBos": "1",
        "BosId": "312 (<|begin_of_text|>)",
        "EosId": "313 (<|end_of_text|>) 316 (<|eot_id|>)",
        "RegularVocabSize": "312",
        "SpecialVocabSize": "8",
    }


# ---- score vocabularies ----


def train_sentencepiece(model_type: str) -> sentencepiece.SentencePieceProcessor:
    words = [word for word in SAMPLE.split() if word]
    rng, model = random.Random(1), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(rng.choices(words, k=9)) for _ in range(300)),
        model_writer=model,
        model_type=model_type,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def score_data(model: sentencepiece.SentencePieceProcessor, raw: bool = True) -> TokenizerData:
    """Give what a converter takes from a SentencePiece model: pieces and scores, bytes raw or by name."""
    pieces = [model.id_to_piece(token_id) for token_id in range(model.vocab_size())]
    stored = [piece.replace("▁", " " if raw else "▁").encode() for piece in pieces]
    if raw:
        stored[3:259] = [bytes([byte]) for byte in range(256)]
    scores = [model.get_score(token_id) for token_id in range(len(pieces))]
    return TokenizerData(tuple(stored), np.array(scores, np.float32), 1, (2,))


MODELS = {model_type: train_sentencepiece(model_type) for model_type in ("bpe", "unigram")}
SCORED = {
    (model_type, raw): Tokenizer(score_data(model, raw))
    for model_type, model in MODELS.items()
    for raw in (True, False)
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@given(text=TEXTS | SENTENCES)
def test_scores_are_merged_as_sentencepiece_merges(model_type, raw, text):
    model, tokenizer = MODELS[model_type], SCORED[model_type, raw]
    ids = model.encode(text)
    assert tokenizer.encode(text) == [1, *ids]
    assert tokenizer.decode([1, *ids, 2]) == model.decode(ids)


@given(ids=st.lists(st.integers(3, 399)))
def test_any_scored_ids_decode_as_in_sentencepiece(ids):
    model, tokenizer = MODELS["bpe"], SCORED["bpe", True]
    ids = [token_id for token_id in ids if token_id < model.vocab_size()]
    text = tokenizer.decode(ids)
    # sentencepiece marks every byte that is no UTF-8, we every sequence of them, as Python does.
    assert text.replace("\ufffd", "") == model.decode(ids).replace("\ufffd", "")


def test_special_names_in_scored_text():
    tokenizer = SCORED["bpe", True]
    assert not set(tokenizer.encode("<s>the</s><unk><special 1>", add_bos=False)) & {0, 1, 2}
    the = tokenizer.encode("the", add_bos=False)
    assert tokenizer.encode("<s>the</s>the", add_bos=False, parse_special=True) == [1, *the, 2, *the]
    assert tokenizer.decode([1, *the, 0, 2]) == "the"


def test_names_with_line_ends_around_them():
    """As one converter writes them."""
    data = score_data(MODELS["bpe"])
    named = Tokenizer(replace(data, pieces=(b"<unk>", b"\n<s>\n", b"\n</s>\n", *data.pieces[3:])))
    assert named.encode("<s>", add_bos=False, parse_special=True) == [1]


def test_tokens_before_the_bytes_are_special():
    """As in Mistral v0.3, whose bytes come after its control tokens."""
    data = score_data(MODELS["bpe"])
    pieces = (*data.pieces[:3], b"[INST]", b"[/INST]", *data.pieces[3:])
    scores = np.concatenate([data.scores[:3], [0, 0], data.scores[3:]]).astype(np.float32)
    tokenizer = Tokenizer(replace(data, pieces=pieces, scores=scores))
    plain = MODELS["bpe"].encode("the mat")
    ids = tokenizer.encode("[INST]the mat[/INST]", add_bos=False, parse_special=True)
    assert ids == [3, *(token_id + 2 for token_id in plain), 4]
    assert tokenizer.decode(ids) == "the mat"


@pytest.mark.parametrize("text", [" ", "a", "ab ", "€"])
def test_long_scored_repetitions_take_no_long_time(text):
    start = time.perf_counter()
    ids = SCORED["bpe", True].encode(text * 100_000)
    assert time.perf_counter() - start < 5
    assert SCORED["bpe", True].decode(ids) == text * 100_000


@pytest.mark.parametrize(
    ("extra", "text"),
    [(b"\xff\xfe", "pieces in UTF-8, found .* as token"), (b" the", "different pieces, found b' the' as tokens")],
)
def test_score_vocabularies_that_cannot_encode_are_refused(extra, text):
    data = score_data(MODELS["bpe"])
    scores = np.append(data.scores, np.float32(-400))
    with pytest.raises(BadFile, match=text):
        Tokenizer(replace(data, pieces=(*data.pieces, extra), scores=scores))


@given(
    extra=st.lists(
        st.tuples(st.binary(min_size=1, max_size=6), st.floats(-(2.0**100), 2.0**100, width=32)), max_size=8
    ),
    special=st.integers(0, 4),
    text=TEXTS,
)
def test_strange_vocabularies_encode_or_are_refused(extra, special, text):
    pieces = [b"<x%d>" % number for number in range(special)] + [bytes([byte]) for byte in range(256)]
    pieces += [piece for piece, _ in extra]
    scores = np.array([0.0] * (256 + special) + [score for _, score in extra], np.float32)
    try:
        tokenizer = Tokenizer(TokenizerData(tuple(pieces), scores, min(1, special), ()))
        assert all(0 <= token_id < len(pieces) for token_id in tokenizer.encode(text, parse_special=True))
    except BadFile:
        pass
