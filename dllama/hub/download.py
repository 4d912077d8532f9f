"""Fetching one file, in one part or several, so that nothing that was fetched is lost and nothing wrong is kept.

What may go wrong on the way to a server does: connections end, lengths and ranges are lies, files are replaced. One
rule bounds all of it: an attempt that brought nothing new is counted, and after some of them in a row the user is told.
What is on the disk is kept by ``part_file``; how a server is asked is in ``remote``.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dllama.errors import BadFile
from dllama.hub.file_check import check_file
from dllama.hub.part_file import PartFile
from dllama.hub.part_state import remove_stray_state, source_names
from dllama.hub.probe import ask_facts
from dllama.hub.progress import Progress, size_text
from dllama.hub.remote import Answer, DownloadFailed, Facts, Server, Trouble

_CHUNK = 1 << 18
_LEAST_GAIN = 16 << 10  # bytes that make an attempt a success
_MAX_RESTARTS = 3  # of one part in one run: replaced on the server, or wrong
_SHOWN_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is given.

    Attributes:
        attempts: Failed attempts in a row that brought nothing new.
        first_wait_s: Before the second attempt; it doubles from there.
        longest_wait_s: The most that is waited, whatever the server asks for.
        window_s: Over which a connection that has become slow is noticed, and made anew.
        least_speed: In bytes per second. A slow line stays in use: it is only asked whether a new connection is better.
    """

    attempts: int = 12
    first_wait_s: float = 0.5
    longest_wait_s: float = 120.0
    window_s: float = 30.0
    least_speed: float = 4000.0


_PATIENCE = Patience()


class Download:
    """One file to fetch.

    Args:
        server: Where from.
        urls: Its parts, in order.
        target: Where to; its suffix says what the file should be.
        facts: What the server says of each part.
        patience: How long the server is given.
    """

    def __init__(
        self, server: Server, urls: Sequence[str], target: Path, facts: Sequence[Facts], patience: Patience = _PATIENCE
    ) -> None:
        self._server, self._urls, self._target, self._facts = server, tuple(urls), target, tuple(facts)
        self._patience = patience

    def run(self, total: int) -> bool | None:
        """Fetch what is missing; ``total`` bytes are expected, for the bar.

        Returns:
            Whether every part was compared with a hash of the server's; if not, its size alone was. None if another
            program has fetched the file meanwhile.

        Raises:
            DownloadFailed: It did not work out; the text says why, and whether to try again.
            NotEnoughDisk: The disk is full.
            OSError: The file cannot be written.
        """
        title = {".m": "model", ".t": "tokenizer"}.get(self._target.suffix, self._target.name)
        sources = source_names(self._urls)
        with Progress(title, total) as self._bar, PartFile(self._target, sources, self._on_wait) as self._file:
            if self._target.exists():  # another program was waited for
                return None
            self._resume()
            for index in range(len(self._file.done), len(self._urls)):
                self._fetch_part(index)
            if len(self._urls) > 1:
                self._check_unchanged()
            self._check_header()
            is_verified = all(part.sha256 for part in self._file.done)
            self._file.complete()
        remove_stray_state(self._target)
        return is_verified

    def _on_wait(self) -> None:
        self._bar.note(f"⏳ Another program is fetching {self._target.name}: waiting for it")

    def _resume(self) -> None:
        """Take over what is there, if it is still of the files that the server has."""
        file = self._file
        self._forget_changed(self._facts)
        facts = self._facts[len(file.done)] if len(file.done) < len(self._facts) else Facts()
        if file.have and facts.size is not None and not _is_same(file.current, facts, unless_told=True):
            file.begin(Facts())
        if file.have:
            self._bar.note(f"🔎 Checking the {size_text(file.start + file.have)} that are there")
            file.rehash(lambda done: self._bar.update(file.start + done))
        self._bar.jump(file.start + file.have)

    def _forget_changed(self, facts: Sequence[Facts]) -> bool:
        """Throw away the parts from the first on that is no longer what the server has."""
        for index, (old, new) in enumerate(zip(self._file.done, facts, strict=False)):
            if new.size is not None and not _is_same(old, new, unless_told=True):
                self._file.keep_done(index)
                return True
        return False

    def _check_unchanged(self) -> None:
        """Make sure that parts fetched hours apart are of one version."""
        if self._forget_changed(ask_facts(self._server, self._urls)[0]):
            text = f"{self._target.name} was replaced on the server meanwhile; run the same command again"
            raise DownloadFailed(text)

    def _check_header(self) -> None:
        try:
            check_file(self._file.path, self._target.suffix)
        except BadFile as error:
            self._file.discard()
            raise DownloadFailed(f"what came from {self._server.endpoint} was thrown away: {error}") from error

    def _fetch_part(self, index: int) -> None:
        """Fetch one part, in as many attempts as it takes, and compare its hash."""
        url, file = self._urls[index], self._file
        self._restarts, self._cuts, wrong = 0, 0, ""
        while True:
            self._insist(url)
            found, expected = file.digest(), file.current.sha256
            if expected in (None, found):
                file.finish_part()
                return
            file.begin(Facts())
            self._bar.jump(file.start)
            if wrong:
                raise DownloadFailed(
                    f"{_path_of(url)}: came wrong twice: expected SHA-256 {expected}, found {found}; it was thrown away"
                )
            wrong = found
            self._bar.note(f"⚠️ {_path_of(url)}: came wrong (SHA-256 {found}); fetching it once more")

    def _insist(self, url: str) -> None:
        """Make attempts until all bytes of the part are there."""
        failures, self._counted = 0, self._file.have
        while True:
            try:
                self._attempt(url)
                return
            except Trouble as trouble:
                if self._file.have - self._counted >= _LEAST_GAIN:
                    failures, self._counted = 0, self._file.have
                failures += 1
                if failures >= self._patience.attempts:
                    raise DownloadFailed(
                        f"{trouble}; tried {failures} times. What is there is kept: run the same command again to go on"
                    ) from trouble
                self._wait(trouble, failures)

    def _wait(self, trouble: Trouble, failures: int) -> None:
        """Wait before the next attempt: what the server asks for, or longer each time, and never all at one moment."""
        longest = self._patience.longest_wait_s
        wait_s = min(longest, self._patience.first_wait_s * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
        if trouble.wait_s is not None:
            wait_s = min(longest, max(wait_s, trouble.wait_s))
        if failures > 1 or wait_s >= _SHOWN_WAIT_S:
            self._bar.note(f"⏳ {trouble}; trying again in {wait_s:.0f} s")
        time.sleep(wait_s)

    def _attempt(self, url: str) -> None:
        """Ask once, and take what comes. Returns when all bytes of the part are there; raises Trouble if not."""
        file = self._file
        if file.current.size is not None and file.have == file.current.size:
            return  # ended between the last byte and the next step
        if file.have and not (file.current.sha256 or file.current.etag):
            self._begin_anew(url)
        # A known hash tells more than an ETag, which may change from one storage server to the next.
        etag = file.current.etag if file.have and not file.current.sha256 else ""
        answer = self._server.ask(url, start=file.have, etag=etag)
        with contextlib.closing(answer):
            skip = self._settle(url, answer)
            self._receive(answer, skip)

    def _settle(self, url: str, answer: Answer) -> int:
        """Compare an answer with what was asked for; give the bytes of it that are there already."""
        file, facts = self._file, answer.facts
        if answer.start is None:
            if not file.current.sha256:  # else the hash will judge what is there
                self._restart(Facts())
            raise Trouble(f"{_path_of(url)}: the server has no bytes there")
        if facts.size is None:
            raise DownloadFailed(f"{_path_of(url)}: the server does not say how large it is; is HF_ENDPOINT right?")
        if not file.have:
            file.begin(facts)
        elif _is_same(file.current, facts, unless_told=False):
            file.renew(replace(facts, sha256=facts.sha256 or file.current.sha256))
        else:
            self._restart(facts)
        if len(self._urls) == 1:
            self._bar.total = facts.size
        if answer.start not in (0, file.have):
            raise Trouble(f"{_path_of(url)}: asked for bytes from {file.have} on, got those from {answer.start}")
        if answer.length is not None and answer.length > facts.size - answer.start:
            text = f"{answer.length} bytes from {answer.start} on of a file of {facts.size}"
            raise Trouble(f"{_path_of(url)}: the server announces {text}")
        return file.have - answer.start

    def _receive(self, answer: Answer, skip: int) -> None:
        """Take the body, but for its first ``skip`` bytes."""
        file, size = self._file, self._file.current.size or 0
        room = size - file.have
        left = room if answer.length is None else min(room, answer.length - skip)
        watch = _SpeedWatch(self._patience)
        while left > 0:
            data = answer.read(min(_CHUNK, skip or left))
            if not data:
                break
            watch.add(len(data))
            if skip:
                skip -= len(data)
                continue
            file.append(data)
            left -= len(data)
            self._bar.update(file.start + file.have)
        if file.have < size:
            raise Trouble(f"{self._target.name}: the connection was cut")
        if answer.length is None and file.current.sha256 is None and answer.read(1):
            self._restart(Facts())
            raise Trouble(f"{self._target.name}: the server sends more than the {size} bytes that it announced")

    def _begin_anew(self, url: str) -> None:
        """Throw away the beginning of a part of which nothing would tell whether more bytes are of the same file."""
        self._cuts += 1
        if self._cuts >= self._patience.attempts:
            why = "the server gives neither a hash nor an ETag, so a download that is cut cannot be gone on with"
            raise DownloadFailed(f"{_path_of(url)}: {why}; it was cut {self._cuts} times")
        self._file.begin(Facts())
        self._bar.jump(self._file.start)
        self._counted = 0

    def _restart(self, facts: Facts) -> None:
        """Begin the part anew: what is there is of another version, or useless."""
        self._restarts += 1
        self._counted = 0
        if self._restarts > _MAX_RESTARTS:
            raise DownloadFailed(f"{self._target.name}: the server has another file each time it is asked; try later")
        self._file.begin(facts)
        self._bar.jump(self._file.start)


class _SpeedWatch:
    """Notices that a connection brings next to nothing."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since, self._bytes = time.monotonic(), 0

    def add(self, count: int) -> None:
        """Count bytes that came; raises Trouble at the end of a window with too few."""
        self._bytes += count
        took = time.monotonic() - self._since
        if took < self._patience.window_s:
            return
        if self._bytes < took * self._patience.least_speed:
            raise Trouble(f"only {size_text(self._bytes)} came in {took:.0f} s")
        self._since, self._bytes = time.monotonic(), 0


def _is_same(old: Facts, new: Facts, *, unless_told: bool) -> bool:
    """Whether two descriptions are of one version of a file.

    Args:
        old: What is known of the bytes that are there.
        new: What a server says now.
        unless_told: What to answer if neither a hash nor an ETag tells.
    """
    if old.size != new.size:
        return False
    if old.sha256:
        return new.sha256 in (None, old.sha256)  # where the server is silent, the known hash judges in the end
    return old.etag == new.etag if old.etag and new.etag else unless_told


def _path_of(url: str) -> str:
    """The last part of an address: what a file is called on the server."""
    return source_names([url])[0]
