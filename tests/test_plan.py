import math
from collections import Counter
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dllama.config import DType, LayerSpec, ModelConfig, QkNorm
from dllama.errors import NotEnoughMemory, UsageError
from dllama.plan import Axis, MemoryPlan, Range, kv_heads_per_unit, make_plan, max_world_size, tensor_slice

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
EXPERT_MATRICES = [f"experts.3.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
NORMS = ["layers.1.input_layernorm", "layers.1.post_attention_layernorm", "norm", "layers.1.q_norm", "layers.1.k_norm"]


def make_config(
    num_kv_heads=8, group_size=4, head_dim=64, ffn_units=256, vocab_size=128256, expert_units=0
) -> ModelConfig:
    """Give a model of two layers, the second with experts if they have columns."""
    return ModelConfig(
        model_type="llama",
        hidden_size=64,
        intermediate_size=32 * ffn_units,
        num_layers=2,
        num_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_seq_len=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        weight_type=DType.Q40,
        layers=(LayerSpec(QkNorm.HEAD), LayerSpec(QkNorm.HEAD, has_experts=expert_units > 0)),
        num_experts=4 if expert_units else 0,
        num_experts_per_tok=2 if expert_units else 0,
        moe_intermediate_size=32 * expert_units,
    )


@st.composite
def configs(draw) -> ModelConfig:
    group_size, head_dim = draw(st.integers(1, 8)), 2 * draw(st.integers(1, 64))
    unit = 32 // math.gcd(32, group_size * head_dim)
    config = make_config(
        num_kv_heads=unit * draw(st.integers(1, 12)),
        group_size=group_size,
        head_dim=head_dim,
        ffn_units=draw(st.integers(1, 40)),
        vocab_size=draw(st.integers(1, 1500)),
        expert_units=draw(st.integers(0, 40)),
    )
    assert config.problem() is None
    return config


@st.composite
def shared_models(draw) -> tuple[ModelConfig, int, list[float] | None]:
    config = draw(configs())
    world_size = draw(st.integers(1, max_world_size(config)))
    share = st.floats(1e-3, 1e3) | st.integers(1, 1000)
    return config, world_size, draw(st.none() | st.lists(share, min_size=world_size, max_size=world_size))


@st.composite
def split_models(draw) -> tuple[ModelConfig, int, list[float] | None]:
    """More nodes than KV heads, but not more than parts of their query heads."""
    part, head_dim = draw(st.sampled_from([(1, 64), (1, 96), (2, 16), (2, 80), (8, 12)]))
    num_kv_heads, num_parts = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    config = make_config(num_kv_heads, part * num_parts, head_dim, ffn_units=40, vocab_size=1300)
    world_size = draw(st.integers(num_kv_heads + 1, num_kv_heads * num_parts))
    share = st.floats(0.5, 2.0)
    return config, world_size, draw(st.none() | st.lists(share, min_size=world_size, max_size=world_size))


MODELS = shared_models() | split_models()


def indices(parts: list[Range]) -> list[int]:
    return [index for part in parts for index in range(part.begin, part.end)]


@given(MODELS)
def test_everything_is_owned_exactly_once(model):
    config, world_size, shares = model
    shards = make_plan(config, world_size, shares).shards
    assert len(shards) == world_size
    sizes = {"heads": config.num_heads, "ffn": config.intermediate_size, "vocab": config.vocab_size}
    for field, size in (sizes | {"expert_ffn": config.moe_intermediate_size}).items():
        owned = [getattr(shard, field) for shard in shards]
        assert indices(owned) == list(range(size))  # ascending by rank, too
        assert field == "heads" or size == 0 or all(part.size > 0 for part in owned)


@given(MODELS)
def test_kv_heads_are_where_their_query_heads_are(model):
    config, world_size, shares = model
    shards = make_plan(config, world_size, shares).shards
    for shard in shards:
        users = Counter(head // config.group_size for head in indices([shard.heads]))
        assert indices([shard.kv_heads]) == sorted(users)
        assert len({*users.values()}) <= 1
    owned = indices([shard.kv_heads for shard in shards])
    assert owned == sorted(owned)
    assert set(owned) == set(range(config.num_kv_heads))
    assert [shard.kv_heads.begin for shard in shards] == sorted(shard.kv_heads.begin for shard in shards)
    if world_size <= config.num_kv_heads // kv_heads_per_unit(config):
        assert len(owned) == config.num_kv_heads
        assert all(shard.heads.size > 0 for shard in shards)


@given(MODELS)
def test_cuts_lie_between_units(model):
    config, world_size, shares = model
    for shard in make_plan(config, world_size, shares).shards:
        assert shard.heads.begin * config.head_dim % 32 == 0
        assert shard.heads.size * config.head_dim % 32 == 0
        assert shard.ffn.begin % 32 == shard.expert_ffn.begin % 32 == 0
        assert shard.vocab.begin % 32 == 0


def assert_fair(counts: list[int], shares: list[Fraction], least: int) -> None:
    """Each gets its part of the sum rounded up or down; less only by what lifts others to ``least``, the minimum."""
    ideal = [sum(counts) * share / sum(shares) for share in shares]
    lifted = sum(amount < least for amount in ideal)
    for count, amount in zip(counts, ideal, strict=True):
        assert max(least, math.floor(amount) - lifted) <= count <= max(least, math.ceil(amount))


@given(MODELS)
def test_shares_are_heeded_to_one_unit(model):
    config, world_size, shares = model
    weights = [Fraction(share) for share in shares or [1] * world_size]
    shards = make_plan(config, world_size, shares).shards
    assert_fair([shard.ffn.size // 32 for shard in shards], weights, 1)
    if config.has_experts:
        assert_fair([shard.expert_ffn.size // 32 for shard in shards], weights, 1)
    assert_fair([math.ceil(shard.vocab.size / 32) for shard in shards], weights, 1)
    unit = kv_heads_per_unit(config)
    if world_size <= config.num_kv_heads // unit:
        assert_fair([shard.kv_heads.size // unit for shard in shards], weights, 1)


@given(split_models())
def test_neighbours_share_a_kv_head(model):
    config, world_size, shares = model
    weights = [Fraction(share) for share in shares or [1] * world_size]
    shards = make_plan(config, world_size, shares).shards
    assume(all(shard.heads.size > 0 for shard in shards))  # else nobody sees to which KV head a node belongs
    assert all(shard.kv_heads.size == 1 for shard in shards)
    first = [shard.kv_heads.begin for shard in shards]
    part = 32 // math.gcd(32, config.head_dim)
    borders = [*(first.index(head) for head in range(config.num_kv_heads)), world_size]
    for begin, end in pairwise(borders):
        assert_fair([shard.heads.size // part for shard in shards[begin:end]], weights[begin:end], 1)
    sums = [Fraction(0), *accumulate(weights)]
    for head in range(1, config.num_kv_heads):
        target = sums[-1] * head / config.num_kv_heads
        possible = range(borders[head - 1] + 1, borders[head + 1])
        assert abs(sums[borders[head]] - target) == min(abs(sums[border] - target) for border in possible)


@given(MODELS)
def test_plans_are_deterministic(model):
    config, world_size, shares = model
    plan = make_plan(config, world_size, shares)
    assert plan == make_plan(config, world_size, shares)
    assert plan.digest() == make_plan(config, world_size, shares).digest()


@given(MODELS)
def test_slices_of_all_ranks_make_up_each_tensor(model):
    config, world_size, shares = model
    shards = make_plan(config, world_size, shares).shards
    for name in MATRICES + EXPERT_MATRICES * config.has_experts:
        slices = [tensor_slice(config, shard, f"layers.1.{name}") for shard in shards]
        assert len({part.shape for part in slices}) == 1
        cut, whole = ("rows", "columns") if slices[0].axis is Axis.ROWS else ("columns", "rows")
        size, other = slices[0].shape if cut == "rows" else slices[0].shape[::-1]
        owned = indices([getattr(part, cut) for part in slices])
        assert (sorted(set(owned)) if name in ("k_proj", "v_proj") else owned) == list(range(size))
        assert all(getattr(part, whole) == Range(0, other) for part in slices)


def test_row_parallel_matrices_are_cut_by_columns():
    config = make_config()
    shard = make_plan(config, 2).shards[1]
    assert tensor_slice(config, shard, "layers.0.o_proj").columns == Range(1024, 2048)
    assert tensor_slice(config, shard, "layers.0.down_proj").columns == Range(4096, 8192)
    assert tensor_slice(config, shard, "layers.0.q_proj").rows == Range(1024, 2048)
    assert tensor_slice(config, shard, "layers.0.k_proj").rows == Range(256, 512)
    assert tensor_slice(config, shard, "lm_head").rows == Range(64128, 128256)


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_whole_everywhere(name):
    config = make_config()
    for shard in make_plan(config, 3).shards:
        part = tensor_slice(config, shard, name)
        assert part.axis is Axis.WHOLE
        assert (part.rows, part.columns) == (Range(0, 1), Range(0, *part.shape))


def test_unknown_tensor():
    config = make_config()
    with pytest.raises(KeyError, match=r"layers\.0\.w1"):
        tensor_slice(config, make_plan(config).shards[0], "layers.0.w1")


def test_eight_heads_over_three_nodes():
    assert [shard.kv_heads.size for shard in make_plan(make_config(), 3).shards] == [3, 3, 2]


def test_shares_weigh():
    shards = make_plan(make_config(), 3, [1, 2, 1]).shards
    assert [shard.kv_heads.size for shard in shards] == [2, 4, 2]
    assert [shard.ffn.size for shard in shards] == [2048, 4096, 2048]


def test_the_smallest_share_still_owns_a_unit_of_everything():
    shards = make_plan(make_config(), 3, [1000, 1e-6, 1e-6]).shards
    assert [shard.kv_heads.size for shard in shards] == [6, 1, 1]
    assert [shard.vocab.size for shard in shards] == [128256 - 64, 32, 32]


def heads_of(config: ModelConfig, world_size: int, shares=None) -> list[tuple[int, Range]]:
    """Number of query heads, and the KV heads that they use, of every node."""
    return [(shard.heads.size, shard.kv_heads) for shard in make_plan(config, world_size, shares).shards]


def test_small_heads_stay_together():
    config = make_config(num_kv_heads=4, group_size=1, head_dim=16)
    assert kv_heads_per_unit(config) == 2
    assert heads_of(config, 2) == [(2, Range(0, 2)), (2, Range(2, 4))]
    assert heads_of(config, 4) == [(2, Range(0, 2)), (0, Range(2, 2)), (2, Range(2, 4)), (0, Range(4, 4))]
    assert heads_of(config, 4, [1, 2, 1, 2]) == [(0, Range(0, 0)), (2, Range(0, 2)), (0, Range(2, 2)), (2, Range(2, 4))]


def test_a_unit_of_several_kv_heads_is_not_shared():
    config = make_config(num_kv_heads=2, group_size=3, head_dim=16)
    assert heads_of(config, 3) == [(6, Range(0, 2)), (0, Range(2, 2)), (0, Range(2, 2))]


def test_more_nodes_than_kv_heads_share_query_heads():
    config = make_config(num_kv_heads=2, group_size=4)
    assert heads_of(config, 4) == [(2, Range(0, 1)), (2, Range(0, 1)), (2, Range(1, 2)), (2, Range(1, 2))]
    assert heads_of(config, 3, [2, 1, 1]) == [(4, Range(0, 1)), (2, Range(1, 2)), (2, Range(1, 2))]
    assert heads_of(config, 3, [1, 3, 4]) == [(1, Range(0, 1)), (3, Range(0, 1)), (4, Range(1, 2))]
    assert [heads for heads, _ in heads_of(config, 5, [1, 1, 2, 2, 2])] == [1, 1, 2, 2, 2]


def test_nodes_beyond_the_query_heads_have_no_attention():
    config = make_config(num_kv_heads=1, group_size=2)
    assert heads_of(config, 3, [1, 2, 3]) == [(0, Range(0, 0)), (1, Range(0, 1)), (1, Range(0, 1))]
    assert heads_of(config, 3, [2, 1, 2]) == [(1, Range(0, 1)), (0, Range(0, 0)), (1, Range(0, 1))]
    assert heads_of(config, 3, [100, 1, 1]) == [(2, Range(0, 1)), (0, Range(1, 1)), (0, Range(1, 1))]
    shard = make_plan(config, 3).shards[2]
    assert (shard.heads.size, shard.ffn.size) == (0, 32 * 85)
    assert tensor_slice(config, shard, "layers.0.q_proj").rows.size == 0
    assert tensor_slice(config, shard, "layers.0.k_proj").rows.size == 0
    assert tensor_slice(config, shard, "layers.0.o_proj").columns.size == 0


def test_a_model_on_as_many_nodes_as_blocks():
    shards = make_plan(make_config(), 256).shards
    assert {shard.ffn.size for shard in shards} == {32}
    assert sum(shard.heads.size for shard in shards) == 32


@pytest.mark.parametrize("world_size", [0, -1, 257])
def test_too_many_nodes_say_what_is_possible(world_size):
    expected = rf"expected 1 to 256, .* 256 blocks of 32 FFN columns .*found {world_size}"
    with pytest.raises(UsageError, match=expected):
        make_plan(make_config(), world_size)


def test_the_scarcest_blocks_are_named():
    with pytest.raises(UsageError, match=r"1 to 3, .* 3 blocks of 32 FFN columns"):
        make_plan(make_config(ffn_units=3), 4)
    with pytest.raises(UsageError, match=r"1 to 2, .* 2 blocks of 32 vocabulary rows"):
        make_plan(make_config(vocab_size=33), 4)


@pytest.mark.parametrize("shares", [[1], [1, 0], [1, -1], [1, math.nan], [1, math.inf], [1, 1, 1], [1, "1"], []])
def test_bad_shares(shares):
    with pytest.raises(UsageError, match="expected 2 positive numbers"):
        make_plan(make_config(), 2, shares)


def test_different_plans_have_different_digests():
    config = make_config()
    digests = {make_plan(config, world_size).digest() for world_size in range(1, 17)}
    assert len(digests) == 16


def test_memory_plan_names_need_and_have():
    plan = MemoryPlan(weights=700 << 20, kv=(100 << 20) + 1, buffers=20 << 20)
    plan.check(plan.total, "never said")
    with pytest.raises(NotEnoughMemory, match=r"needs 821 MiB .*weights 700, KV 101, buffers 20.* 500 MiB are free; x"):
        plan.check(500 << 20, "x")
