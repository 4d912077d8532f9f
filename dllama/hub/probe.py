"""Asking a server about many files at once, before any of them is fetched."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Sequence

from dllama.hub.remote import DownloadFailed, Facts, Server, Trouble, insist

_QUESTIONS_AT_ONCE = 8


def ask_facts(server: Server, urls: Sequence[str]) -> tuple[list[Facts], str]:
    """Ask what the server knows of files, of several at a time.

    Returns:
        What it said of each, empty where it did not answer; and why it did not, if so.

    Raises:
        DownloadFailed: A file is not to be had.
    """
    answers: list[Facts | Exception] = [Facts()] * len(urls)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(urls)):
        waiting.put(index)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                index = waiting.get_nowait()
                answers[index] = _ask(server, urls[index])

    # Threads that nobody waits for at the end: an interrupt must not sit out the answers.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_QUESTIONS_AT_ONCE, len(urls)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        if isinstance(answer, DownloadFailed):
            raise answer
    facts = [answer if isinstance(answer, Facts) else Facts() for answer in answers]
    return facts, next((str(answer) for answer in answers if isinstance(answer, Trouble)), "")


def _ask(server: Server, url: str) -> Facts | Exception:
    """Ask for the facts of one file; give what was said, or what went wrong."""

    def attempt() -> Facts:
        with contextlib.closing(server.ask(url, "HEAD")) as reply:
            return reply.facts

    try:
        return insist(attempt, waits_s=(1.0,))
    except (DownloadFailed, Trouble) as error:
        return error
