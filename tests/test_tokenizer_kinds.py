"""Every kind of tokenizer file against the library that defines it, on thousands of texts each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from tokenizer_worlds import (  # type: ignore[import-not-found]
    LLAMA3_SPECIAL,
    QWEN_SPECIAL,
    cut_by,
    save,
    spm_as_json,
    spm_bytes,
    texts,
    tiktoken_lines,
    train_byte_level,
    with_bos,
)
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from dllama.formats.spm_model import UNUSED
from dllama.formats.t_file import write_t_file
from dllama.text.gguf_export import gguf_metadata
from dllama.text.gguf_vocabulary import gguf_vocabulary
from dllama.text.llama3 import special_tokens
from dllama.text.opening import open_tokenizer
from dllama.text.pre_tokenizers import PRE_TOKENIZERS
from dllama.text.rank_bpe import LLAMA3_PATTERN, QWEN_PATTERN
from dllama.text.tokenizer import Tokenizer

COUNT = 10_000
# One name of each different way to cut text.
WAYS = {cuts.patterns: name for name, cuts in reversed(PRE_TOKENIZERS.items())}


def agree(tokenizer: Tokenizer, library: Library, names: Sequence[str], count: int = COUNT, seed: int = 1) -> None:
    """Compare ids with and without special tokens, and what they say."""
    tried = texts(count, names, seed)
    for text, expected in zip(tried, library.encode_batch(tried, add_special_tokens=False), strict=True):
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == expected.ids, text
    library.encode_special_tokens = True
    some = tried[: count // 4]
    for text, expected in zip(some, library.encode_batch(some), strict=True):
        ids = tokenizer.encode(text)
        assert ids == expected.ids, text
        said = library.decode(ids)
        assert tokenizer.decode(ids).replace("\ufffd", "") == said.replace("\ufffd", ""), text
    library.encode_special_tokens = False


def via_gguf(tokenizer: Tokenizer) -> Tokenizer:
    """Write a tokenizer as metadata of a GGUF file, and read it from there."""
    return Tokenizer(gguf_vocabulary("a.gguf", gguf_metadata(tokenizer)))


@pytest.mark.parametrize("name", WAYS.values())
def test_byte_level_vocabularies_equal_the_library(tmp_path: Path, name: str) -> None:
    cuts = PRE_TOKENIZERS[name]
    library = train_byte_level(cut_by(*cuts.patterns), LLAMA3_SPECIAL, cuts.composes)
    with_bos(library, LLAMA3_SPECIAL[0])
    tokenizer = open_tokenizer(save(library, tmp_path))
    assert tokenizer.vocab_size >= 2000
    assert tokenizer.add_bos
    agree(tokenizer, library, LLAMA3_SPECIAL)
    again = via_gguf(tokenizer)
    for text in texts(1000, LLAMA3_SPECIAL, seed=2):
        assert again.encode(text, False, True) == tokenizer.encode(text, False, True), text


@pytest.mark.parametrize(
    ("pre_tokenizer", "first"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), True),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            True,
        ),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), False),
    ],
    ids=["gpt2", "smollm", "prefix"],
)
def test_byte_level_vocabularies_of_the_library_itself(
    tmp_path: Path, pre_tokenizer: pre_tokenizers.PreTokenizer, first: bool
) -> None:
    library = train_byte_level(pre_tokenizer, QWEN_SPECIAL, first=first)
    tokenizer = open_tokenizer(save(library, tmp_path))
    agree(tokenizer, library, QWEN_SPECIAL)
    if first:
        again = via_gguf(tokenizer)
        for text in texts(1000, QWEN_SPECIAL, seed=2):
            assert again.encode(text, False, True) == tokenizer.encode(text, False, True), text


@pytest.mark.parametrize("prefix", ["always", "first", None])
def test_sentencepiece_as_json_equals_the_library(tmp_path: Path, prefix: str | None) -> None:
    defined = {} if prefix else {"user_defined_symbols": "<start_of_turn>,\n\n,▁▁,▁▁▁,<h1>"}
    library = spm_as_json(spm_bytes("bpe", **defined), prefix, gemma=bool(defined))
    tokenizer = open_tokenizer(save(with_bos(library, "<s>"), tmp_path))
    names = ["<s>", "</s>", "<unk>"]
    agree(tokenizer, library, names)
    if prefix is None:
        assert "<start_of_turn>" in tokenizer.special_names
        assert not {"<h1>", "\n\n"} & set(tokenizer.special_names)
    if prefix != "first":
        again = via_gguf(tokenizer)
        for text in texts(1000, seed=2):
            assert again.encode(text, False) == tokenizer.encode(text, False), text


def test_unigram_equals_the_library(tmp_path: Path) -> None:
    library = Library(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    from tokenizer_worlds import corpus

    library.train_from_iterator(corpus(), trainer)
    tokenizer = open_tokenizer(save(library, tmp_path))
    tried = texts(COUNT, ["</s>", "<pad>"])
    for text, expected in zip(tried, library.encode_batch(tried, add_special_tokens=False), strict=True):
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == expected.ids, text
    assert max(tokenizer.encode("a</s>b")) > 2
    assert 1 not in tokenizer.encode("a</s>b")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_sentencepiece_models_equal_the_library(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes(model_type))
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm_bytes(model_type))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (processor.vocab_size(), 1, (2,))
    write_t_file(tmp_path / "a.t", tokenizer.data)
    stored, again = open_tokenizer(tmp_path / "a.t"), via_gguf(tokenizer)
    for text in texts(COUNT):
        ids = processor.encode(text)
        assert tokenizer.encode(text) == [1, *ids], text
        assert tokenizer.decode([1, *ids]).replace("\ufffd", "") == processor.decode(ids).replace("\ufffd", ""), text
        assert stored.encode(text) == [1, *ids], text
        assert again.encode(text) == [1, *ids], text


def test_sentencepiece_models_that_change_text(tmp_path: Path) -> None:
    raw = spm_bytes("unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, byte_fallback=False)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
    tokenizer = open_tokenizer(tmp_path / "tokenizer.model")
    again = via_gguf(tokenizer)
    for text in texts(COUNT):
        ids = processor.encode(text)
        assert tokenizer.encode(text, add_bos=False) == ids, text
        assert again.encode(text, add_bos=False) == ids, text


def test_unused_tokens_have_no_text_in_gguf(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes("bpe"))
    tokenizer = open_tokenizer(tmp_path)
    metadata = gguf_metadata(tokenizer)
    for name, value in (("tokens", "[PAD]"), ("token_type", UNUSED), ("scores", -1e4)):
        metadata[f"tokenizer.ggml.{name}"].append(value)
    again = Tokenizer(gguf_vocabulary("a.gguf", metadata))
    ids = tokenizer.encode("a text")
    assert again.decode([*ids, tokenizer.vocab_size]) == "a text"


def test_tiktoken_files_equal_tiktoken(tmp_path: Path) -> None:
    library = train_byte_level(cut_by(LLAMA3_PATTERN), ())
    raw = tiktoken_lines(library)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    ranks = {piece: rank for rank, piece in enumerate(library_pieces(tmp_path))}
    names = special_tokens()
    special = {name: len(ranks) + place for place, name in enumerate(names)}
    encoding = tiktoken.Encoding("x", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.bos_id == len(ranks)
    assert [tokenizer.piece(token_id) for token_id in tokenizer.eos_ids] == [b"<|end_of_text|>", b"<|eot_id|>"]
    for text in texts(COUNT, names[:12]):
        assert tokenizer.encode(text, False, True) == encoding.encode(text, allowed_special="all"), text
        assert tokenizer.encode(text, False) == encoding.encode(text, disallowed_special=()), text


def library_pieces(folder: Path) -> list[bytes]:
    from dllama.formats.tiktoken_file import read_tiktoken

    return read_tiktoken(folder / "tokenizer.model")


@pytest.mark.parametrize(("pattern", "special"), [(LLAMA3_PATTERN, LLAMA3_SPECIAL), (QWEN_PATTERN, QWEN_SPECIAL)])
def test_t_files_give_the_ids_of_the_tokenizer_json(tmp_path: Path, pattern: str, special: Sequence[str]) -> None:
    library = train_byte_level(cut_by(pattern), special, composes=pattern == QWEN_PATTERN)
    config = {"bos_token": special[0], "eos_token": special[1], "chat_template": "{{ messages }}"}
    tokenizer = open_tokenizer(save(library, tmp_path, config))
    write_t_file(tmp_path / "a.t", tokenizer.data)
    stored = open_tokenizer(tmp_path / "a.t")
    assert (stored.bos_id, stored.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids)
    assert (stored.add_bos, stored.chat_templates) == (tokenizer.add_bos, {"default": "{{ messages }}"})
    again = via_gguf(stored)
    for text in texts(COUNT, special):
        for parse_special in (False, True):
            expected = tokenizer.encode(text, None, parse_special)
            assert stored.encode(text, None, parse_special) == expected, text
            assert again.encode(text, None, parse_special) == expected, text


def test_llama_2_as_json_makes_a_t_file(tmp_path: Path) -> None:
    library = with_bos(spm_as_json(spm_bytes("bpe")), "<s>")
    tokenizer = open_tokenizer(save(library, tmp_path, {"bos_token": "<s>", "eos_token": "</s>"}))
    write_t_file(tmp_path / "a.t", tokenizer.data)
    stored = open_tokenizer(tmp_path / "a.t")
    for text in texts(COUNT, ["<s>", "</s>"]):
        assert stored.encode(text) == tokenizer.encode(text), text


def test_added_tokens_take_spaces_and_stand_alone(tmp_path: Path) -> None:
    library = train_byte_level(cut_by(QWEN_PATTERN), QWEN_SPECIAL)
    library.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|mask|>", lstrip=True)])
    library.add_tokens([AddedToken("<think>", normalized=False), AddedToken("|||IP|||", normalized=False)])
    library.add_special_tokens([AddedToken("word", single_word=True)])
    tokenizer = open_tokenizer(save(library, tmp_path))
    names = ["<|end|>", "<|mask|>", "word", " word ", "<think>"]
    tried = texts(COUNT, names)
    for text, expected in zip(tried, library.encode_batch(tried), strict=True):
        assert tokenizer.encode(text, parse_special=True) == expected.ids, text
    assert "<think>" in tokenizer.special_names
    assert "|||IP|||" not in tokenizer.special_names
    think = library.token_to_id("<think>")
    assert not tokenizer.is_special(think)
    assert think not in tokenizer.encode("<think>")
    assert library.token_to_id("|||IP|||") in tokenizer.encode("a|||IP|||b")
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["added_tokens"]
