"""A cluster on this machine for ``launch.py``: workers that live no longer than it, and their root before the user.

Standard library only. A worker ends with its standard input, a pipe from here, so none outlives this program however
that dies. Workers have sessions of their own: keys of the terminal reach the root alone, which needs them to the end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dllama import machine
from dllama.errors import ClusterError
from dllama.hub import checkout

_START_S = 60.0  # for all workers to listen; a loaded small board takes its time
_END_S = 0.7  # for all workers to end by themselves
_LOOK_S = 0.02
_SHOWN_BYTES = 1 << 16  # of what a worker has said
_LISTENING = re.compile(r"^Listening on (127\.0\.0\.1:\d+)\.\.\.$", re.MULTILINE)


def run_nodes(command: list[str], nodes: int) -> int:
    """Run a command of dllama as the root of ``nodes`` nodes on this machine.

    Args:
        command: The program, its command and its flags.
        nodes: How many nodes, the root included.

    Returns:
        The root's exit code, as a shell gives it.

    Raises:
        ClusterError: A worker did not start, or has ended before its root failed.
    """
    if nodes == 1:
        return run_in_front(command)
    cores = machine.physical_cores()
    slow = f": {nodes} nodes take turns on {cores} cores, which is slow" if nodes > cores else ""
    print(f"⭕ Starting {nodes - 1} worker{'s' if nodes > 2 else ''} on this machine{slow}", flush=True)
    threads = max(1, cores // nodes)
    with _local_workers(nodes - 1, _thread_flags("worker", threads)) as workers:
        # Not as a flag: a chat that says how to go on repeats its flags, and these workers are gone by then.
        addresses = {"DLLAMA_WORKERS": " ".join(worker.address for worker in workers)}
        status = run_in_front([*command, *_thread_flags(command[1], threads)], addresses)
        ended = [worker.trouble() for worker in workers if worker.is_over()]
    if status and ended:
        error = ClusterError(ended[0])
        error.exit_code = status
        raise error
    return status


def _thread_flags(command: str, threads: int) -> list[str]:
    """Give a command its threads, unless the user's settings do."""
    from dllama.cli import config_file, settings

    is_set = settings.from_environment("nthreads") or config_file.load().find(command, "nthreads")
    return [] if is_set else ["--nthreads", str(threads)]


def run_in_front(command: list[str], more: dict[str, str] | None = None) -> int:
    """Run a program in this one's place before the user, with ``more`` in its environment; give its exit code.

    The code is a shell's. The terminal's signals reach the program by themselves; those sent to this process alone are
    passed on.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, as some parents have it, it would never come
    passed = {number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if _is_heeded(number)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed, signal.SIGCHLD})
    try:
        sys.stdout.flush()
        pid = os.posix_spawn(command[0], command, {**os.environ, **(more or {})}, setsigmask=before)
        while not (status := _status_of(pid)):
            info = signal.sigwaitinfo({*passed, signal.SIGCHLD})
            if info.si_signo != signal.SIGCHLD and info.si_code <= 0:  # a process has sent it, not the kernel
                with suppress(ProcessLookupError):
                    os.kill(pid, info.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _exit_code(os.waitstatus_to_exitcode(status[0]))


def _exit_code(code: int) -> int:
    """Write an exit code as a shell does: 137 for SIGKILL, not -9."""
    return code if code >= 0 else 128 - code


def _is_heeded(number: signal.Signals) -> bool:
    return signal.getsignal(number) != signal.SIG_IGN


def _status_of(pid: int) -> tuple[int] | None:
    """Give the wait status of a process that has ended."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return (status,) if done else None


@contextmanager
def _local_workers(count: int, flags: list[str]) -> Iterator[list[LocalWorker]]:
    """Start workers, wait until all listen, and end them."""
    workers: list[LocalWorker] = []
    try:
        for _ in range(count):  # if one fails, those before it are ended
            workers.append(LocalWorker(flags))  # noqa: PERF401
        deadline = time.monotonic() + _START_S
        for worker in workers:
            worker.await_address(deadline)
        yield workers
    finally:
        for worker in workers:
            worker.release()
        deadline = time.monotonic() + _END_S
        for worker in workers:
            worker.end(deadline)


class LocalWorker:
    """A worker on a free port of this machine, without a cache: the model is on this disk already.

    Args:
        flags: More of ``dllama worker``.

    Attributes:
        address: Where it listens, known after ``await_address``.
    """

    def __init__(self, flags: list[str]) -> None:
        self.address = ""
        # A file never blocks who writes to it, and needs nobody to read it.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        place = ["--host", "127.0.0.1", "--port", "0", "--until-eof", "--cache-size", "0"]
        self._process = subprocess.Popen(
            [str(checkout.program()), "worker", *place, *flags],
            stdin=subprocess.PIPE, stdout=self._said, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def await_address(self, deadline: float) -> None:
        """Wait until it listens; raises ClusterError if it ends before, or does not in time."""
        while True:
            is_over = self.is_over()
            if match := _LISTENING.search(self._text(0)):
                self.address = match[1]
                return
            if is_over or time.monotonic() > deadline:
                raise ClusterError(self.trouble())
            time.sleep(_LOOK_S)

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def trouble(self) -> str:
        """Say in a line what has become of it."""
        name, status = self.address or "on this machine", self._process.poll()
        what = f"did not start within {_START_S:.0f} s"
        if status is not None:
            what = f"ended with exit code {_exit_code(status)}"
        size = os.fstat(self._said.fileno()).st_size
        lines = [line for line in self._text(max(0, size - _SHOWN_BYTES)).splitlines() if line.strip()]
        return f"worker {name} {what}; it said last: {lines[-1] if lines else 'nothing'}"

    def release(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait until it has ended, and make it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _text(self, start: int) -> str:
        return os.pread(self._said.fileno(), _SHOWN_BYTES, start).decode("utf-8", "replace")
