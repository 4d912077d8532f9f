"""The example of docs/python-api.md runs: with the demo model where it is, and with a random one everywhere."""

import re
from pathlib import Path

import pytest
from model_files import tiny_config, write_tiny_model, write_tiny_tokenizer  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "dllama" / "demo"


def example() -> str:
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "python-api.md").read_text(), re.DOTALL | re.MULTILINE
    )
    return str(code)


def run_example(capsys) -> list[str]:
    exec(compile(example(), "docs/python-api.md", "exec"), {})
    return capsys.readouterr().out.splitlines()


def test_example_with_a_random_model(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "dllama" / "demo"
    folder.mkdir(parents=True)
    write_tiny_model(folder / "model.m", tiny_config(max_seq_len=128))
    write_tiny_tokenizer(folder / "tokenizer.t")
    monkeypatch.chdir(tmp_path)
    lines = run_example(capsys)
    assert lines[0].startswith("llama, 128 tokens of context, ")
    assert re.fullmatch(r"perplexity \d+\.\d\d", lines[-1])


@pytest.mark.skipif(not (DEMO / "model.m").exists(), reason="no demo model in this tree")
def test_example_with_the_demo_model(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert "perplexity" in run_example(capsys)[-1]
