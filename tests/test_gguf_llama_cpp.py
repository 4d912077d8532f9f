"""llama.cpp loads what we export and computes the same: for a model of every family, and for the bundled one with text.

Runs where the extra ``compare`` is installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_model import MemoryModel  # type: ignore[import-not-found]
from tiny_families import family_configs  # type: ignore[import-not-found]

from dllama.cli import main
from dllama.config import DType
from dllama.engine import Engine, SamplingParams
from dllama.formats.gguf_export import export_gguf
from dllama.formats.open_model import open_model
from dllama.hub.folders import find_model
from dllama.text.gguf_export import gguf_metadata
from dllama.text.opening import open_tokenizer

if HAS_LLAMA_CPP := find_spec("llama_cpp") is not None:
    import llama_cpp

    from benchmarks.llama_cpp_side import LlamaCpp

pytestmark = pytest.mark.skipif(not HAS_LLAMA_CPP, reason="needs llama_cpp, of the extra `compare`")

PROMPT = [(index * 37 + 5) % 320 for index in range(12)]
# Where weights have blocks, its activations are rounded otherwise than ours.
LEAST_COSINE = {DType.F32: 0.9999, DType.F16: 0.9999, DType.Q80: 0.95, DType.Q40: 0.95}
TEXTS = ["Once upon a time", "It's 12345  spaces\n\nand more!", "Émile 漢字 😀"]


def exported(folder: Path, name: str, weight_type: DType) -> Path:
    path = folder / "model.gguf"
    export_gguf(MemoryModel(family_configs(weight_type)[name], seed=3), path)
    return path


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def continued(theirs: LlamaCpp, num_tokens: int) -> list[int]:
    """Let llama.cpp choose the likeliest tokens."""
    tokens = list(PROMPT)
    for _ in range(num_tokens):
        tokens.append(int(theirs.logits(tokens, 1, exact=True).argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.verifies("llama.cpp gives our greedy tokens from a file that was exported in F32.", "export")
@pytest.mark.parametrize("name", family_configs())
def test_greedy_tokens_are_the_same(tmp_path, name):
    path = exported(tmp_path, name, DType.F32)
    with Engine.load(path, num_threads=1) as engine:
        sampling = SamplingParams(temperature=0.0, max_tokens=16)
        ours = [output.token_id for output in engine.generate(PROMPT, sampling) if output.token_id is not None]
    assert ours == continued(LlamaCpp(path), 16)


@pytest.mark.parametrize("weight_type", [DType.F16, DType.Q80, DType.Q40])
@pytest.mark.parametrize("name", family_configs())
def test_logits_are_close(tmp_path, name, weight_type):
    path = exported(tmp_path, name, weight_type)
    with Engine.load(path, num_threads=1) as engine:
        ours = engine.logits(PROMPT)[-1]
    assert cosine(ours, LlamaCpp(path).logits(PROMPT, 1)) > LEAST_COSINE[weight_type]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    assert main(["export", "gguf", "--model", "demo", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def llama(demo: Path) -> Any:
    return llama_cpp.Llama(str(demo), n_ctx=512, n_threads=1, verbose=False)


@pytest.mark.parametrize("text", TEXTS)
def test_the_bundled_model_writes_the_same(demo, llama, text):
    found = find_model("demo")
    assert found is not None
    tokenizer = open_tokenizer(demo)
    ids = tokenizer.encode(text)
    assert ids == open_tokenizer(found.tokenizer).encode(text)
    assert ids == llama.tokenize(text.encode(), add_bos=True, special=False)
    theirs: list[int] = []
    for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        theirs.append(token)
        if len(theirs) == 32 or token in tokenizer.eos_ids:
            break
    with Engine.load(demo, tokenizer, num_threads=1) as engine:
        sampling = SamplingParams(temperature=0.0, max_tokens=32)
        ours = [output.token_id for output in engine.generate(ids, sampling) if output.token_id is not None]
    assert ours == theirs


def test_it_loads_a_model_with_fewer_rows_than_tokens(demo, tmp_path):
    tokenizer = open_tokenizer(demo)
    metadata = gguf_metadata(tokenizer)
    metadata["tokenizer.ggml.tokens"] += ["<image>"] * (more := 3)
    metadata["tokenizer.ggml.token_type"] += [3] * more
    with open_model(demo) as source:
        missing = source.config.vocab_size - tokenizer.vocab_size
        assert missing < more
        export_gguf(source, tmp_path / "a.gguf", metadata)
        theirs = llama_cpp.Llama(str(tmp_path / "a.gguf"), n_ctx=64, n_threads=1, verbose=False)
        assert theirs.n_vocab() == source.config.vocab_size
    assert theirs.tokenize(b"Once", add_bos=True) == tokenizer.encode("Once")
