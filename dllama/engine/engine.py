"""The engine: a loaded model, the requests it works on, and the loop that turns steps into tokens.

Knows no socket and no terminal. What a step does is in ``executor``; what becomes of its logits is in ``tasks``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import count
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from dllama import _native, machine
from dllama.config import DType, ModelConfig
from dllama.engine.drafts import Drafter
from dllama.engine.executor import Executor
from dllama.engine.loading import Progress
from dllama.engine.opening import NodeProgress, join, open_nodes
from dllama.engine.pages import PagePool
from dllama.engine.params import Output, SamplingParams
from dllama.engine.prompts import check_length, check_path, check_sampling, open_tokenizer, to_token_ids
from dllama.engine.scheduler import Scheduler
from dllama.engine.sequence import Sequence as TokenSequence
from dllama.engine.sizing import NodeOptions, NodeSize, max_logits
from dllama.engine.tasks import Collection, Generation
from dllama.errors import DllamaError, UsageError
from dllama.limits import DEFAULT_MAX_DRAFT
from dllama.plan import MemoryPlan, node_name

if TYPE_CHECKING:
    from dllama.cluster import Cluster
    from dllama.formats.source import ModelSource
    from dllama.text.tokenizer import Tokenizer

F32Array = npt.NDArray[np.float32]
FilePath = str | PathLike[str]
Prompt = str | Sequence[int]

_DEFAULT_SAMPLING = SamplingParams()


class Engine:
    """A loaded model and the requests it is working on. For one thread at a time.

    Attributes:
        config: The model.
        tokenizer: Its tokenizer, if one was given.
        options: What was asked for at loading.
        max_seq_len: Most tokens in a sequence, prompt included.
        memory: Bytes that this node was given.
        token_weights: Bytes of weights that this node reads for a token, of experts those that it uses.
    """

    def __init__(
        self,
        node: _native.Node,
        file: ModelSource,
        tokenizer: Tokenizer | None,
        options: NodeOptions,
        size: NodeSize,
        cluster: Cluster | None = None,
    ) -> None:
        """Take over a node whose weights are loaded, the open file that its embeddings come from, and its cluster.

        Use ``Engine.load``; this is for those who make nodes themselves.
        """
        self.config: ModelConfig = file.config
        self.tokenizer, self.options = tokenizer, options
        self.max_seq_len: int = size.max_seq_len
        self.memory: MemoryPlan = size.memory
        self.token_weights: int = size.token_weights
        pool = PagePool(size.num_pages, size.num_slots, _native.PAGE_SIZE)
        scheduler = Scheduler(pool, options.max_batch_tokens, max_logits(self.config), options.step_seconds)
        self._executor = Executor(node, scheduler, file.embedding_rows, self._lost if cluster else None)
        self._file, self._cluster = file, cluster
        self._counted = node.counters()  # before there was work: a cluster measures how to exchange
        self._requests: dict[int, Generation] = {}
        self._ready: list[Output] = []  # for step()
        self._inboxes: dict[int, list[Output]] = {}  # for generate(), by request
        self._ids = count()

    @classmethod
    def load(
        cls,
        model: FilePath,
        tokenizer: FilePath | Tokenizer | None = None,
        *,
        num_threads: int | None = None,
        max_seq_len: int | None = None,
        max_batch_tokens: int = 512,
        weight_type: DType | None = None,
        kv_type: DType | None = None,
        kv_tokens: int | None = None,
        step_seconds: float | None = None,
        max_draft: int = DEFAULT_MAX_DRAFT,
        workers: Sequence[str] | Cluster | None = None,
        shares: Sequence[float] | None = None,
        key_file: FilePath | None = None,
        wire_type: DType | None = None,
        progress: Progress | None = None,
        node_progress: NodeProgress | None = None,
    ) -> Self:
        """Load a model into memory, here or shared out among this machine and others.

        Args:
            model: A ``.m`` or ``.gguf`` file, or the folder of a Hugging Face model. It stays open: embedding rows are
                read when they are needed.
            tokenizer: A tokenizer file, a folder with one, or a Tokenizer; None: prompts are token ids and outputs have
                no text.
            num_threads: Compute threads; None: the physical cores that this process may use.
            max_seq_len: Most tokens in a sequence, cut to the model's own; None: that, 8192, or what memory allows.
            max_batch_tokens: Most tokens in one step.
            weight_type: What the matrices of a Hugging Face folder become: ``DType.Q40``, ``Q80``, ``F16`` or ``F32``;
                None: Q40. Files have their own.
            kv_type: ``DType.F16``, ``F32`` or ``Q80`` for keys and values, the last in half of F16's memory; None:
                F32 for F32 models, else F16.
            kv_tokens: Positions that all sequences share, those that ended and may be continued too; None:
                ``max_seq_len``. No sequence can be longer.
            step_seconds: About how long a step that reads a prompt may last, and so a ``cancel`` wait; shorter steps
                read a prompt a little slower. None: as long as ``max_batch_tokens`` take.
            max_draft: Most tokens of a sequence that a step computes on a guess from what the sequence said before
                (prompt look-up), as far as that is faster; the results are the same. 0: none.
            workers: Addresses ``"host:port"`` of machines that run ``dllama worker``; None: this machine alone.
            shares: Weight of each node, this machine first; None: equal.
            key_file: The cluster's key; None: the one in ``DLLAMA_CLUSTER_KEY``, or none.
            wire_type: ``DType.Q80``, ``F16`` or ``F32`` for activations between nodes; None: Q80 for quantized models,
                else F32.
            progress: Called with (bytes done, bytes in all) while this machine's weights are loaded.
            node_progress: Called with (name of a node, bytes done, bytes in all) while a cluster's are; from any
                thread.

        Raises:
            ClusterError: A worker cannot be reached, or used. WorkerLost: One went away meanwhile.
            UsageError: An option out of range, no such file, or a tokenizer of another model.
            BadFile: A file that is not what it should be; UnsupportedModel: a model that dllama cannot run.
            NotEnoughMemory: With need and have in MiB; nothing was allocated.
        """
        from dllama.formats.open_model import open_model

        check_path("model", model)
        if progress is not None and not callable(progress):
            raise UsageError(f"progress: expected a function, found {progress!r:.80}")
        options = NodeOptions(
            num_threads=machine.physical_cores() if num_threads is None else num_threads,
            max_seq_len=max_seq_len,
            max_batch_tokens=max_batch_tokens,
            kv_type=kv_type,
            kv_tokens=kv_tokens,
            wire_type=wire_type,
            step_seconds=step_seconds,
            max_draft=max_draft,
        )
        file = open_model(model, weight_type)
        try:
            text = open_tokenizer(tokenizer, file.config)
            nodes = open_nodes(file, options, join(workers, shares, key_file), progress, node_progress)
        except BaseException:
            file.close()
            raise
        return cls(nodes.root, file, text, options, nodes.size, nodes.cluster)

    @property
    def num_threads(self) -> int:
        """Compute threads of this node."""
        return self.options.num_threads

    @property
    def kv_type(self) -> DType:
        """Number type of keys and values."""
        return self.options.kv_type_for(self.config)

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has something to do or to give."""
        return self._executor.has_work or bool(self._ready)

    def add(self, prompt: Prompt, sampling: SamplingParams = _DEFAULT_SAMPLING) -> int:
        """Queue a request.

        Args:
            prompt: Text, or token ids that are used as they are.
            sampling: How to choose tokens and when to end.

        Returns:
            The request's id, which its outputs carry.

        Raises:
            ContextFull: The prompt leaves no room for a single token.
            UsageError: An empty prompt, token ids outside the vocabulary, or text or stop strings without a tokenizer.
            EngineStopped: A step failed before, or the engine is closed.
        """
        check_sampling(sampling, self.tokenizer, self.config)
        sequence = self._sequence(prompt, longest=self.max_seq_len - 1)
        num_prompt = len(sequence.token_ids)
        sequence.first_wanted = num_prompt - 1
        sequence.max_len = min(self.max_seq_len, num_prompt + (sampling.max_tokens or self.max_seq_len))
        sequence.drafter = Drafter(self.options.max_draft) if self.options.max_draft else None
        request = Generation(sequence, sampling, self.config.vocab_size, self.tokenizer)
        self._requests[sequence.request_id] = request
        self._executor.add(request)
        return sequence.request_id

    def step(self) -> list[Output]:
        """Run one step for all requests together and give their new tokens.

        Returns:
            One output for each token that a request got: one, several if guesses were right (``max_draft``), or none
            for prompts that need more steps; an empty list if there is nothing to do. Outputs of ``generate`` go to its
            iterator, not here.

        Raises:
            EngineStopped: The step failed, or one before, or the engine is closed.
            BadFile: The model file was changed while in use. The engine has stopped: later calls say EngineStopped.
        """
        if not self._ready:
            self._advance()
        ready, self._ready = self._ready, []
        return ready

    def cancel(self, request_id: int) -> None:
        """End a request. Its last output has no token and says ``"cancelled"``; a finished request is left alone."""
        if request := self._requests.get(request_id):
            self._executor.remove(request)
            self._deliver(request.cancel())

    def generate(self, prompt: Prompt, sampling: SamplingParams = _DEFAULT_SAMPLING) -> Generator[Output, None, None]:
        """Give the tokens that follow a prompt as they come; closing the iterator early cancels the request.

        Other requests advance meanwhile, so several iterators and ``step`` can take turns. Arguments are those of
        ``add``; the first ``next`` starts the request.

        Raises:
            ContextFull, UsageError: As ``add``.
            EngineStopped, BadFile: As ``step``.
        """
        request_id = self.add(prompt, sampling)
        inbox = self._inboxes[request_id] = []
        try:
            while not (inbox and inbox[-1].finish_reason):
                inbox.clear()
                self._advance()  # first the prompt, chunk by chunk; then token by token
                yield from inbox
        finally:
            self._drop(request_id)

    def logits(self, token_ids: Sequence[int]) -> F32Array:
        """Compute the logits after each token, float32 ``[len(token_ids), vocab_size]``.

        Raises:
            ContextFull: More tokens than the context.
            UsageError: No tokens, or ids outside the vocabulary.
            EngineStopped, BadFile: As ``step``.
        """
        sequence = self._sequence(token_ids, longest=self.max_seq_len)
        return self._collect(sequence, np.empty((len(sequence.token_ids), self.config.vocab_size), np.float32))

    def score(self, token_ids: Sequence[int]) -> F32Array:
        """Compute the log-probability of each token but the first after those before it, float32 ``[len - 1]``.

        No logits are held.

        Raises:
            ContextFull: More tokens than the context.
            UsageError: No tokens, or ids outside the vocabulary.
            EngineStopped, BadFile: As ``step``.
        """
        sequence = self._sequence(token_ids, longest=self.max_seq_len)
        sequence.targets = sequence.token_ids[1:]
        del sequence.token_ids[-1]
        return self._collect(sequence, np.empty(len(sequence.targets), np.float32))

    def check(self) -> None:
        """Raise EngineStopped if a step has failed, or the engine is closed."""
        self._executor.check()

    def counters(self) -> dict[str, int]:
        """Give the node's steps, tokens, compute_us, sync_us, sent_bytes and received_bytes since it was loaded."""
        return {name: value - self._counted[name] for name, value in self._executor.node.counters().items()}

    def drafts(self) -> dict[str, int]:
        """Give the tokens that were ``drafted`` since loading, and those of them that were ``accepted``."""
        return self._executor.drafts()

    def nodes(self) -> list[dict[str, int | str]]:
        """Give the counters of every node, by rank, each with its ``name``; workers are asked for theirs."""
        others = self._cluster.counters() if self._cluster else []
        names = self._cluster.names if self._cluster else [node_name(0)]
        return [{"name": name, **counters} for name, counters in zip(names, [self.counters(), *others], strict=True)]

    def close(self) -> None:
        """End all requests, free the memory, here and on workers, and close the file; a second call does nothing."""
        self._executor.stop("it was closed")
        if self._cluster is not None:
            self._cluster.close()
        self._file.close()

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()

    def _lost(self, error: Exception) -> DllamaError:
        """Say which node a failed exchange is about, and let the other workers go."""
        assert self._cluster is not None
        why = self._cluster.explain(error)
        self._cluster.close()
        return why

    def _advance(self) -> None:
        """Run one step."""
        self._executor.step(self._deliver)

    def _deliver(self, output: Output) -> None:
        """Put an output where its reader looks."""
        self._inboxes.get(output.request_id, self._ready).append(output)
        if output.finish_reason:
            del self._requests[output.request_id]

    def _drop(self, request_id: int) -> None:
        """Forget a request and whatever it still had to say."""
        del self._inboxes[request_id]
        if request := self._requests.pop(request_id, None):
            self._executor.remove(request)

    def _sequence(self, prompt: Prompt, longest: int) -> TokenSequence:
        """Make a sequence of which every result is wanted."""
        self._executor.check()  # a stopped engine says so before it judges a prompt
        token_ids = to_token_ids(prompt, self.tokenizer, self.config)
        check_length(len(token_ids), longest)
        return TokenSequence(next(self._ids), token_ids, max_len=len(token_ids))

    def _collect(self, sequence: TokenSequence, out: F32Array) -> F32Array:
        """Fill ``out`` with the results of a sequence, among whatever else is running."""
        if not out.size:
            return out
        task = Collection(sequence, out)
        self._executor.add(task)
        try:
            while not task.is_finished:
                self._advance()
        finally:
            self._executor.remove(task)
        return out
