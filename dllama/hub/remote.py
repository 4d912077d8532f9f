"""Asking a server for a file, or for what it knows of one, as Hugging Face's servers and their mirrors answer.

Standard library only. One call is one attempt: redirects are followed here, everything else that may be tried again is
``Trouble`` and up to the caller. The server is not trusted: what it says of lengths and places is compared by those
who know what they asked for.
"""

from __future__ import annotations

import email.utils
import http.client
import os
import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPMessage, HTTPResponse
from typing import Self, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import dllama
from dllama.errors import DllamaError, UsageError

_ENDPOINT = "https://huggingface.co"
_MAX_REDIRECTS = 8
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_NO_HEAD = (405, 501)
_TRUE = ("1", "on", "yes", "true")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_LONGEST_WAIT_S = 60.0  # whatever the server asks for
_T = TypeVar("_T")


class DownloadFailed(DllamaError):
    """A file could not be fetched; what was fetched of it is kept, unless it was wrong."""

    exit_code = 6


class Trouble(Exception):
    """An attempt that failed and may succeed later. ``wait_s``: what the server asks to wait, if it does."""

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of a file.

    Attributes:
        size: Bytes of the whole file, if it says so.
        sha256: Hash of the whole file as 64 hexadecimal digits, if it says so.
        etag: The strong ETag of the host that sends the bytes, for ``If-Range``; empty if there is none.
    """

    size: int | None = None
    sha256: str | None = None
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body is yet to be read.

    Attributes:
        facts: What it says of the whole file.
        start: Position in the file of the body's first byte; None: the range asked for is outside the file.
        length: Bytes of the body, if it says so.
    """

    facts: Facts
    start: int | None
    length: int | None
    response: HTTPResponse

    def read(self, most: int) -> bytes:
        """Read what has come, at most ``most`` bytes; nothing at the end. Raises Trouble."""
        try:
            return self.response.read1(most)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Trouble(_why(error)) from error

    def close(self) -> None:
        """Let the connection go."""
        self.response.close()


class Server:
    """Where files are fetched from.

    Args:
        endpoint: Address without a slash at its end.
        token: Shown to the endpoint's own host alone, and never in the clear but on this machine.
        timeout_s: Longest wait for a connection, and for the next bytes.
    """

    def __init__(self, endpoint: str = _ENDPOINT, token: str = "", timeout_s: float = 30.0) -> None:
        self.endpoint = endpoint
        self._token, self._timeout_s = token, timeout_s
        # Without the handlers of errors and redirects: both are decided here. Proxies come from the environment.
        self._opener = urllib.request.OpenerDirector()
        context = ssl.create_default_context()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context),
        ):
            self._opener.add_handler(handler)

    @classmethod
    def from_environment(cls) -> Self:
        """Heed ``HF_ENDPOINT`` and ``HF_TOKEN``.

        Raises:
            UsageError: One of them cannot be used as it is.
        """
        endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _ENDPOINT
        if not _is_address(endpoint):
            raise UsageError(
                f"HF_ENDPOINT={endpoint!r}: expected an address like {_ENDPOINT}, without user or password"
            )
        token = os.environ.get("HF_TOKEN", "").strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError("HF_TOKEN holds characters that no token has; set it again")
        return cls(endpoint, token)

    def url(self, page: str, file: str, revision: str = "main") -> str:
        """Give the address of a file of a repository."""
        return f"{self.endpoint}/{page}/resolve/{quote(revision, safe='')}/{quote(file)}?download=true"

    def ask(self, url: str, method: str = "GET", start: int = 0, etag: str = "") -> Answer:
        """Ask once for a file's bytes from ``start``, or with ``HEAD`` for its facts alone.

        Args:
            url: An address from ``url()``.
            method: ``GET`` or ``HEAD``.
            start: First byte wanted.
            etag: Have the bytes from ``start`` only if the file still has this ETag, else all of it.

        Raises:
            Trouble: It may be tried again.
            DownloadFailed: It may not; the text says what to do.
        """
        headers = {"User-Agent": f"dllama/{dllama.__version__}", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            headers.update({"If-Range": etag} if etag else {})
        own, linked = _origin(url), Facts()
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._open(url, method, headers)
            if _origin(url) == own:
                linked = _linked_facts(response.headers, linked)
            if method == "HEAD" and (
                response.status in _NO_HEAD or (linked.size is not None and response.status < 400)
            ):
                return Answer(linked, 0, None, response)  # where bytes come from, HEAD is often refused
            if response.status not in _REDIRECTS:
                return _judge(response, url, linked, is_own=_origin(url) == own)
            location = response.headers.get("Location")
            response.close()
            url = _follow(url, location)
        raise DownloadFailed(f"{url}: redirected more than {_MAX_REDIRECTS} times; is HF_ENDPOINT right?")

    def _open(self, url: str, method: str, headers: dict[str, str]) -> HTTPResponse:
        request = urllib.request.Request(url, headers=headers, method=method)
        if self._token and _origin(url) == _origin(self.endpoint) and _is_private(url):
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            response: HTTPResponse = self._opener.open(request, timeout=self._timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None)
            if isinstance(reason, ssl.SSLCertVerificationError):
                advice = "is the clock right? Behind a proxy of a company, name its certificates in SSL_CERT_FILE"
                raise DownloadFailed(f"{_host(url)}: {reason.verify_message}; {advice}") from error
            raise Trouble(f"{_host(url)}: {_why(error)}") from error
        return response


def insist(attempt: Callable[[], _T], waits_s: Sequence[float]) -> _T:
    """Make attempts at a small answer, as any may fail; between them wait so long, or as long as the server asks for.

    Raises:
        Trouble: The last one failed, too.
    """
    for wait_s in waits_s:
        try:
            return attempt()
        except Trouble as trouble:
            time.sleep(max(wait_s, min(trouble.wait_s or 0.0, _LONGEST_WAIT_S)))
    return attempt()


def is_offline() -> bool:
    """Whether the user wants nothing to be fetched."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE


def _linked_facts(headers: HTTPMessage, known: Facts) -> Facts:
    """Read what the endpoint itself says of the file behind a redirect; the first word counts."""
    size = _number(headers.get("X-Linked-Size"))
    tags = [headers.get("X-Linked-Etag", ""), headers.get("ETag", "")]
    hashes = [tag.removeprefix("W/").strip('"').lower() for tag in tags]
    sha256 = next((tag for tag in hashes if re.fullmatch("[0-9a-f]{64}", tag)), None)
    return replace(known, size=size if known.size is None else known.size, sha256=known.sha256 or sha256)


def _judge(response: HTTPResponse, url: str, linked: Facts, *, is_own: bool) -> Answer:
    """Sort an answer by its status: usable, worth another try, or final."""
    status, headers = response.status, response.headers
    if status not in (200, 206, 416):
        response.close()
        raise _refusal(status, headers, url, is_own=is_own)
    if headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise Trouble(f"{_host(url)}: sends the file encoded, which nobody asked for")
    length, start, whole = _number(headers.get("Content-Length")), 0, None
    if status == 200:
        whole = length
    elif status == 206:
        start, whole = _content_range(headers, url)
    etag = headers.get("ETag", "").strip()
    strong = etag if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else ""
    facts = replace(linked, size=whole if linked.size is None else linked.size, etag=strong)
    return Answer(facts, None if status == 416 else start, length, response)


def _refusal(status: int, headers: HTTPMessage, url: str, *, is_own: bool) -> Exception:
    where = url.partition("?")[0]
    if status in _TRANSIENT or (status == 403 and not is_own):  # an address signed for a while may have run out
        return Trouble(f"{_host(url)}: answered {status}", _retry_after(headers))
    if headers.get("X-Error-Code") == "GatedRepo":
        advice = (
            "its owner asks for consent: accept the terms on the model's page, and set HF_TOKEN to a token of yours"
        )
    elif status == 401:
        advice = "it may be gone, or wants a login: set HF_TOKEN to a token of your account"
    elif status == 403:
        advice = "your account may not read it: accept the terms on its page, and set HF_TOKEN to your token"
    elif status in (404, 410):
        advice = "the server has no such file; is HF_ENDPOINT right?"
    else:
        advice = "which is of no use here"
    return DownloadFailed(f"{where}: answered {status}: {advice}")


def _follow(url: str, location: str | None) -> str:
    """Give the address that a redirect leads to, if it may be followed."""
    try:
        target = urljoin(url, location or "")
    except ValueError:
        target = ""
    if not location or not _is_address(target):
        raise DownloadFailed(f"{_host(url)}: redirects to {location!r}, which is not an address of a file")
    if url.startswith("https:") and not target.startswith("https:"):
        raise DownloadFailed(f"{_host(url)}: redirects to {_host(target)} without encryption, which is refused")
    return target


def _content_range(headers: HTTPMessage, url: str) -> tuple[int, int | None]:
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("Content-Range", "").strip())
    if not found:
        raise Trouble(f"{_host(url)}: sends a part of the file without saying which")
    return int(found[1]), None if found[3] == "*" else int(found[3])


def _retry_after(headers: HTTPMessage) -> float | None:
    """Read how long to wait: seconds, or a date."""
    text = headers.get("Retry-After", "").strip()
    if (seconds := _number(text)) is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text.strip()) else None


def _why(error: Exception) -> str:
    """Say in a few words what went wrong with a connection."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, TimeoutError):
        return "no answer"
    if isinstance(reason, http.client.IncompleteRead):
        return "the connection was cut"
    text = (reason.strerror or "") if isinstance(reason, OSError) else ""
    text = text or str(reason) or type(reason).__name__
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:200]).split())


def _is_address(url: str) -> bool:
    """Whether this is an address of the web, without user and password."""
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return is_web and "@" not in parts.netloc and url.isascii() and url.isprintable() and " " not in url


def _is_private(url: str) -> bool:
    return url.startswith("https:") or urlsplit(url).hostname in _LOOPBACK


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _host(url: str) -> str:
    return urlsplit(url).hostname or url
