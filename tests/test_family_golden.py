"""Every family against transformers: `tests/golden/families`, made by `tools/golden/make_families.py`.

Each model is written as the Hugging Face folder that transformers saves, opened as users open it, and gives the logits
that transformers gave. The tolerance is that of `test_golden.py`, for the same reasons: float64 goldens, and errors in
float32 that are drawn anew by other orders of summation. `test_wrong_reading_is_seen` shows what it tells apart.

Quantized, a model is compared with the numpy reference on the same quantized numbers, as in `test_reference.py`:
rounding activations is a step, so two right evaluations drift apart, but not beyond one that rounds at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import FOLDER, FamilyGolden, Floats  # type: ignore[import-not-found]
from memory_model import MemoryModel, MemoryTensor  # type: ignore[import-not-found]
from ranks import ranks  # type: ignore[import-not-found]
from reference import Array, Reference  # type: ignore[import-not-found]
from test_golden import MAX_FACTOR, MEAN_FACTOR, root_mean_square  # type: ignore[import-not-found]
from test_reference import RandomRounding, errors_of  # type: ignore[import-not-found]

from dllama.config import Activation, DType, LayerSpec, ModelConfig, RopeScaling
from dllama.engine import Engine, SamplingParams
from dllama.errors import UsageError
from dllama.families import MODEL_TYPES, Checkpoint, Part, describe
from dllama.formats.gguf_export import export_gguf
from dllama.formats.m_layout import tensors_in_order
from dllama.formats.open_model import open_model
from dllama.formats.quants import encode

GOLDENS = [FamilyGolden.load(path.stem) for path in sorted(FOLDER.glob("*.npz"))]
# What llama.cpp takes for granted, and these models have otherwise.
NOT_IN_GGUF = {
    "gemma2_scalar": "attention_multiplier",
    "llama_yarn_mscale": "rope_scaling",
    "qwen2_window": "sliding_window",
    "qwen3_moe_unscaled": "norm_topk_prob",
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)

every_golden = pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The Hugging Face folder of every golden by name."""
    root = tmp_path_factory.mktemp("families")
    return {golden.name: golden.model.write(root / golden.name) for golden in GOLDENS}


def checkpoint_of(golden: FamilyGolden) -> Checkpoint:
    """Give what our mapping makes of the config, with the context that the golden is for."""
    checkpoint = describe(golden.model.config, "config.json")
    context = golden.max_seq_len or checkpoint.config.max_seq_len
    return replace(checkpoint, config=replace(checkpoint.config, max_seq_len=context))


class CheckpointModel(MemoryModel):
    """A golden's weights in memory, found by our mapping and stored as ``weight_type``."""

    def __init__(self, golden: FamilyGolden, checkpoint: Checkpoint, weight_type: DType = DType.F32) -> None:
        self.path, self.config = golden.name, replace(checkpoint.config, weight_type=weight_type)
        stored = golden.model.tensors()
        self.tensors = {}
        for info in tensors_in_order(self.config):
            values = part_of(stored, checkpoint.tensors[info.name])
            raw = encode(info.dtype, values).reshape(info.rows, info.row_bytes)
            self.tensors[info.name] = MemoryTensor(info.name, info.dtype, values.shape, raw)


def part_of(stored: Mapping[str, Floats], part: Part) -> Floats:
    tensor = stored[part.name]
    end = part.first_row + part.num_rows if part.num_rows else len(tensor)
    return tensor[part.first_row : end] + np.float32(part.added)


def excess(golden: FamilyGolden, logits: Array) -> float:
    """Give the errors of logits of all positions in units of what is allowed: at most 1 for logits that agree."""
    errors = errors_of(logits[golden.positions], golden.logits.astype(np.float64))
    largest = MAX_FACTOR * golden.float32_error.max()
    mean = MEAN_FACTOR * root_mean_square(golden.float32_error)
    return max(float(errors.max() / largest), root_mean_square(errors) / mean)


def greedy_tokens(engine: Engine, golden: FamilyGolden) -> list[int | None]:
    prompt = golden.token_ids[: golden.prompt_len].tolist()
    return [output.token_id for output in engine.generate(prompt, GREEDY)]


def test_every_family_has_a_golden() -> None:
    assert {golden.family for golden in GOLDENS} | {"llama"} == set(MODEL_TYPES)


@every_golden
def test_mapping(golden: FamilyGolden) -> None:
    """What the mapping finds means what transformers computes; frequencies and goldens are rounded to float32."""
    logits = Reference(CheckpointModel(golden, checkpoint_of(golden))).logits(golden.token_ids)
    assert errors_of(logits[golden.positions], golden.logits).max() <= golden.float32_error.max()


@every_golden
def test_mapping_takes_every_tensor(golden: FamilyGolden) -> None:
    """No tensor of a checkpoint is left over, and fused ones are used up."""
    rows = dict.fromkeys(golden.model.draws, 0)
    parts = checkpoint_of(golden).tensors.values()
    for part in {replace(part, own_name="") for part in parts}:  # a tied output matrix is the embedding again
        rows[part.name] += part.num_rows or golden.model.draws[part.name].shape[0]
    assert rows == {name: draw.shape[0] for name, draw in golden.model.draws.items()}


def assert_is_transformers(engine: Engine, golden: FamilyGolden) -> None:
    assert excess(golden, engine.logits(golden.token_ids.tolist())) <= 1
    assert greedy_tokens(engine, golden) == golden.greedy.tolist()


@pytest.mark.verifies(
    "A folder in F32 gives transformers' logits, to float32 rounding, and its greedy tokens.", "folder", "one node"
)
@every_golden
def test_folder_on_one_node(golden: FamilyGolden, folders: Mapping[str, Path]) -> None:
    with Engine.load(folders[golden.name], weight_type=DType.F32, max_seq_len=golden.max_seq_len) as engine:
        assert_is_transformers(engine, golden)


@pytest.mark.verifies(
    "Three nodes, joined by sockets, give the same logits and tokens from a folder in F32.", "folder", "three nodes"
)
@every_golden
def test_folder_on_three_nodes(golden: FamilyGolden, folders: Mapping[str, Path]) -> None:
    model = open_model(folders[golden.name], DType.F32)
    with ranks(model, 3, max_seq_len=golden.max_seq_len) as engine:
        assert_is_transformers(engine, golden)


@pytest.mark.verifies(
    "The file that convert_hf.py makes of a folder in F32 gives transformers' logits and greedy tokens.",
    ".m",
    "converters",
)
@every_golden
def test_converted(golden: FamilyGolden, folders: Mapping[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "converters")
    monkeypatch.chdir(tmp_path)
    import_module("convert_hf").main([str(folders[golden.name]), "f32", "golden"])
    with Engine.load("dllama_model_golden_f32.m", max_seq_len=golden.max_seq_len) as engine:
        assert_is_transformers(engine, golden)


@pytest.mark.verifies(
    "The GGUF file that a folder is exported to in F32 gives transformers' logits and greedy tokens.", "gguf", "export"
)
@pytest.mark.parametrize(
    "golden", [golden for golden in GOLDENS if golden.name not in NOT_IN_GGUF], ids=lambda golden: golden.name
)
def test_exported(golden: FamilyGolden, folders: Mapping[str, Path], tmp_path: Path) -> None:
    with open_model(folders[golden.name], DType.F32) as source:
        export_gguf(source, tmp_path / "golden.gguf")
    with Engine.load(tmp_path / "golden.gguf", max_seq_len=golden.max_seq_len) as engine:
        assert_is_transformers(engine, golden)


@pytest.mark.verifies(
    "A folder in Q40 gives the logits of a plain float64 evaluation of the same quantized weights, but for activations "
    "that are rounded the other way.",
    "folder",
    "Q40",
)
@every_golden
def test_quantized_folder(golden: FamilyGolden, folders: Mapping[str, Path]) -> None:
    ids, checkpoint = golden.token_ids[: golden.prompt_len].tolist(), checkpoint_of(golden)
    model = CheckpointModel(golden, checkpoint, DType.Q40)
    exact = Reference(model).logits(ids)
    drift = errors_of(RandomRounding(model).logits(ids), exact)
    with Engine.load(
        folders[golden.name], weight_type=DType.Q40, kv_type=DType.F32, max_seq_len=golden.max_seq_len
    ) as engine:
        errors = errors_of(engine.logits(ids), exact)
    assert errors.max() <= drift.max()
    assert root_mean_square(errors) <= root_mean_square(drift)


@pytest.mark.parametrize("name", NOT_IN_GGUF)
def test_not_exported(name: str, tmp_path: Path) -> None:
    golden = FamilyGolden.load(name)
    with pytest.raises(UsageError, match="a GGUF file cannot hold this model: .*" + NOT_IN_GGUF[name]):
        export_gguf(CheckpointModel(golden, checkpoint_of(golden)), tmp_path / "golden.gguf")


def with_layers(config: ModelConfig, change: Callable[[LayerSpec], LayerSpec]) -> ModelConfig:
    return replace(config, layers=tuple(map(change, config.layers)))


def with_scaling(config: ModelConfig, **changes: Any) -> ModelConfig:
    scaling: RopeScaling | None = config.rope_scaling
    assert scaling is not None
    return replace(config, rope_scaling=replace(scaling, **changes))


def without_first_window(config: ModelConfig) -> ModelConfig:
    return replace(config, layers=(replace(config.layers[0], window=0), *config.layers[1:]))


# Readings a little or wholly wrong, each with the golden that shows it.
WRONG: dict[str, tuple[str, Callable[[ModelConfig], ModelConfig]]] = {
    "linear factor": ("llama_linear", lambda c: with_scaling(c, factor=3.9)),
    "yarn factor": ("llama_yarn", lambda c: with_scaling(c, factor=3.9)),
    "yarn beta_fast": ("llama_yarn", lambda c: with_scaling(c, beta_fast=2.0)),
    "yarn beta_slow": ("llama_yarn", lambda c: with_scaling(c, beta_slow=1.0)),
    "yarn attention factor": ("llama_yarn", lambda c: with_scaling(c, attention_factor=1.0)),
    "yarn mscale": ("llama_yarn_mscale", lambda c: with_scaling(c, attention_factor=0.1 * np.log(4.0) + 1)),
    "yarn truncate": ("llama_yarn_mscale", lambda c: with_scaling(c, is_truncated=True)),
    "window by one": ("mistral", lambda c: with_layers(c, lambda layer: replace(layer, window=layer.window + 1))),
    "window of all layers": ("qwen2_window", lambda c: with_layers(c, lambda layer: replace(layer, window=40))),
    "experts per token": ("mixtral", lambda c: replace(c, num_experts_per_tok=1)),
    "experts not normed": ("qwen3_moe", lambda c: replace(c, norm_topk_prob=False)),
    "experts normed": ("qwen3_moe_unscaled", lambda c: replace(c, norm_topk_prob=True)),
    "attention cap": ("gemma2", lambda c: replace(c, attention_softcap=4.2)),
    "logits cap": ("gemma2", lambda c: replace(c, logits_softcap=3.1)),
    "query scale": ("gemma2_scalar", lambda c: replace(c, attention_multiplier=c.head_dim**-0.5)),
    "embedding scale": ("gemma2", lambda c: replace(c, embedding_multiplier=1.0)),
    "activation": ("gemma2", lambda c: replace(c, activation=Activation.SILU)),
    "window of a layer": ("gemma3_text", without_first_window),
    "local theta": ("gemma3_text", lambda c: replace(c, local_rope_theta=c.rope_theta)),
    "local rotation": ("gemma3_text", lambda c: with_layers(c, lambda layer: replace(layer, has_local_rope=False))),
    "long factors": ("phi3_short", lambda c: replace(c, max_seq_len=512)),
    "short factors": ("phi3_long", lambda c: replace(c, max_seq_len=64)),
    "longrope attention factor": ("phi3_long", lambda c: with_scaling(c, attention_factor=1.0)),
    "embedding multiplier": ("granite", lambda c: replace(c, embedding_multiplier=3.1)),
    "attention multiplier": ("granite", lambda c: replace(c, attention_multiplier=0.41)),
    "residual multiplier": ("granite", lambda c: replace(c, residual_multiplier=0.61)),
    "logits multiplier": ("granite", lambda c: replace(c, logits_multiplier=1.7)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_reading_is_seen(what: str) -> None:
    """The goldens tell a right mapping from one with a setting misread: its errors are far above what is allowed."""
    name, change = WRONG[what]
    golden = FamilyGolden.load(name)
    checkpoint = checkpoint_of(golden)
    reference = Reference(CheckpointModel(golden, checkpoint))
    reference.config = change(reference.config)
    assert excess(golden, reference.logits(golden.token_ids)) > 10
