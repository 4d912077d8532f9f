"""Tokenizers of every kind, and what is done with each: part of ``fuzz_readers.py``."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing import Target, changed_bytes, changed_json, check_refusal  # type: ignore[import-not-found]
from model_files import byte_tokenizer_data  # type: ignore[import-not-found]
from tokenizer_worlds import LLAMA3_SPECIAL, cut_by, train_byte_level, with_bos  # type: ignore[import-not-found]

from dllama.errors import BadFile, UnsupportedModel, UsageError
from dllama.formats.gguf_writer import write_container
from dllama.formats.spm_model import BYTE, CONTROL, NORMAL, UNKNOWN, SpmModel, build_spm_model
from dllama.formats.t_file import TokenizerData, write_t_file
from dllama.text.gguf_export import gguf_metadata
from dllama.text.opening import open_tokenizer
from dllama.text.rank_bpe import LLAMA3_PATTERN

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", "t", "h", "e", "th", "the", "▁the", "中"]
TEXTS = ("", "the  Tree's 12345 x\n\n y", "<|eot_id|><s>▁", "é中🙂\u0301", "a" * 300)


def gguf_vocabulary() -> Target:
    sound = []
    for name, raw in (("a.json", _byte_level()), ("a.model", _spm(False)), ("b.model", _spm(True))):
        Path(name).write_bytes(raw)
        write_container("a.gguf", gguf_metadata(open_tokenizer(name)), [])
        sound.append(Path("a.gguf").read_bytes())
    return _tokenizers("a.gguf", sound, changed_bytes)


def t_file() -> Target:
    sound = []
    scored = TokenizerData(
        tuple(piece.encode() for piece in PIECES), -np.arange(len(PIECES), dtype=np.float32), 1, (2,)
    )
    for each in (byte_tokenizer_data(264, "{{ messages }}"), scored):
        write_t_file("a.t", each)
        sound.append(Path("a.t").read_bytes())
    return _tokenizers("a.t", sound, lambda raw, rng: changed_bytes(raw, rng, rng.choice((120, None))))


def tokenizer_json() -> Target:
    sound = [_byte_level(), json.dumps(_pairs()).encode(), json.dumps(_unigram()).encode()]
    return _tokenizers("tokenizer.json", sound, changed_json)


def beside_a_tokenizer() -> Target:
    """The other files of a folder; each begins here with its name in a line."""
    Path("tokenizer.json").write_text(json.dumps(_pairs()))
    token = {"content": "<t>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizerFast",
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": True,
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "added_tokens_decoder": {"265": token},
            "chat_template": [{"name": "default", "template": "{{ bos_token }}"}],
        },
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}},
        "added_tokens.json": {"<u>": 266, "<v>": 267},
        "config.json": {"bos_token_id": 1, "eos_token_id": [1, 2]},
        "generation_config.json": {
            "eos_token_id": [2],
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 20,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
        },
    }

    def change(raw: bytes, rng: Random) -> bytes:
        name, _, text = raw.partition(b"\n")
        return name + b"\n" + changed_json(text, rng)

    def read(raw: bytes) -> None:
        name, _, text = raw.partition(b"\n")
        for each, content in files.items():
            Path(each).write_text(json.dumps(content))
        Path(name.decode()).write_bytes(text)
        _use_tokenizer(".")

    sound = [f"{name}\n{json.dumps(content)}".encode() for name, content in files.items()]
    return Target(sound, change, read, (BadFile, UsageError))


def sentencepiece() -> Target:
    return _tokenizers("tokenizer.model", [_spm(False), _spm(True)], changed_bytes)


def tiktoken() -> Target:
    pieces = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the"]
    lines = [base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)]
    return _tokenizers("tokenizer.model", [b"".join(lines)], changed_bytes)


def _tokenizers(name: str, sound: list[bytes], change: Callable[[bytes, Random], bytes]) -> Target:
    def read(raw: bytes) -> None:
        Path(name).write_bytes(raw)
        _use_tokenizer(name)

    return Target(sound, change, read, (BadFile, UsageError))


def _use_tokenizer(path: str) -> None:
    """Do with a tokenizer all that can be done."""
    tokenizer = open_tokenizer(path)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in tokenizer.eos_ids)
    for text in TEXTS:
        ids = tokenizer.encode(text, parse_special=True)
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
        tokenizer.decode(ids)
    tokenizer.decode(range(-1, min(tokenizer.vocab_size, 400) + 1))
    _ = tokenizer.summary(), tokenizer.special_names, tokenizer.chat_templates, tokenizer.generation.settings()
    for export in (lambda: tokenizer.data, lambda: gguf_metadata(tokenizer)):
        try:
            export()
        except UnsupportedModel as error:
            check_refusal(error)


def _byte_level() -> bytes:
    library = train_byte_level(cut_by(LLAMA3_PATTERN), LLAMA3_SPECIAL, vocab_size=270)
    return bytes(with_bos(library, LLAMA3_SPECIAL[0]).to_str().encode())


def _spm(is_unigram: bool) -> bytes:
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(PIECES) - 259)]
    return build_spm_model(SpmModel(PIECES, -np.arange(len(PIECES), dtype=np.float32), kinds, is_unigram))


def _pairs() -> dict[str, Any]:
    """Give a ``tokenizer.json`` as it is made of SentencePiece's BPE."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "é", *BYTES]
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    model |= {"vocab": {piece: token_id for token_id, piece in enumerate(pieces)}}
    model |= {"merges": [["a", "b"], ["▁", "ab"]]}
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizers = [{"type": "Prepend", "prepend": "▁"}, marks]
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"}]
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _json(
        pieces[:3],
        model,
        {"type": "Sequence", "normalizers": normalizers},
        None,
        {"type": "Sequence", "decoders": decoders},
    )


def _unigram() -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", *BYTES]
    scored = [[piece, -float(token_id)] for token_id, piece in enumerate(pieces)]
    model = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": scored}
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return _json(pieces[:3], model, {"type": "NFKC"}, spaces, spaces)


def _json(names: list[str], model: object, normalizer: object, cuts: object, decoder: object) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    post: dict[str, Any] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
    }
    post |= {"special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    added = [{"id": each, "content": name, "special": True, **flags} for each, name in enumerate(names)]
    parts = {"normalizer": normalizer, "pre_tokenizer": cuts, "post_processor": post, "decoder": decoder}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts, "model": model}
