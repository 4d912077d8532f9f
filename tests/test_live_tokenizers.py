"""Hugging Face folders against transformers itself, where it is installed; see also ``test_tokenizer_kinds``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_worlds import (  # type: ignore[import-not-found]
    LLAMA3_SPECIAL,
    QWEN_SPECIAL,
    cut_by,
    save,
    spm_as_json,
    spm_bytes,
    texts,
    train_byte_level,
    with_bos,
)

from dllama.text.opening import open_tokenizer
from dllama.text.rank_bpe import LLAMA3_PATTERN, QWEN_PATTERN

transformers = pytest.importorskip("transformers")


def llama3(folder: Path) -> tuple[str, ...]:
    library = with_bos(train_byte_level(cut_by(LLAMA3_PATTERN), LLAMA3_SPECIAL), LLAMA3_SPECIAL[0])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": LLAMA3_SPECIAL[0],
        "eos_token": LLAMA3_SPECIAL[4],
    }
    save(library, folder, config, config={"model_type": "llama"})
    return LLAMA3_SPECIAL


def qwen(folder: Path) -> tuple[str, ...]:
    library = train_byte_level(cut_by(QWEN_PATTERN), QWEN_SPECIAL, composes=True)
    config: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": QWEN_SPECIAL[2]}
    save(library, folder, config | {"add_bos_token": False}, config={"model_type": "qwen2"})
    return QWEN_SPECIAL


def gemma(folder: Path) -> tuple[str, ...]:
    raw = spm_bytes("bpe", user_defined_symbols="<start_of_turn>,<end_of_turn>,\n\n,▁▁,▁▁▁,<h1>")
    library = with_bos(spm_as_json(raw, None, gemma=True), "<s>")
    config = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    save(library, folder, config | {"pad_token": "<unk>"}, config={"model_type": "gemma2"})
    return "<s>", "<start_of_turn>", "<h1>"


def mistral(folder: Path) -> tuple[str, ...]:
    library = with_bos(spm_as_json(spm_bytes("bpe"), "first"), "<s>")
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    save(library, folder, config | {"legacy": False}, config={"model_type": "mistral"})
    return "<s>", "</s>"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("make", [llama3, qwen, gemma, mistral])
def test_folders_give_the_ids_of_transformers(
    make: Callable[[Path], tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = make(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(str(tmp_path)), open_tokenizer(tmp_path)
    tried = texts(2000, names)
    for text, ids, whole in zip(
        tried, theirs(tried, add_special_tokens=False)["input_ids"], theirs(tried)["input_ids"], strict=True
    ):
        assert ours.encode(text, add_bos=False, parse_special=True) == ids, text
        assert ours.encode(text, parse_special=True) == whole, text
        said = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids).replace("\ufffd", "") == said.replace("\ufffd", ""), text
    assert ours.eos_ids == (theirs.eos_token_id,)
