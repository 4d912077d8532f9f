"""What families of models ask of the core, feature by feature, against the reference, on one node and on three."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from memory_model import MemoryModel  # type: ignore[import-not-found]
from model_files import tiny_config  # type: ignore[import-not-found]
from ranks import ranks  # type: ignore[import-not-found]
from reference import Array, Reference  # type: ignore[import-not-found]
from test_golden import MAX_FACTOR, MEAN_FACTOR, root_mean_square  # type: ignore[import-not-found]

from dllama import _native
from dllama.config import Activation, DType, LayerSpec, ModelConfig, QkNorm, RopeScaling
from dllama.engine import SamplingParams
from dllama.plan import Exchange, exchanges_of, step_traffic

LENGTH = 150  # more than two KV pages
TOKEN_IDS = np.random.default_rng(3).integers(0, 320, LENGTH).tolist()
# On three nodes the two KV heads are held by two of them, or by three: then two hold the same.
SIZES = {"num_heads": 8, "num_kv_heads": 2, "intermediate_size": 160, "max_seq_len": 256, "weight_type": DType.F32}
YARN = RopeScaling(4.0, original_max_seq_len=64, kind="yarn", beta_fast=32.0, beta_slow=1.0, attention_factor=1.14)
LOCAL = LayerSpec(has_local_rope=True)
GEMMA = LayerSpec(QkNorm.HEAD, has_output_norms=True)
OLMO = LayerSpec(QkNorm.ALL, has_input_norms=False, has_output_norms=True)

FEATURES: dict[str, dict[str, object]] = {
    "biases": {"layers": (LayerSpec(has_qkv_bias=True),) * 2},
    "norms of single heads": {"layers": (LayerSpec(QkNorm.HEAD),) * 2},
    "norms of all heads": {"layers": (LayerSpec(QkNorm.ALL), LayerSpec())},
    "biases before norms of all heads": {"layers": (LayerSpec(QkNorm.ALL, has_qkv_bias=True),) * 2},
    "output norms": {"layers": (LayerSpec(has_output_norms=True), LayerSpec())},
    "output norms alone": {"layers": (OLMO, OLMO)},
    "windows": {"layers": (LayerSpec(window=20), LayerSpec())},
    "GELU": {"activation": Activation.GELU_TANH},
    "capped scores": {"attention_softcap": 2.0},
    "capped logits": {"logits_softcap": 3.0},
    "scaled embeddings": {"embedding_multiplier": 12.0},
    "scaled scores": {"attention_multiplier": 0.1},
    "scaled sums": {"residual_multiplier": 0.4},
    "scaled logits": {"logits_multiplier": 0.125},
    "rotation of a part": {"rotary_dim": 8},
    "local rotation": {"layers": (LOCAL, LayerSpec()), "local_rope_theta": 100.0},
    "rotation with a factor": {"rope_scaling": YARN},
    "all": {
        "layers": (replace(GEMMA, window=30, has_local_rope=True, has_qkv_bias=True), replace(OLMO, window=70)),
        "local_rope_theta": 100.0,
        "rope_scaling": YARN,
        "rotary_dim": 12,
        "activation": Activation.GELU_TANH,
        "embedding_multiplier": 8.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
        "logits_multiplier": 2.0,
        "attention_softcap": 5.0,
        "logits_softcap": 10.0,
    },
}


def model_of(**changes: object) -> MemoryModel:
    config = tiny_config(**(SIZES | changes))
    assert config.problem() is None
    return MemoryModel(config)


def excess(logits: Array, exact: Array, single: Array) -> float:
    """Give the errors in units of what is allowed, at most 1 for logits that agree: as in ``test_golden``."""
    errors, spread = np.abs(logits - exact), np.abs(single - exact)
    typical = root_mean_square(errors) / (MEAN_FACTOR * root_mean_square(spread))
    return max(errors.max() / (MAX_FACTOR * spread.max()), typical)


@pytest.mark.parametrize("name", FEATURES)
def test_logits(name: str) -> None:
    model = model_of(**FEATURES[name])
    exact, single = (Reference(model, dtype=dtype).logits(TOKEN_IDS) for dtype in (np.float64, np.float32))
    with ranks(model, 1) as engine:
        assert excess(engine.logits(TOKEN_IDS), exact, single) <= 1
    with ranks(model, 3, wire_type=DType.F32) as engine:
        assert excess(engine.logits(TOKEN_IDS), exact, single) <= 1


def without(config: ModelConfig, name: str) -> ModelConfig:
    """Give the model without its feature ``name``."""
    plain = tiny_config(**SIZES)
    qk_norm = QkNorm.ALL if name == "biases before norms of all heads" else QkNorm.NONE
    layers = tuple(LayerSpec(qk_norm, has_input_norms=layer.has_input_norms) for layer in config.layers)
    changes = {field: getattr(plain, field) for field in FEATURES[name] if field != "layers"}
    return replace(config, **changes, layers=layers)


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_that_is_missed_is_seen(name: str) -> None:
    model = model_of(**FEATURES[name])
    exact, single, wrong = (Reference(model, dtype=dtype) for dtype in (np.float64, np.float32, np.float64))
    wrong.config = without(model.config, name)
    assert excess(wrong.logits(TOKEN_IDS), exact.logits(TOKEN_IDS), single.logits(TOKEN_IDS)) > 100


@pytest.mark.parametrize("weight_type", [DType.F32, DType.Q40])
@pytest.mark.parametrize("world_size", [1, 3])
def test_bits_do_not_depend_on_chunks_and_threads(world_size: int, weight_type: DType) -> None:
    model = model_of(**FEATURES["all"], weight_type=weight_type)
    with ranks(model, world_size) as engine:
        expected = engine.logits(TOKEN_IDS)
    for num_threads, max_batch_tokens in ((1, 7), (2, 1), (2, 64), (3, 512)):
        with ranks(model, world_size, num_threads=num_threads, max_batch_tokens=max_batch_tokens) as engine:
            np.testing.assert_array_equal(engine.logits(TOKEN_IDS), expected)


def test_bits_do_not_depend_on_neighbours() -> None:
    model = model_of(**FEATURES["all"], weight_type=DType.Q40)
    with ranks(model, 3, kv_tokens=2048) as engine:
        expected = engine.logits(TOKEN_IDS)
        for seed in range(3):
            engine.add(TOKEN_IDS[40 * seed :], SamplingParams(max_tokens=100, seed=seed))
        for _ in range(3):
            engine.step()
        np.testing.assert_array_equal(engine.logits(TOKEN_IDS), expected)


@pytest.mark.parametrize("world_size", [1, 3])
def test_scores_and_candidates_are_those_of_the_logits(world_size: int) -> None:
    model = model_of(logits_multiplier=3.0, logits_softcap=4.0)
    with ranks(model, world_size, wire_type=DType.F32) as engine:
        logits = engine.logits(TOKEN_IDS).astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        scores = engine.score(TOKEN_IDS)
        np.testing.assert_allclose(scores, log_probs[np.arange(LENGTH - 1), TOKEN_IDS[1:]], atol=1e-5)
        (output,) = engine.generate(TOKEN_IDS, SamplingParams(temperature=0.0, max_tokens=1, logprobs=3))
        best = np.argsort(-log_probs[-1], kind="stable")[:3]
        assert [top[0] for top in output.top_logprobs] == best.tolist()
        np.testing.assert_allclose([top[1] for top in output.top_logprobs], log_probs[-1][best], atol=1e-5)


def test_longrope_is_chosen_by_the_context_in_use() -> None:
    short, long = (tuple(float(factor) for factor in np.linspace(1, end, 8)) for end in (1.5, 8))
    scaling = RopeScaling(4.0, original_max_seq_len=128, kind="longrope", short_factors=short, long_factors=long)
    model = model_of(rope_scaling=scaling)
    logits = {}
    for context in (128, 129):
        exact, single = (Reference(model, dtype=dtype) for dtype in (np.float64, np.float32))
        exact.max_seq_len = single.max_seq_len = context
        with ranks(model, 2, wire_type=DType.F32, max_seq_len=context) as engine:
            logits[context] = engine.logits(TOKEN_IDS[:100])
        expected = exact.logits(TOKEN_IDS[:100])
        assert excess(logits[context], expected, single.logits(TOKEN_IDS[:100])) <= 1
    assert np.abs(logits[128] - logits[129]).max() > 0.01


@pytest.mark.parametrize("world_size", [1, 3])
def test_some_matrices_with_more_bits(world_size: int) -> None:
    """Single tokens, few of whose activations lie near a border between quants: half of them agree as floats do."""
    names = ("layers.0.down_proj", "layers.0.q_proj", "layers.1.up_proj", "lm_head")
    model = model_of(weight_type=DType.Q40, q80_tensors=names)
    exact = Reference(model)
    assert [model.tensors[name].dtype for name in names] == [DType.Q80] * 4
    with ranks(model, world_size, wire_type=DType.F32, kv_type=DType.F32) as engine:
        errors = [np.abs(engine.logits([token]) - exact.logits([token])).max() for token in range(40)]
    assert np.median(errors) < 1e-5


@pytest.mark.parametrize("shares", [None, [1, 5, 1]])
def test_head_norms_where_nodes_hold_the_same_heads(shares: list[int] | None) -> None:
    """Four nodes and two KV heads: each is held by some of them, and counts once."""
    model = model_of(layers=(OLMO, LayerSpec(QkNorm.ALL)))
    exact, single = (Reference(model, dtype=dtype).logits(TOKEN_IDS) for dtype in (np.float64, np.float32))
    world_size = len(shares) if shares else 4
    with ranks(model, world_size, shares, wire_type=DType.F32) as engine:
        assert excess(engine.logits(TOKEN_IDS), exact, single) <= 1


def test_models_that_norm_sums_exchange_them_directly() -> None:
    with ranks(model_of(layers=(OLMO, OLMO)), 3) as engine:
        node = engine._executor.node
        with pytest.raises(ValueError, match="directly"):
            node.scatter_from = 1
        with pytest.raises(ValueError, match="directly"):
            node.probe(1, scatter=True)
        assert node.probe(1, scatter=False) > 0
        engine.logits([1, 2, 3])


@pytest.mark.parametrize("scatter_from", [0, 1])
def test_sums_are_scaled_in_every_exchange(scatter_from: int) -> None:
    model = model_of(residual_multiplier=0.4)
    exact, single = (Reference(model, dtype=dtype).logits(TOKEN_IDS) for dtype in (np.float64, np.float32))
    with ranks(model, 3, scatter_from=scatter_from, wire_type=DType.F32) as engine:
        assert excess(engine.logits(TOKEN_IDS), exact, single) <= 1


def test_the_plan_counts_what_the_root_sends() -> None:
    model = model_of(layers=(OLMO, LayerSpec(has_output_norms=True)))
    with ranks(model, 3, wire_type=DType.F32) as engine:
        before = engine.counters()["sent_bytes"]
        engine.add(TOKEN_IDS[:128], SamplingParams(temperature=0.0, max_tokens=4))
        engine.step()
        sent = engine.counters()["sent_bytes"] - before
    assert exchanges_of(model.config) == [Exchange.DIRECT]
    assert sent == step_traffic(model.config, 3, DType.F32, Exchange.DIRECT, 128, 1)[0].sent


def test_windows_over_segments_on_any_number_of_threads() -> None:
    """As ``test_long_contexts`` of ``test_engine_bits``: the window begins in an earlier segment than it ends."""
    layers = (LayerSpec(window=1500), LayerSpec(window=70))
    model = model_of(layers=layers, num_kv_heads=1, max_seq_len=4096, weight_type=DType.Q40)
    prompt = np.random.default_rng(5).integers(0, 320, 2100).tolist()
    found = []
    for num_threads, max_batch_tokens in ((1, 512), (2, 512), (5, 2)):
        with ranks(model, 1, num_threads=num_threads, max_batch_tokens=max_batch_tokens, kv_tokens=4096) as engine:
            params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=5, ignore_eos=True)
            outputs = list(engine.generate(prompt, params))
            found.append([(output.token_id, output.top_logprobs) for output in outputs])
    assert found[0] == found[1] == found[2]


def test_a_window_reaches_back_as_far_as_it_says() -> None:
    """Through two layers of windows of 40, a token depends on 78 tokens before it, and on no other."""
    model = model_of(layers=(LayerSpec(window=40),) * 2)
    changed = [(token + 1) % 320 for token in TOKEN_IDS[:20]] + TOKEN_IDS[20:]
    with ranks(model, 1) as engine:
        same = (engine.logits(TOKEN_IDS) == engine.logits(changed)).all(axis=1)
    assert not same[:98].any()
    assert same[98:].all()


def test_fields_that_there_are_not_are_refused() -> None:
    with pytest.raises(TypeError, match="no field named scale"):
        _native.LayerSpec(scale=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="window has a value of a wrong type"):
        _native.LayerSpec(window=-1)
    with pytest.raises(ValueError, match="qk_norm must be a number from 0 to 2"):
        _native.LayerSpec(qk_norm=3)
