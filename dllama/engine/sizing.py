"""How large a node is made: context, KV pages and buffers, settled and checked before anything is allocated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllama import _native
from dllama.config import DType, LayerSpec, ModelConfig
from dllama.errors import UsageError
from dllama.limits import DEFAULT_MAX_DRAFT, MOST_DRAFT
from dllama.plan import MemoryPlan, Plan, Shard, idle_bytes, node_name

PIECE_BYTES = 8 << 20  # of the model file at once while loading; two are in flight
IN_FLIGHT_BYTES = 56 << 20  # while a cluster is loaded: tiles on their way, rows of a tensor, pieces of slices
SLACK_BYTES = 32 << 20  # left free by a context that nobody asked for: what is free changes between two looks
LOGITS_BYTES = 16 << 20  # that one step gives to a caller who wants the logits of all positions
_DEFAULT_MAX_SEQ_LEN = 8192
_LEAST_MAX_SEQ_LEN = 256  # a context that nobody asked for is not made shorter than this
_MAX_SLOTS = 32  # sequences with pages at once: far above what one machine serves at a useful speed
_MAX_STEP_S = 3600
_NONE_ALLOWED = ("max_seq_len", "kv_tokens")
_LIMITS = {
    "num_threads": (1, 1024),
    "max_seq_len": (1, 1 << 24),
    "max_batch_tokens": (1, 4096),
    "kv_tokens": (1, 1 << 24),
    "max_draft": (0, MOST_DRAFT),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What may be set of a node.

    Attributes:
        num_threads: Compute threads.
        max_seq_len: Most tokens in a sequence, cut to the model's own; None: that, 8192 and what memory allows.
        max_batch_tokens: Tokens in one step.
        kv_type: Number type of keys and values, F16, F32 or Q80; None: F32 for F32 models, else F16.
        kv_tokens: Positions in the pool of KV pages that all sequences share; None: ``max_seq_len``.
        wire_type: Number type of activations between nodes; None: Q80 for quantized models, else F32.
        step_seconds: About how long a step with tokens of a prompt may last; None: as long as it takes.
        max_draft: Most tokens of a sequence that a step computes on a guess.

    Raises:
        UsageError: A value out of range.
    """

    num_threads: int = 1
    max_seq_len: int | None = None
    max_batch_tokens: int = 512
    kv_type: DType | None = None
    kv_tokens: int | None = None
    wire_type: DType | None = None
    step_seconds: float | None = None
    max_draft: int = DEFAULT_MAX_DRAFT

    def __post_init__(self) -> None:
        for name, (least, limit) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name in _NONE_ALLOWED:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
                raise UsageError(f"{name}: expected a whole number from {least} to {limit}, found {value!r:.80}")
        seconds = self.step_seconds
        if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds <= _MAX_STEP_S):
            raise UsageError(f"step_seconds: expected a number above 0, at most {_MAX_STEP_S}, found {seconds!r:.80}")
        _check_type("kv_type", self.kv_type, (DType.F16, DType.F32, DType.Q80))
        _check_type("wire_type", self.wire_type, (DType.F32, DType.F16, DType.Q80))

    def kv_type_for(self, config: ModelConfig) -> DType:
        """The type of keys and values, chosen or by default."""
        if self.kv_type is not None:
            return self.kv_type
        return DType.F32 if config.weight_type is DType.F32 else DType.F16

    def wire_type_for(self, config: ModelConfig) -> DType:
        """The type of activations between nodes, chosen or by default."""
        if self.wire_type is not None:
            return self.wire_type
        return DType.Q80 if config.weight_type.is_quantized else DType.F32


@dataclass(frozen=True, slots=True)
class NodeSize:
    """Sizes that are settled, equal on all ranks, and the memory that one rank needs for them.

    ``token_weights`` is how many bytes of its weights it reads for a token: all but the experts not chosen for it.
    """

    max_seq_len: int
    num_pages: int
    num_slots: int
    memory: MemoryPlan
    token_weights: int


def settle_size(config: ModelConfig, plan: Plan, rank: int, options: NodeOptions, available: int) -> NodeSize:
    """Choose context and KV pages so that ``rank`` fits ``available`` bytes, whatever the others have.

    Raises:
        NotEnoughMemory: It cannot fit; the text has need and have in MiB and what to change.
    """
    return _settle(config, plan, options, [rank], {rank: available}, ())[0]


def settle_sizes(
    config: ModelConfig, plan: Plan, options: NodeOptions, available: Sequence[int | None], names: Sequence[str] = ()
) -> list[NodeSize]:
    """Choose context and KV pages, the same for all nodes, so that each fits what it has.

    Args:
        config: A valid model config.
        plan: Who owns what.
        options: What is wanted; all nodes are taken to have the same number of threads.
        available: Free bytes of each rank; None: not known, and taken to be enough.
        names: What users call each rank; by default ``root``, ``worker 1`` and so on.

    Returns:
        The size of each rank.

    Raises:
        NotEnoughMemory: One cannot fit; the text names it, with need and have in MiB and what to change.
    """
    free = {rank: have for rank, have in enumerate(available) if have is not None}
    return _settle(config, plan, options, range(len(available)), free, names)


def max_logits(config: ModelConfig) -> int:
    """Most rows of logits that one sequence may ask of a step."""
    return max(1, LOGITS_BYTES // (4 * config.vocab_size))


def make_node_config(
    config: ModelConfig, plan: Plan, options: NodeOptions, max_seq_len: int, num_pages: int, num_slots: int
) -> _native.NodeConfig:
    """Say what the core must know: the same on every rank, but for ``options.num_threads``.

    Args:
        config: A valid model config.
        plan: Who owns what.
        options: What is wanted of the node.
        max_seq_len: The context in use, by which some rotary scalings are chosen.
        num_pages: KV pages.
        num_slots: Sequences that can have pages at once.
    """
    has_local_rope = any(layer.has_local_rope for layer in config.layers)
    return _native.NodeConfig(
        hidden_size=config.hidden_size,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_frequencies=config.rope_frequencies(max_seq_len),
        rope_factor=config.rope_scaling.attention_factor if config.rope_scaling else 1.0,
        local_rope_frequencies=config.rope_frequencies(max_seq_len, is_local=True) if has_local_rope else (),
        layers=[_layer_spec(layer) for layer in config.layers],
        activation=config.activation,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        norm_topk_prob=config.norm_topk_prob,
        embedding_multiplier=config.embedding_multiplier,
        attention_multiplier=config.attention_multiplier,
        residual_multiplier=config.residual_multiplier,
        logits_multiplier=config.logits_multiplier,
        attention_softcap=config.attention_softcap,
        logits_softcap=config.logits_softcap,
        weight_type=config.weight_type,
        q80_tensors=set(config.q80_tensors),
        kv_type=options.kv_type_for(config),
        wire_type=options.wire_type_for(config),
        shards=[_shard(shard) for shard in plan.shards],
        num_threads=options.num_threads,
        max_tokens=options.max_batch_tokens,
        max_rows=_max_rows(config, options, num_slots),
        num_pages=num_pages,
        num_slots=num_slots,
    )


def _layer_spec(layer: LayerSpec) -> _native.LayerSpec:
    return _native.LayerSpec(
        qk_norm=layer.qk_norm,
        has_qkv_bias=layer.has_qkv_bias,
        has_input_norms=layer.has_input_norms,
        has_output_norms=layer.has_output_norms,
        window=layer.window,
        has_local_rope=layer.has_local_rope,
        has_experts=layer.has_experts,
    )


def _shard(shard: Shard) -> _native.Shard:
    return _native.Shard(
        num_heads=shard.heads.size,
        num_kv_heads=shard.kv_heads.size,
        kv_head_begin=shard.kv_heads.begin,
        intermediate_size=shard.ffn.size,
        expert_intermediate_size=shard.expert_ffn.size,
        vocab_begin=shard.vocab.begin,
        vocab_end=shard.vocab.end,
    )


def _check_type(name: str, value: object, allowed: tuple[DType, ...]) -> None:
    if value is not None and not (isinstance(value, DType) and value in allowed):
        names = [dtype.name for dtype in allowed]
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        raise UsageError(f"{name}: expected {expected}, found {value!r:.80}")


def _settle(
    config: ModelConfig,
    plan: Plan,
    options: NodeOptions,
    ranks: Sequence[int],
    free: Mapping[int, int],
    names: Sequence[str],
) -> list[NodeSize]:
    """Give the sizes of ``ranks``, each of which fits what it has in ``free``, if it is there."""

    def sizes_for(kv_tokens: int, ranks: Sequence[int]) -> list[NodeSize]:
        return _sizes(config, plan, options, min(max_seq_len, kv_tokens), kv_tokens, {r: weights[r] for r in ranks})

    def lacks(kv_tokens: int) -> list[int]:
        """Bytes that each rank in ``known`` needs beyond what it has."""
        return [size.memory.total - free[rank] for size, rank in zip(sizes_for(kv_tokens, known), known, strict=True)]

    known = list(free)
    max_seq_len = min(config.max_seq_len, options.max_seq_len or _DEFAULT_MAX_SEQ_LEN)
    weights = _weight_sizes(config, plan, options, ranks)
    wanted = options.kv_tokens or max_seq_len
    sizes = sizes_for(wanted, ranks)
    if max(lacks(wanted), default=0) <= 0:
        return sizes
    fitting = bisect_right(range(1, wanted + 1), 0, key=lambda kv_tokens: max(lacks(kv_tokens)))
    if options.max_seq_len is None and options.kv_tokens is None and fitting >= _LEAST_MAX_SEQ_LEN:
        return sizes_for(fitting, ranks)
    lack = lacks(fitting + 1)
    rank = known[lack.index(max(lack))]  # the one that allows no more
    name = "" if len(plan.shards) == 1 else names[rank] if names else node_name(rank)
    sizes[ranks.index(rank)].memory.check(free[rank], _advice(fitting, options), name)
    return sizes


@dataclass(frozen=True, slots=True)
class _WeightSize:
    """Bytes of a rank's weights, and of those that it reads for a token: no context changes them."""

    total: int
    per_token: int


def _weight_sizes(
    config: ModelConfig, plan: Plan, options: NodeOptions, ranks: Sequence[int]
) -> dict[int, _WeightSize]:
    node = make_node_config(config, plan, options, max_seq_len=1, num_pages=1, num_slots=1)
    sizes = {rank: node.weight_bytes(rank) for rank in ranks}
    return {rank: _WeightSize(size, size - idle_bytes(config, plan.shards[rank])) for rank, size in sizes.items()}


def _sizes(
    config: ModelConfig,
    plan: Plan,
    options: NodeOptions,
    max_seq_len: int,
    kv_tokens: int,
    weights: Mapping[int, _WeightSize],
) -> list[NodeSize]:
    num_pages = -(-kv_tokens // _native.PAGE_SIZE)
    num_slots = min(_MAX_SLOTS, num_pages, options.max_batch_tokens)
    node = make_node_config(config, plan, options, max_seq_len, num_pages, num_slots)
    loading = IN_FLIGHT_BYTES if len(plan.shards) > 1 else 2 * PIECE_BYTES

    def size_of(rank: int, weight: _WeightSize) -> NodeSize:
        memory = MemoryPlan(weight.total, kv=node.kv_bytes(rank), buffers=node.buffer_bytes(rank) + loading)
        return NodeSize(max_seq_len, num_pages, num_slots, memory, weight.per_token)

    return [size_of(rank, weight) for rank, weight in weights.items()]


def _max_rows(config: ModelConfig, options: NodeOptions, num_slots: int) -> int:
    """Rows of logits of the largest step: all for a caller of ``logits``, one for each other sequence."""
    return min(options.max_batch_tokens, max_logits(config) + num_slots - 1)


def _advice(fitting: int, options: NodeOptions) -> str:
    """Say what to do in words for those who have flags and for those who have arguments."""
    if fitting < 1:
        return "free some, or use a smaller model"
    if options.kv_tokens:
        return f"it fits with room for {fitting} tokens"
    return f"it fits with a context of {fitting} tokens (max_seq_len)"
