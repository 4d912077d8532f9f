"""The heart of the engine: one step after the other, over all sequences that want something.

Schedules, computes on every node of the group, and hands each result to the task it is for. Knows no text and no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from dllama import _native
from dllama.engine.batch import Batch, Want, want_rows
from dllama.engine.params import Output
from dllama.engine.rows import Nodes, RowQuery, SlicedRow
from dllama.engine.scheduler import Scheduler
from dllama.engine.sequence import Sequence as TokenSequence
from dllama.engine.tasks import Result, Task
from dllama.errors import BadFile, DllamaError

F32Array = npt.NDArray[np.float32]
Embed = Callable[[Sequence[int]], F32Array]  # token ids -> [len, hidden_size]
Explain = Callable[[Exception], DllamaError]


class EngineStopped(DllamaError):
    """The engine was closed, or a step failed for good: the model must be loaded again."""


class Executor:
    """Runs tasks on a node.

    Args:
        node: Rank 0 of a group, weights loaded.
        scheduler: Chooses what runs; its pool has the node's pages and slots.
        embed: Gives the embedding rows of tokens.
        explain: Turns a failed exchange into an error that names the node it is about; None: there is one node.
    """

    def __init__(self, node: _native.Node, scheduler: Scheduler, embed: Embed, explain: Explain | None = None) -> None:
        self._node: _native.Node | None = node
        self._scheduler, self._embed, self._explain = scheduler, embed, explain
        self._is_alone = node.world_size == 1  # then whole rows of logits are there, and nothing need be asked
        self._tasks: dict[TokenSequence, Task] = {}
        self._reason = ""  # why it stopped

    @property
    def node(self) -> _native.Node:
        """The node. Raises EngineStopped if it is gone."""
        self.check()
        assert self._node is not None
        return self._node

    def check(self) -> None:
        """Raise EngineStopped if the node is gone."""
        if self._node is None:
            raise EngineStopped(f"the engine has stopped: {self._reason}; load the model again")

    @property
    def has_work(self) -> bool:
        """Whether a task is not finished."""
        return bool(self._tasks)

    def add(self, task: Task) -> None:
        """Queue a task."""
        with self._whole():
            self._tasks[task.sequence] = task
            self._scheduler.add(task.sequence)

    def remove(self, task: Task) -> None:
        """Forget a task, finished or not; one that is not known is left alone."""
        with self._whole():
            if self._tasks.pop(task.sequence, None):
                self._scheduler.remove(task.sequence)

    def step(self, deliver: Callable[[Output], None]) -> None:
        """Run one step and deliver what the tasks made of its results; nothing if there is no task.

        A KeyboardInterrupt while the nodes compute leaves everything as it was, and the step is run again. One that
        comes in the short time in which results are handed out stops the executor.

        Raises:
            EngineStopped: The step failed, or the executor stopped before.
            WorkerLost, ClusterError: Another node is the reason.
            BadFile: The embeddings can no longer be read; every later call raises EngineStopped.
        """
        self.check()
        with self._whole():
            batch = self._scheduler.next_batch()
        if not batch.spans:
            return
        begin = time.perf_counter()  # what is done here for each token of a draft is part of its price
        wants = batch.wants
        queries = self._queries(wants)
        result = self._compute(batch, wants, queries)
        self._scheduler.note(batch, time.perf_counter() - begin)
        with self._whole(), self._explained():
            for want, value in _matched(wants, queries, result, self):
                task = self._tasks[want.sequence]
                if not want.is_true or task.is_finished:  # behind a wrong draft, or behind the end
                    continue
                if output := task.receive(want.position, value):
                    deliver(output)
                want.sequence.first_wanted = want.position + 1
            self._scheduler.commit(batch)
            self._remove_finished(wants)

    def full_logits(self, index: int) -> F32Array:
        """Give the whole row of one query of the last step, from all nodes."""
        return self.node.full_logits(index)

    def draw(self, index: int, coin: float) -> tuple[int, float]:
        """Draw a token and its logit from the whole row of one query of the last step."""
        return self.node.draw(index, coin)

    def drafts(self) -> dict[str, int]:
        """Give the tokens of drafts so far, and those of them that sequences gained."""
        return {"drafted": self._scheduler.num_drafted, "accepted": self._scheduler.num_accepted}

    def stop(self, reason: str) -> None:
        """Release the node and the other ranks, and refuse all further work for ``reason``."""
        node, self._node = self._node, None
        if node is not None:
            self._reason = reason
            self._tasks.clear()
            with suppress(_native.GroupFailedError):  # they are gone already
                node.stop()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Stop if what is done here is not done to its end, as when Ctrl-C comes: no half of it can be relied on."""
        try:
            yield
        except BaseException as error:
            self.stop(str(error) or "it was interrupted between two steps")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what it means for the engine if a result cannot be used."""
        try:
            yield
        except _native.GroupFailedError as error:  # lost while a sampler asked for more
            raise self._failed(error) from error
        except ValueError as error:  # logits that are no numbers: the weights are broken, and so is every later step
            cause = "is the model file damaged" if self._is_alone else "is the model file or a node damaged"
            raise EngineStopped(f"{error}; {cause}?") from error

    def _queries(self, wants: list[Want]) -> dict[Want, RowQuery]:
        """What the tasks ask of rows that lie on several nodes."""
        if self._is_alone:
            return {}
        rows = [want for want in wants if want.sequence.targets is None]
        return {want: query for want in rows if (query := self._tasks[want.sequence].query(want.draft))}

    def _remove_finished(self, wants: list[Want]) -> None:
        for want in wants:
            task = self._tasks.get(want.sequence)
            if task and task.is_finished:
                self.remove(task)

    def _compute(self, batch: Batch, wants: list[Want], queries: dict[Want, RowQuery]) -> _native.StepResult:
        try:
            rows, asked = want_rows(wants, queries), [query.to_native() for query in queries.values()]
            embeddings = self._embed(batch.token_ids)
            # No name for the node: who keeps the error keeps what has names in its frames, and so all weights.
            return self.node.step(embeddings, batch.span_rows, self._scheduler.page_changes, rows, asked)
        except BadFile as error:  # cut while in use: no later step can do better
            self.stop(f"a step failed: {error}")
            raise
        except Exception as error:  # whatever it was, the nodes may no longer agree on what is in their pages
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> DllamaError:
        """Stop for good, and make the error that says why: the node that was lost, if one was."""
        lost = self._explain(error) if self._explain and isinstance(error, _native.GroupFailedError) else None
        self.stop(f"a step failed: {lost or error}")
        return lost or EngineStopped(f"a step failed: {error}; load the model again")


def _matched(
    wants: list[Want], queries: dict[Want, RowQuery], result: _native.StepResult, nodes: Nodes
) -> Iterator[tuple[Want, Result]]:
    """Pair each want with its result."""
    logits, scores = iter(result.logits), iter(result.scores)
    sliced = enumerate(result.candidates)
    for want in wants:
        if query := queries.get(want):
            index, candidates = next(sliced)
            yield want, SlicedRow(query, candidates, nodes, index)
        else:
            yield want, next(logits if want.sequence.targets is None else scores)
