"""What lies beside a tokenizer in a folder: settings, added tokens, templates; and which file of a folder is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_vocabularies import rank_vocabulary  # type: ignore[import-not-found]
from tokenizer_worlds import (  # type: ignore[import-not-found]
    QWEN_SPECIAL,
    cut_by,
    save,
    spm_as_json,
    spm_bytes,
    train_byte_level,
    with_bos,
)

from dllama.errors import BadFile
from dllama.formats.gguf_writer import write_container
from dllama.formats.t_file import write_t_file
from dllama.text.gguf_export import gguf_metadata
from dllama.text.opening import open_tokenizer
from dllama.text.rank_bpe import QWEN_PATTERN

LIBRARY = train_byte_level(cut_by(QWEN_PATTERN), QWEN_SPECIAL, vocab_size=300)


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def test_special_tokens_come_from_either_file(tmp_path: Path) -> None:
    save(LIBRARY, tmp_path, {"eos_token": {"content": QWEN_SPECIAL[2], "lstrip": False}, "bos_token": None})
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (-1, (302,))
    assert tokenizer.token_texts == {"eos_token": QWEN_SPECIAL[2]}
    assert tokenizer.summary()["BosId"] == "none"
    assert tokenizer.encode("a", add_bos=True) == tokenizer.encode("a", add_bos=False)
    write(tmp_path, special_tokens_map={"pad_token": QWEN_SPECIAL[0], "eos_token": "no"}, config={"bos_token_id": 300})
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (300, (302,), False)
    assert tokenizer.token_texts == {"eos_token": QWEN_SPECIAL[2], "pad_token": QWEN_SPECIAL[0]}


@pytest.mark.parametrize(
    ("config", "adds"),
    [
        ({"tokenizer_class": "LlamaTokenizerFast"}, (True, False)),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, (False, False)),
        ({"tokenizer_class": "GemmaTokenizerFast", "add_eos_token": True}, (True, True)),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}, (True, False)),
        ({}, (True, False)),
    ],
)
def test_who_says_whether_bos_and_eos_are_added(
    tmp_path: Path, config: dict[str, Any], adds: tuple[bool, bool]
) -> None:
    library = with_bos(spm_as_json(spm_bytes("bpe")), "<s>")
    save(library, tmp_path, {"bos_token": "<s>", "eos_token": "</s>", **config})
    tokenizer = open_tokenizer(tmp_path)
    ids = tokenizer.encode("a")
    assert (ids[0] == 1, ids[-1] == 2) == adds
    assert tokenizer.encode("a", add_bos=False) == [each for each in ids if each not in (1, 2)]


def test_tokens_may_be_added_by_the_configuration(tmp_path: Path) -> None:
    save(LIBRARY, tmp_path, {"added_tokens_decoder": {"303": {"content": "<extra>", "special": True}}})
    assert open_tokenizer(tmp_path).encode("a<extra>", parse_special=True) == [64, 303]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes("bpe"))
    write(tmp_path, tokenizer_config={}, added_tokens={"<|end|>": 2200, "<more>": 2201})
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 2202
    assert tokenizer.encode("a<more><|end|>", parse_special=True)[-2:] == [2201, 2200]
    assert max(tokenizer.encode("a<more><|end|>")) < 2200
    assert [tokenizer.is_special(token_id) for token_id in (2200, 2201)] == [True, False]
    write(tmp_path, added_tokens={"<|end|>": 2300})
    with pytest.raises(BadFile, match="expected id 2200 behind the model's own, found 2300"):
        open_tokenizer(tmp_path)


def test_templates_come_from_files_first(tmp_path: Path) -> None:
    save(LIBRARY, tmp_path, {"chat_template": "in the configuration"})
    assert open_tokenizer(tmp_path).chat_templates == {"default": "in the configuration"}
    (tmp_path / "chat_template.jinja").write_text("in a file", "utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("for tools", "utf-8")
    assert open_tokenizer(tmp_path).chat_templates == {"default": "in a file", "tool_use": "for tools"}


def test_which_file_of_a_folder_is_the_tokenizer(tmp_path: Path) -> None:
    stored = rank_vocabulary("<|begin_of_text|>", "<|end_of_text|>", chat_template="x")
    write_t_file(tmp_path / "a.t", stored.data)
    assert open_tokenizer(tmp_path).vocab_size == 258
    (tmp_path / "tokenizer.model").write_bytes(spm_bytes("bpe"))
    assert open_tokenizer(tmp_path).vocab_size == 2200
    save(LIBRARY, tmp_path)
    assert open_tokenizer(tmp_path).vocab_size == 303


def test_a_gguf_file_has_a_tokenizer_in_it(tmp_path: Path) -> None:
    stored = rank_vocabulary("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", chat_template="{{ 1 }}")
    write_container(tmp_path / "model", {"general.architecture": "llama", **gguf_metadata(stored)}, [])
    tokenizer = open_tokenizer(tmp_path / "model")
    text = "Hello<|eot_id|>"
    assert tokenizer.encode(text, None, True) == stored.encode(text, None, True) == [256, *b"Hello", 258]
    assert (tokenizer.eos_ids[0], tokenizer.chat_templates) == (257, {"default": "{{ 1 }}"})
    assert 258 in tokenizer.eos_ids  # by its name


def test_a_file_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    save(LIBRARY, tmp_path)
    (tmp_path / "renamed.bin").write_bytes(b"\n \t" + (tmp_path / "tokenizer.json").read_bytes())
    assert open_tokenizer(tmp_path / "renamed.bin").vocab_size == 303
