"""``dllama export gguf``: one file of a model and its tokenizer, or one line that says why not."""

from __future__ import annotations

import json

import pytest
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

from dllama.cli import main
from dllama.formats.gguf import open_gguf
from dllama.formats.gguf_container import StringArray
from dllama.text.opening import open_tokenizer


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
