"""Exported vocabularies against llama.cpp, where it is installed: the same ids from the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_worlds import (  # type: ignore[import-not-found]
    LLAMA3_SPECIAL,
    cut_by,
    save,
    spm_as_json,
    spm_bytes,
    texts,
    train_byte_level,
    with_bos,
)

from dllama.formats.gguf_writer import write_container
from dllama.text.gguf_export import gguf_metadata
from dllama.text.opening import open_tokenizer
from dllama.text.pre_tokenizers import PRE_TOKENIZERS
from dllama.text.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp")

# llama.cpp puts no accents together (qwen2), and has other patterns for letters with marks (tekken, gpt-4o) and for
# rare white space (deepseek-llm).
NAMES = ("llama-bpe", "dbrx", "smollm", "gpt-2", "deepseek-coder", "deepseek-v3", "falcon", "default")
DEMO = Path(__file__).parents[1] / "dllama" / "demo" / "tokenizer.t"
_MODEL: dict[str, Any] = {"general.architecture": "llama", "llama.context_length": 512, "llama.embedding_length": 64}
_MODEL |= {"llama.block_count": 1, "llama.feed_forward_length": 64, "llama.attention.head_count": 4}


def byte_level(folder: Path, name: str) -> Tokenizer:
    library = with_bos(train_byte_level(cut_by(*PRE_TOKENIZERS[name].patterns), LLAMA3_SPECIAL), LLAMA3_SPECIAL[0])
    return open_tokenizer(save(library, folder, {"bos_token": LLAMA3_SPECIAL[0], "eos_token": LLAMA3_SPECIAL[1]}))


def llama2(folder: Path, name: str) -> Tokenizer:
    library = with_bos(spm_as_json(spm_bytes("bpe")), "<s>")
    return open_tokenizer(save(library, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))


def unigram(folder: Path, name: str) -> Tokenizer:
    raw = spm_bytes("unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True, byte_fallback=False)
    (folder / "tokenizer.model").write_bytes(raw)
    return open_tokenizer(folder)


def demo(folder: Path, name: str) -> Tokenizer:
    return open_tokenizer(DEMO)


MAKERS = [*((byte_level, name) for name in NAMES), (llama2, "llama2"), (unigram, "unigram"), (demo, "demo")]


@pytest.mark.parametrize(("make", "name"), MAKERS, ids=[name for _, name in MAKERS])
def test_llama_cpp_gives_the_same_ids(tmp_path: Path, make: object, name: str) -> None:
    tokenizer: Tokenizer = make(tmp_path, name)  # type: ignore[operator]
    metadata = {**_MODEL, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": tokenizer.vocab_size}
    write_container(tmp_path / "a.gguf", {**metadata, **gguf_metadata(tokenizer)}, [])
    theirs = llama_cpp.Llama(str(tmp_path / "a.gguf"), vocab_only=True, verbose=False)
    for text in texts(1500, list(tokenizer.special_names)[:8]):
        raw = text.replace("\0", "").encode()
        for special in (False,) if name == "unigram" else (False, True):  # it puts a space behind names there
            ids = theirs.tokenize(raw, add_bos=True, special=special)
            assert ids == tokenizer.encode(raw.decode(), None, special), text
