"""Tokenizer files that are cut, lie, or are something else: one line each, quickly, and never a crash."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_worlds import (  # type: ignore[import-not-found]
    LLAMA3_SPECIAL,
    cut_by,
    save,
    spm_as_json,
    spm_bytes,
    texts,
    tiktoken_lines,
    train_byte_level,
    with_bos,
)

from dllama.errors import BadFile, DllamaError, UnsupportedModel, UsageError
from dllama.formats.normalizer_growth import check_growth
from dllama.formats.patterns import is_risky
from dllama.formats.spm_model import check_charsmap, read_spm_model
from dllama.text.gguf_export import gguf_metadata
from dllama.text.gguf_vocabulary import gguf_vocabulary
from dllama.text.opening import open_tokenizer
from dllama.text.pre_tokenizers import PRE_TOKENIZERS
from dllama.text.rank_bpe import LLAMA3_PATTERN
from dllama.text.tokenizer import Tokenizer

LIBRARY = with_bos(train_byte_level(cut_by(LLAMA3_PATTERN), LLAMA3_SPECIAL, vocab_size=300), LLAMA3_SPECIAL[0])
BYTE_LEVEL = json.loads(LIBRARY.to_str())
TRIED = [*texts(20, LLAMA3_SPECIAL), "<|eot_id|>", " ", "a" * 300]


def use(path: Path) -> None:
    """Open a tokenizer and do with it all that can be done; only our errors may come of it."""
    try:
        tokenizer = open_tokenizer(path)
        for text in TRIED:
            ids = tokenizer.encode(text, parse_special=True)
            assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
            tokenizer.decode(ids)
        tokenizer.decode(range(-1, min(tokenizer.vocab_size, 400) + 1))
        _ = tokenizer.summary(), tokenizer.special_names, tokenizer.chat_templates
        tokenizer.data  # noqa: B018
        gguf_metadata(tokenizer)
    except DllamaError as error:
        problem = (str(error), error.exit_code)
    else:
        return
    assert "\n" not in problem[0]
    assert len(problem[0]) < 1500
    assert problem[1] in (2, 3)


def changed(**parts: Any) -> bytes:
    return json.dumps(BYTE_LEVEL | parts).encode()


def model(**parts: Any) -> bytes:
    return changed(model=BYTE_LEVEL["model"] | parts)


NESTED: dict[str, Any] = {"type": "NFC"}
for _ in range(120):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}
BROKEN = {
    "empty object": (b"{}", "a model, found none"),
    "not JSON": (b"{nonsense", "expected JSON"),
    "a list": (b'{"model": [1]}', "known form"),
    "deep": (b'{"model": ' + b"[" * 100_000, "JSON"),
    "deep normalizer": (changed()[:-1] + b', "normalizer": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}", "nested"),
    "not UTF-8": (b'{"model": "\xff"}', "JSON in UTF-8|its known form"),
    "WordPiece": (changed(model={"type": "WordPiece", "vocab": {}}), "BPE or Unigram tokenizer, found 'WordPiece'"),
    "normalizer": (changed(normalizer={"type": "Evil"}), "normalizer: expected one of .*found 'Evil'"),
    "no type": (changed(pre_tokenizer={"type": None}), "pre_tokenizer: expected one of"),
    "decoder": (changed(decoder={"type": "CTC"}), "decoder: expected one of .*found 'CTC'"),
    "post-processor": (changed(post_processor={"type": "Odd"}), "post_processor: expected TemplateProcessing"),
    "template": (changed(post_processor={"type": "TemplateProcessing", "single": 3}), "tokens by name and id"),
    "negative id": (model(vocab={"a": -1}), "its known form"),
    "huge id": (model(vocab={"a": 1 << 40}), "its known form"),
    "same id": (model(vocab={"a": 0, "b": 0}), "every id once, found id 0 again"),
    "no pieces": (model(vocab={}), "at least one piece"),
    "empty piece": (model(vocab={"": 0, "a": 1}), "pieces of 1 to 4096 characters"),
    "dropout": (model(dropout=0.5), "always gives the same tokens, found dropout 0.5"),
    "suffix": (model(end_of_word_suffix="</w>"), "BPE of bytes"),
    "merges": (model(merges=["ab"]), "a tokenizer.json that works"),
    "foreign merge": (model(merges=[["zz", "yy"]]), "a tokenizer.json that works"),
    "deep part": (changed(normalizer=NESTED), "at most 32 levels"),
    "members": (b"{" + b":" * ((1 << 22) + 1), "at most 4194304 members"),
    "values": (b"{" + b"," * ((1 << 22) + 1), "at most 4194304 values"),
    "regex": (changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated"}), "works"),
    "added id": (changed(added_tokens=[{"id": 7, "content": "<x>", "special": True}]), "added_tokens: '<x>'.*found 7"),
    "added twice": (changed(added_tokens=BYTE_LEVEL["added_tokens"] * 2), "every id once"),
    "nameless": (changed(added_tokens=[{"id": 300, "content": ""}]), "different names"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_json_ends_in_one_line(tmp_path: Path, name: str) -> None:
    raw, expected = BROKEN[name]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(raw)
    with pytest.raises(BadFile, match=expected) as caught:
        open_tokenizer(path).encode("a text")
    assert "\n" not in str(caught.value)


LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
ABORTING = {
    "table": ({"type": "Precompiled", "precompiled_charsmap": "/////w8AAAA="}, "a table of characters"),
    "growth": ({"type": "Sequence", "normalizers": [LONG] * 5}, "makes a text at most 256 times as long"),
    "prepend": ({"type": "Prepend", "prepend": "a" * 300}, "makes a text at most 256 times as long"),
    "base64": ({"type": "Precompiled", "precompiled_charsmap": "?"}, "a table of characters in base64"),
}
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from dllama.errors import BadFile
from dllama.text.opening import open_tokenizer
try:
    open_tokenizer(sys.argv[1]).encode("a" * 100)
except BadFile as error:
    print(error)
"""


@pytest.mark.parametrize("name", ABORTING)
def test_normalizers_that_want_all_memory_are_refused(tmp_path: Path, name: str) -> None:
    normalizer, expected = ABORTING[name]
    (tmp_path / "tokenizer.json").write_bytes(changed(normalizer=normalizer))
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert expected in run.stdout


EMPTY = {"type": "Replace", "pattern": {"String": ""}, "content": "a"}


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        (
            "decoder",
            {"type": "Sequence", "decoders": [LONG] * 5},
            "decoder: expected one that makes a text at most 256",
        ),
        ("decoder", {**LONG, "content": "a" * 1000}, "decoder: expected one that makes a text at most 256"),
        ("normalizer", EMPTY, "normalizer: expected patterns that match something"),
        ("normalizer", {**EMPTY, "pattern": {"Regex": ""}}, "normalizer: expected patterns that match something"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"}, "match something"),
    ],
)
def test_steps_that_the_library_or_memory_could_not_bear_are_refused(tmp_path, capfd, part, value, expected) -> None:
    (tmp_path / "tokenizer.json").write_bytes(changed(**{part: value}))
    with pytest.raises(BadFile, match=expected):
        open_tokenizer(tmp_path).encode("a text")
    assert capfd.readouterr() == ("", "")  # no panic was printed


def test_normalizers_in_use_are_not_refused() -> None:
    check_growth(
        "x", "normalizer", [{"type": "Prepend", "prepend": "▁"}, {**LONG, "pattern": {"String": " "}, "content": "▁"}]
    )
    check_growth("x", "normalizer", [{"type": "NFKC"}, {**LONG, "pattern": {"Regex": " {2,}"}, "content": "▁"}])


def test_merges_that_make_no_piece_are_refused(tmp_path: Path) -> None:
    top = json.loads(SOUND["sentencepiece.json"])
    top["model"]["merges"].append(["zz", "yy"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(top), "utf-8")
    with pytest.raises(BadFile, match="merges: expected pairs that make a piece, found 'zz' and 'yy'"):
        gguf_metadata(open_tokenizer(tmp_path))


def test_patterns_that_could_take_forever_are_told() -> None:
    for pattern in (
        r"(a+)+b",
        r"(a|aa)+b",
        "((a*))*",
        "(?:x{2,})+",
        "(?i:a|b)*c",
        r"(?<n>\w+)*",
        "(" * 5000,
        "[" * 4000 + "(a+)+",
        "([)]+)+",
        "(a?a?)*b",
        "(a{1,2})*b",
        "(a{1,2}){1,99}b",
        "((ab){1,2}){3}",
        "(a+){2}",
        "a{1,2}*b",
        "(a+)?*b",
    ):
        assert is_risky(pattern), pattern
    for cuts in PRE_TOKENIZERS.values():
        assert not any(map(is_risky, cuts.patterns))
    harmless = ("(a|b)?c+", r"[(a+)+]+", r"\(a+\)+", r"(?i:'s|'t)|\p{L}+", r"(\d{3}){2}", ")+", "(?<n>ab)+")
    for pattern in (r"(?=(\d{3})+(?!\d))", *harmless):
        assert not is_risky(pattern), pattern


def test_a_risky_pattern_is_refused_before_it_is_run(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_bytes(changed(pre_tokenizer=split))
    with pytest.raises(UnsupportedModel, match="patterns that match in one way, found"):
        open_tokenizer(tmp_path)


def test_names_that_text_can_spell_are_refused(tmp_path: Path) -> None:
    vocab = BYTE_LEVEL["model"]["vocab"]
    name = next(piece for piece in vocab if len(piece) == 2 and piece.isascii() and piece.isalpha())
    added = [{"id": vocab[name], "content": name, "special": True}]
    (tmp_path / "tokenizer.json").write_bytes(changed(added_tokens=added, post_processor=None))
    with pytest.raises(BadFile, match="special tokens that no text spells"):
        open_tokenizer(tmp_path).encode("x")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json: expected JSON"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', "ids and names of tokens"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9": {"content": "<n>"}}}', "expected id 300, found 9"),
        ("added_tokens.json", b'{"<n>": 1e99}', "ids and names of tokens"),
        ("generation_config.json", b'"text"', "generation_config.json"),
        ("config.json", b"\0", "config.json: expected JSON"),
        ("chat_template.jinja", b"\xff", "UTF-8 text"),
    ],
)
def test_broken_files_beside_it(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    save(LIBRARY, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=expected):
        open_tokenizer(tmp_path)


def test_odd_values_beside_it_count_as_not_said(tmp_path: Path) -> None:
    config = {"bos_token": 5, "eos_token": {"content": 7}, "chat_template": 3, "add_bos_token": "no", "pad_token": []}
    generation = {
        "eos_token_id": ["x", 10**30, -1, True],
        "temperature": "hot",
        "top_p": 7,
        "top_k": 1e3,
        "min_p": None,
    }
    save(LIBRARY, tmp_path, config, generation_config=generation, config={"eos_token_id": {}, "bos_token_id": 10**9})
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.chat_templates, tokenizer.generation.settings()) == ((), {}, {})


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such tokenizer file"):
        open_tokenizer(tmp_path / "missing.json")
    with pytest.raises(UsageError, match="no tokenizer in this folder"):
        open_tokenizer(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"\x80\x02PK")
    with pytest.raises(BadFile, match=r"expected a tokenizer: .t, tokenizer.json"):
        open_tokenizer(tmp_path / "x.bin")
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 28)
    with pytest.raises(BadFile, match="at most"):
        open_tokenizer(tmp_path)


SOUND = {
    "tokenizer.json": BYTE_LEVEL and LIBRARY.to_str().encode(),
    "sentencepiece.json": with_bos(spm_as_json(spm_bytes("bpe")), "<s>").to_str().encode(),
    "tokenizer.model": spm_bytes("bpe"),
    "tiktoken.model": tiktoken_lines(train_byte_level(cut_by(LLAMA3_PATTERN), (), vocab_size=300)),
}


@pytest.mark.parametrize("name", SOUND)
def test_files_cut_anywhere(tmp_path: Path, name: str) -> None:
    raw, path = SOUND[name], tmp_path / name
    for size in [1, 2, 3, 8, *(len(raw) * part // 24 for part in range(1, 24)), len(raw) - 1]:
        path.write_bytes(raw[:size])
        use(path)


@pytest.mark.parametrize(
    "changes", [{"type": ["Prepend"]}, {"normalizers": [{"type": "Prepend", "prepend": "▁"}, [[]]]}]
)
def test_parts_that_are_no_objects_or_of_no_kind(tmp_path: Path, changes: dict[str, Any]) -> None:
    top = json.loads(SOUND["sentencepiece.json"])
    top["normalizer"] |= changes
    (tmp_path / "a.json").write_text(json.dumps(top))
    use(tmp_path / "a.json")


def test_ids_with_a_large_hole_take_little_memory(tmp_path: Path) -> None:
    vocab = BYTE_LEVEL["model"]["vocab"]
    (tmp_path / "a.json").write_bytes(model(vocab=vocab | {max(vocab, key=vocab.get): (1 << 20) - 1}))
    tokenizer = open_tokenizer(tmp_path / "a.json")
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedModel):
            tokenizer.data  # noqa: B018
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 34) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_PLACES = [
    ("model", "vocab"),
    ("model", "merges"),
    ("model", "type"),
    ("model", "unk_token"),
    ("model", "byte_fallback"),
    ("model", "ignore_merges"),
    ("added_tokens",),
    ("normalizer",),
    ("pre_tokenizer",),
    ("pre_tokenizer", "pretokenizers"),
    ("post_processor",),
    ("post_processor", "single"),
    ("post_processor", "special_tokens"),
    ("decoder",),
]


@given(place=st.sampled_from(_PLACES), value=_JSON)
@settings(max_examples=150)
def test_any_value_in_any_place(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], value: object
) -> None:
    top = json.loads(json.dumps(BYTE_LEVEL))
    inside = top
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(top), "utf-8")
    use(path)


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return (
            bytes([number << 3 & 0x7F | 0, content])
            if number < 16
            else bytes([number << 3 & 0x7F | 0x80, 1 + 0, content])
        )
    return bytes([number << 3 | 2]) + struct.pack("B", len(content)) + content


def piece(text: bytes, kind: int = 1, score: float = 0.0) -> bytes:
    return field(1, field(1, text) + struct.pack("<Bf", 2 << 3 | 5, score) + field(3, kind))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (piece(b"\xff"), "piece 0: expected UTF-8"),
        (piece(b"a", 9), "kind from 1 to 6|of a kind"),
        (piece(b"a", 1, float("nan")), "finite score"),
        (piece(b""), "a text with a finite score"),
        (piece(b"a"), "exactly one token for what is unknown, found 0"),
        (piece(b"<unk>", 2) * 2, "exactly one token for what is unknown, found 2"),
        (piece(b"<unk>", 2) + piece(b"a") * 2, "different pieces"),
        (piece(b"<unk>", 2) + piece(b"zz", 6), "a byte, <0x00> to <0xFF>"),
        (piece(b"<unk>", 2) + piece(b"<0x00>", 6), "a token for each byte, or for none"),
        (piece(b"<unk>", 2) + field(2, field(3, 3)), "kind BPE or unigram"),
        (piece(b"<unk>", 2)[:-1], "before its end"),
        (b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "a number of at most ten bytes"),
        (piece(b"<unk>", 2) + b"\x0b", "wire type 3"),
    ],
)
def test_a_broken_sentencepiece_model_ends_in_one_line(tmp_path: Path, raw: bytes, expected: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(BadFile, match=expected):
        open_tokenizer(tmp_path)


def test_tables_of_characters_are_checked(tmp_path: Path) -> None:
    raw = spm_bytes("unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, byte_fallback=False)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    table = read_spm_model(tmp_path / "tokenizer.model").charsmap
    check_charsmap("x", table)
    size = int.from_bytes(table[:4], "little")
    units = np.frombuffer(table, np.uint32, size // 4, 4)
    for changed in (
        table[:-1] + b"x",
        table[: len(table) // 2],
        struct.pack("<I", size + 4096) + table[4:],
        table[:4] + (units | np.uint32(0x7FFFFC00)).tobytes() + table[4 + size :],
        table[:4] + units.tobytes()[:-1024] + table[4 + size :],
        table + b"x" * 65 + b"\0",
    ):
        with pytest.raises(BadFile, match=r"a table of characters|64 bytes for a character"):
            check_charsmap("x", changed)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "rwkv"}, "gpt2, llama or t5, found 'rwkv'"),
        ({"model": None}, "expected a tokenizer, found none"),
        (
            {"pre": "unheard-of"},
            r"pre: expected one of default, .*found 'unheard-of'; use the model's own tokenizer.json",
        ),
        ({"pre": 5}, "pre: expected str, found int"),
        ({"tokens": None}, "tokens: expected a list"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "different tokens"),
        ({"tokens": [1, 2], "token_type": [1, 1]}, "texts in UTF-8"),
        ({"tokens": ["\udcff"], "token_type": [1]}, "texts in UTF-8"),
        ({"token_type": [1]}, "numbers, found shape"),
        ({"bos_token_id": 1 << 30}, "bos_token_id: expected 0 to"),
        ({"eos_token_id": -5}, "eos_token_id: expected 0 to"),
        ({"add_bos_token": 1}, "add_bos_token: expected bool"),
        ({"merges": 3}, "merges: expected a list"),
    ],
)
def test_metadata_that_lies(changes: dict[str, object], expected: str) -> None:
    metadata = gguf_metadata(open_data()) | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(BadFile, match=expected):
        gguf_vocabulary("a.gguf", {name: value for name, value in metadata.items() if value is not None})


def open_data() -> Tokenizer:
    from chat_vocabularies import rank_vocabulary  # type: ignore[import-not-found]

    return rank_vocabulary("<|begin_of_text|>", "<|end_of_text|>")


def test_an_empty_name_in_gguf_is_no_name() -> None:
    metadata = gguf_metadata(open_data())
    metadata["tokenizer.ggml.tokens"][256] = ""
    tokenizer = Tokenizer(gguf_vocabulary("a.gguf", metadata))
    assert tokenizer.encode("ab", add_bos=False) == [97, 98]


def test_what_a_t_file_cannot_hold_is_said(tmp_path: Path) -> None:
    library = train_byte_level(cut_by(r"\p{N}", " ?[^ 0-9]+"), LLAMA3_SPECIAL, vocab_size=300)
    tokenizer = open_tokenizer(save(library, tmp_path, {"bos_token": LLAMA3_SPECIAL[0]}))
    with pytest.raises(UnsupportedModel, match="cuts text in another way than Llama 3 and Qwen; use the file itself"):
        tokenizer.data  # noqa: B018
