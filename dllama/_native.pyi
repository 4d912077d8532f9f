"""The compiled core as Python sees it: the typed page of ``csrc/bindings``.

Only ``dllama.engine``, ``dllama.cluster``, ``dllama.formats.recode`` and ``dllama.version`` import it.
Calls that take long (steps, loading, recoding, sampling, waiting) release the GIL. Arrays must be C-contiguous with the dtype stated; anything out of
range raises ``ValueError`` before a step starts, and leaves the node usable.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]
I32Array = npt.NDArray[np.int32]
U8Array = npt.NDArray[np.uint8]

PAGE_SIZE: int  # positions in one KV page
WANT_LOGITS: int  # kinds of wants in a batch
WANT_SCORE: int
WANT_CANDIDATES: int
MAX_CANDIDATES: int  # that all queries of one step may ask for
MAX_QUERY_IDS: int  # that they may name

class UnsupportedIsaError(RuntimeError):
    """DLLAMA_ISA names a level that is unknown, not built, or missing in this CPU."""

class GroupFailedError(RuntimeError):
    """A link failed or the group was aborted."""

def build_info() -> dict[str, str]:
    """What was built: ``compiler``, ``commit`` and ``architecture``."""

def isa() -> str:
    """The instruction-set level in use. Raises UnsupportedIsaError if DLLAMA_ISA cannot be had."""

def supported_isas() -> list[str]:
    """Levels that DLLAMA_ISA may name on this CPU, best first."""

def read_bandwidth(num_bytes: int, num_threads: int, seconds: float) -> float:
    """Best read rate of memory in bytes per second, over a buffer of ``num_bytes`` in huge pages."""

def quantize(values: F32Array, dtype: int) -> U8Array:
    """Q40 or Q80 blocks of float32 values (a multiple of 32), by the level in use; bit-exact on every level."""

def dequantize(blocks: U8Array, dtype: int) -> F32Array:
    """Values of Q40 or Q80 blocks."""

def recode(numbers: U8Array, number_type: int, dtype: int, out: U8Array) -> float:
    """Write numbers of checkpoints, the bytes of F32 (0), F16 (1) or BF16 (2), as ``dtype`` into ``out``.

    Gives their largest magnitude, NaN if one is none: the caller refuses what ``dtype`` cannot hold. ``out`` has room for
    just these numbers, which fill blocks of 32 if ``dtype`` has blocks.
    """

def recode_blocks(blocks: U8Array, ggml_type: int, dtype: int, out: U8Array) -> float:
    """Do the same with blocks of llama.cpp's types Q4_1 (3), Q5_0 (6), Q5_1 (7), Q2_K to Q6_K (10 to 14)."""

def argmax(logits: F32Array) -> int:
    """Index of the first largest value of ``[vocab_size]``. ValueError if the logits are not finite numbers."""

def log_sum_exp(logits: F32Array) -> float:
    """log(sum(exp(logits))) of ``[vocab_size]``."""

def sample(logits: F32Array, temperature: float, top_k: int, top_p: float, min_p: float, coin: float) -> int:
    """Draw a token from softmax(logits / temperature) cut by top-k, then top-p, then min-p, with ``0 <= coin < 1``.

    temperature > 0; top_k 0, top_p outside (0, 1) and min_p 0 switch their filter off. Without filters the walk is in
    token order; otherwise in descending probability: the steps of distributed-llama's sampler, with sums in double.
    ValueError if the logits are not finite numbers (negative infinity is one).
    """

def sample_best(
    logits: F32Array,
    ids: I32Array,
    total: float,
    n: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    coin: float,
) -> int | None:
    """The draw of ``sample`` from the largest of ``n`` logits alone; None if the filters may reach beyond them.

    logits: descending, equals by id; ``ids`` are theirs. total: sum of exp((x - logits[0]) / temperature) over all
    ``n``. ValueError if that, or the first logit, is not a finite number.
    """

class Group:
    """This rank's links to all others. World size 1 needs no links, and makes every exchange a no-op."""

    def __init__(self, rank: int = 0, fds: Sequence[int] = (), names: Sequence[str] = ()) -> None:
        """Take over links.

        fds: connected stream sockets to every other rank, ascending by rank; duplicated, the caller's stay open.
        names: of the same ranks, as error texts begin with them ("worker 10.0.0.2:9999"); empty: "rank N".
        """
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def failed_rank(self) -> int | None:
        """The rank whose link failed first; None if all is well, or ``abort`` came first. For any thread."""
    def abort(self, reason: str) -> None:
        """End any wait in this group now, from any thread: the running step raises GroupFailedError(reason)."""

class LayerSpec:
    """The features of one layer: ``dllama.config.LayerSpec``."""

    def __init__(
        self,
        *,
        qk_norm: int = 0,
        has_qkv_bias: bool = False,
        has_input_norms: bool = True,
        has_output_norms: bool = False,
        window: int = 0,
        has_local_rope: bool = False,
        has_experts: bool = False,
    ) -> None:
        """A layer without input norms must have output norms."""

class Shard:
    """What one rank owns, in whole units."""

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        intermediate_size: int,
        vocab_begin: int,
        vocab_end: int,
        kv_head_begin: int = 0,
        expert_intermediate_size: int = 0,
    ) -> None:
        """``kv_head_begin``: the first of its KV heads, counted over the model."""

class NodeConfig:
    """All that the core must know of the model and of this node."""

    def __init__(
        self,
        *,
        hidden_size: int,
        head_dim: int,
        vocab_size: int,
        rms_norm_eps: float,
        rope_frequencies: F32Array,
        rope_factor: float = 1.0,
        local_rope_frequencies: F32Array | tuple[()] = (),
        layers: Sequence[LayerSpec],
        activation: int = 0,
        num_experts: int = 0,
        num_experts_per_tok: int = 0,
        norm_topk_prob: bool = True,
        embedding_multiplier: float = 1.0,
        attention_multiplier: float = 0.0,
        residual_multiplier: float = 1.0,
        logits_multiplier: float = 1.0,
        attention_softcap: float = 0.0,
        logits_softcap: float = 0.0,
        weight_type: int,
        q80_tensors: AbstractSet[str] = frozenset(),
        kv_type: int,
        wire_type: int,
        shards: Sequence[Shard],
        num_threads: int,
        max_tokens: int,
        max_rows: int,
        num_pages: int,
        num_slots: int,
    ) -> None:
        """What ``dllama.config.ModelConfig`` has too is explained there.

        ``rope_frequencies``: angle per position of each rotated pair, ``rope_factor`` multiplies their cosines and
        sines. ``local_rope_frequencies``: the same of layers with ``has_local_rope``, without a factor.
        ``kv_type``: DType F16, F32 or Q80. ``wire_type``: DType F32, F16 or Q80.
        ``shards``: one per rank, the same list on every rank. ``max_tokens``: tokens in one step.
        ``max_rows``: rows of logits and candidates that one step may want. ``num_pages``: KV pages of each node;
        ``num_slots``: sequences that can have pages at once. All but ``num_threads`` is equal on all ranks.
        """
    def weight_bytes(self, rank: int) -> int:
        """Bytes of packed weights of ``rank``."""
    def kv_bytes(self, rank: int) -> int:
        """Bytes of the KV pages of ``rank``."""
    def buffer_bytes(self, rank: int) -> int:
        """Most bytes that ``rank`` needs beside these: activations, logits, what a step asks and is answered."""

class CandidateQuery:
    """What is asked of a row of logits instead of the row."""

    def __init__(self, count: int, limit: int, temperature: float, ids: I32Array) -> None:
        """Candidates are the tokens below ``limit`` that are not among ``ids``.

        count: best candidates wanted, at least 1. temperature: above 0, of their sum of exponentials.
        ids: ascending, token ids whose logits are wanted as they are.
        """

class Candidates:
    """What the slices of a row of logits, on all nodes, say of it."""

    ids: I32Array  # [m] the best candidates, best first, equals by id; at least ``count`` if there are as many
    logits: F32Array  # [m] of these
    values: F32Array  # logits of the query's ``ids``
    max: float  # of all candidates' logits; -inf if there is none
    sum_exp: float  # of exp((logit - max) / temperature) over all candidates
    log_sum_exp: float  # log(sum(exp(logits))) of the whole vocabulary

class StepResult:
    """What a step was asked for. The node's next step overwrites the logits; copy what must stay."""

    logits: F32Array  # [number of WANT_LOGITS, vocab_size], in the order of the wants; rows contiguous
    candidates: list[Candidates]  # one per query, in their order
    scores: F32Array  # [number of WANT_SCORE], log-probability of the token given in the want

class Node:
    """One rank: its packed slices, KV pages and threads. Not for use by two threads at once, but for ``counters``."""

    def __init__(self, config: NodeConfig, group: Group) -> None:
        """Reserve all memory and start the threads. Raises MemoryError if the system refuses."""
    @property
    def world_size(self) -> int:
        """Nodes of the group."""
    def weight_names(self) -> list[str]:
        """Every tensor ``load_rows`` must fill, e.g. ``"layers.0.q_proj"``; no ``embed_tokens``.

        None of the attention's on a rank without heads.
        """
    def weight_shape(self, name: str) -> tuple[int, ...]:
        """This rank's ``(rows, cols)`` of a matrix, ``(n,)`` of a norm."""
    def load_rows(self, name: str, first_row: int, rows: U8Array) -> None:
        """Pack canonical rows ``[n, row_bytes]`` of this rank's slice; ``first_row`` a multiple of 64 (norms: one row)."""
    def step(
        self,
        embeddings: F32Array,
        spans: I32Array,
        pages: I32Array,
        wants: I32Array,
        queries: Sequence[CandidateQuery] = (),
    ) -> StepResult:
        """Run one step on every node of the group; call it on rank 0 only.

        embeddings: ``[T, hidden_size]``, T <= max_tokens, rows of all spans in order.
        spans: ``[S, 3]`` of (slot, first position, number of tokens); a span attends to its slot's earlier positions.
        pages: ``[P, 3]`` of (slot, page index, page id), written into the page tables before the step.
        wants: ``[W, 3]`` of (row of embeddings, kind, value), one per row, ascending; the value is the token id of a
        WANT_SCORE, and of the k-th WANT_CANDIDATES k, the index of its query.
        """
    def full_logits(self, index: int) -> F32Array:
        """Rank 0: the whole row ``[vocab_size]`` that query ``index`` of the last step was about."""
    def draw(self, index: int, coin: float) -> tuple[int, float]:
        """Rank 0: a draw from all candidates of query ``index`` of the last step, and its logit.

        As ``sample`` without filters: the walk is in token order, ``0 <= coin < 1``. ValueError if the logits are not
        finite numbers.
        """
    scatter_from: int
    """Rank 0: steps of at least so many tokens exchange their sums by reduce-scatter and all-gather, others directly.

    0, the default: all directly. Results are the same, bit for bit. ValueError, as from ``probe``, where a model norms
    its sums (LayerSpec.has_output_norms): those are always exchanged directly.
    """
    def probe(self, num_tokens: int, scatter: bool) -> float:
        """Rank 0: seconds that one exchange of a layer takes on all nodes for ``num_tokens`` (1 to max_tokens)."""
    def time_products(self, num_tokens: int) -> float:
        """Seconds that this rank's products of a step of ``num_tokens`` (1 to max_tokens) take by themselves.

        All matrices of all layers, without ``lm_head``; for measuring. Disturbs no sequence.
        """
    def follow(self) -> None:
        """Serve rank 0's steps until it stops the group. Raises GroupFailedError if it is lost."""
    def stop(self) -> None:
        """Rank 0: end ``follow`` on every other rank."""
    def counters(self) -> dict[str, int]:
        """Since the start: steps, tokens, compute_us, sync_us, sent_bytes, received_bytes.

        Bytes are all that went over the links; sync_us is time in exchanges, waiting for peers included, but not a
        follower's wait for the next step.
        """
