"""``dllama export gguf``: one file of a model and its tokenizer, or one line that says why not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from chat_vocabularies import rank_vocabulary  # type: ignore[import-not-found]
from model_files import byte_tokenizer_data, tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.cli import main
from dllama.errors import UsageError
from dllama.formats.gguf import open_gguf
from dllama.formats.gguf_container import StringArray
from dllama.formats.gguf_export import export_gguf
from dllama.formats.open_model import open_model
from dllama.formats.t_file import write_t_file
from dllama.text.gguf_export import gguf_metadata, losses
from dllama.text.opening import open_tokenizer
from dllama.text.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path):
    write_tiny_model(tmp_path / "tiny.m", tiny_config(vocab_size=352))
    write_tiny_tokenizer(tmp_path / "tiny.t", chat_template="{{ messages }}")
    return tmp_path / "tiny.m"


def test_a_file_that_runs_by_itself(model, tmp_path, capsys):
    output = tmp_path / "out.gguf"
    assert main(["export", "gguf", "--model", str(model), "--output", str(output)]) == 0
    assert f"{output}: Llama" in capsys.readouterr().out
    written, read = open_tokenizer(tmp_path / "tiny.t"), open_tokenizer(output)
    text = "the quick 12 <|eot_id|>"
    assert read.encode(text, parse_special=True) == written.encode(text, parse_special=True)
    assert read.eos_ids == written.eos_ids
    with open_gguf(output) as found:
        tokens = found.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, StringArray)
        assert found.config.vocab_size == len(tokens) == 352
        assert found.metadata["general.name"] == "out"
        assert found.metadata["tokenizer.chat_template"] == "{{ messages }}"
    prompt = ["inference", "--prompt", "the", "--steps", "4", "--temperature", "0", "--json", "--model"]
    texts = []
    for path in (model, output):
        assert main([*prompt, str(path)]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_a_name_of_phi_3_asks_llama_cpp_for_no_token_that_is_missing(model, tmp_path):
    for output, name in (("my-Phi3.gguf", "my-phi 3"), ("phi-4.gguf", "phi-4")):
        assert main(["export", "gguf", "--model", str(model), "--output", str(tmp_path / output)]) == 0
        with open_gguf(tmp_path / output) as found:
            assert found.metadata["general.name"] == name


def with_extra_token(vocab_size):
    """Give the metadata of a vocabulary that has one token more than a model."""
    metadata = gguf_metadata(Tokenizer(byte_tokenizer_data(vocab_size)))
    metadata["tokenizer.ggml.tokens"].append("<image>")
    metadata["tokenizer.ggml.token_type"].append(3)
    return metadata | {"tokenizer.ggml.padding_token_id": vocab_size}


def test_tokens_without_rows_are_left_out(model, tmp_path):
    output = tmp_path / "out.gguf"
    metadata = with_extra_token(352) | {"tokenizer.ggml.precompiled_charsmap": np.zeros(3, np.uint8)}
    with open_model(model) as source:
        export_gguf(source, output, metadata)
        with pytest.raises(UsageError, match=r"eos_token_id: expected one of the model's 352 tokens, found 352"):
            export_gguf(source, output, metadata | {"tokenizer.ggml.eos_token_id": 352})
    assert open_tokenizer(output).vocab_size == 352
    with open_gguf(output) as found:
        kinds = found.metadata["tokenizer.ggml.token_type"]
        assert isinstance(kinds, np.ndarray)
        assert kinds.shape == (352,)
        assert "tokenizer.ggml.padding_token_id" not in found.metadata


def test_what_a_gguf_file_cannot_say_is_said(model, tmp_path, capsys):
    data = byte_tokenizer_data(352)
    write_t_file(tmp_path / "tiny.t", replace(data, eos_ids=tuple(range(345, 349))))
    assert main(["export", "gguf", "--model", str(model), "--output", str(tmp_path / "out.gguf")]) == 0
    assert "3 tokens that end an answer; left out: <|eot_id|>" in capsys.readouterr().out
    assert losses(Tokenizer(data)) == []
    assert "(NFC)" in losses(rank_vocabulary("<|endoftext|>", "<|im_end|>"))[0]


def test_json(model, tmp_path, capsys):
    assert main(["export", "gguf", "--model", str(model), "--output", str(tmp_path / "a.gguf"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert found["facts"]["Arch"] == "Llama"


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--model", "none.m", "--output", "a.gguf"], 2, "none.m"),
        (["--model", "MODEL"], 2, "--output"),
        (["--model", "MODEL", "--output", ""], 2, "--output"),
        (["--model", "MODEL", "--output", "/nowhere/a.gguf"], 2, "/nowhere/a.gguf"),
        (["--model", "MODEL", "--output", "/dev/null"], 2, "not a regular file"),
    ],
)
def test_mistakes_end_in_one_line(model, capsys, flags, status, words):
    given = [str(model) if flag == "MODEL" else flag for flag in flags]
    assert main(["export", "gguf", *given]) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
