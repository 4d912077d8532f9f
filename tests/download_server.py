"""A file server as Hugging Face's is, that misbehaves on demand, and the files that it serves."""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np

from dllama.hub.catalogue import Entry

SLICE = 16 << 10  # bytes that are sent at a time


@dataclass
class Seen:
    """A request, as the server got it."""

    method: str
    path: str
    host: str
    token: str | None
    range: str | None
    if_range: str | None
    status: int = 0


@dataclass
class Faults:
    """What the server does wrong. Lists are used up, one item by each GET."""

    drop_after: int | None = None  # bytes of a body, then the connection ends
    silence_s: float = 0.0  # before it ends
    rate: float = float("inf")  # bytes per second
    ignore_ranges: bool = False
    statuses: list[int] = field(default_factory=list)  # answered instead; 0: a connection that just ends
    head_statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of those answers
    wrong_bytes: int = 0  # how many bodies have a wrong byte at their end
    length_delta: int = 0  # added to what Content-Length says
    body_delta: int = 0  # added to what is sent
    range_delta: int = 0  # added to where Content-Range says that the body begins
    wrong_hash_of: str = ""  # path
    chunked: bool = False
    location: str | None = None  # where a redirect leads, instead of the other server
    etags: list[str] = field(default_factory=list)


@dataclass
class DownloadServer:
    """What is served, how, and what was asked for. ``redirects``: whether files come from a second server."""

    files: dict[str, bytes]
    faults: Faults = field(default_factory=Faults)
    redirects: bool = True
    gives_hash: bool = True
    gives_etag: bool = True
    direct: set[str] = field(default_factory=set)  # paths of files that the first server has itself, as all under /api/
    gate: str = ""  # the token without which files are refused
    seen: list[Seen] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""
    other_url: str = ""

    def gets(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET"]


@contextmanager
def serve(files: dict[str, bytes], **settings: bool) -> Iterator[DownloadServer]:
    """Serve files by their path, from loopback."""
    state = DownloadServer(files, **settings)  # type: ignore[arg-type]
    with _one(state, is_other=False) as state.url, _one(state, is_other=True) as state.other_url:
        yield state


@contextmanager
def _one(state: DownloadServer, *, is_other: bool) -> Iterator[str]:
    class Handler(_Handler):
        server_state, is_storage = state, is_other

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: DownloadServer
    is_storage: bool

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state, faults, headers = self.server_state, self.server_state.faults, self.headers
        token, range_, if_range = (headers.get(name) for name in ("Authorization", "Range", "If-Range"))
        seen = Seen(self.command, urlsplit(self.path).path, headers["Host"], token, range_, if_range)
        state.seen.append(seen)
        data = state.files.get(seen.path)
        is_get = self.command == "GET"
        statuses = faults.statuses if is_get else faults.head_statuses
        if data is None:
            return self._end(seen, 404, {})
        if statuses and not (self.is_storage and state.redirects and statuses[0] == 0):
            return self._end(seen, statuses.pop(0), faults.headers)
        if state.gate and not self.is_storage and "/resolve/" in seen.path and token != f"Bearer {state.gate}":
            return self._end(seen, 403 if token else 401, {"X-Error-Code": "GatedRepo"})
        is_direct = seen.path in state.direct or seen.path.startswith("/api/")
        if state.redirects and not self.is_storage and not is_direct:
            target = state.other_url + self.path if faults.location is None else faults.location
            return self._end(seen, 302, {"Location": target, **self._linked(data)})
        if is_get:
            return self._send(seen, data)
        own = self._linked(data) if not state.redirects else {}
        return self._end(seen, 200, {**own, "Content-Length": str(len(data))})

    def _linked(self, data: bytes) -> dict[str, str]:
        state = self.server_state
        headers = {"X-Linked-Size": str(len(data))}
        if state.gives_hash:
            digest = hashlib.sha256(data + b"x" * (state.faults.wrong_hash_of == urlsplit(self.path).path)).hexdigest()
            headers["X-Linked-Etag"] = f'"{digest}"'
        return headers

    def _end(self, seen: Seen, status: int, headers: dict[str, str]) -> None:
        seen.status = status
        self.close_connection = True
        if status == 0:
            return
        self.send_response(status)
        for name, value in {"Content-Length": "0", "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, seen: Seen, data: bytes) -> None:
        state, faults = self.server_state, self.server_state.faults
        etag = faults.etags.pop(0) if faults.etags else f'"{hashlib.md5(data).hexdigest()}"'
        start = self._start(seen, data, etag)
        if start >= len(data) > 0:
            return self._end(seen, 416, {"Content-Range": f"bytes */{len(data)}"})
        body = data[start:]
        if faults.wrong_bytes and start + len(body) == len(data):
            faults.wrong_bytes -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        body = body + b"?" * faults.body_delta if faults.body_delta >= 0 else body[: faults.body_delta]
        seen.status = 206 if start else 200
        self.send_response(seen.status)
        self.send_header("Connection", "close")
        if faults.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data) - start + faults.length_delta))
        if state.gives_etag:
            self.send_header("ETag", etag)
        for name, value in ({} if state.redirects else self._linked(data)).items():
            self.send_header(name, value)
        if start:
            begin = start + faults.range_delta
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.close_connection = True
        return self._send_body(body)

    def _start(self, seen: Seen, data: bytes, etag: str) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", seen.range or "")
        if not asked or self.server_state.faults.ignore_ranges or (seen.if_range not in (None, etag)):
            return 0
        return int(asked[1])

    def _send_body(self, body: bytes) -> None:
        state, faults = self.server_state, self.server_state.faults
        begun = time.monotonic()
        most = len(body) if faults.drop_after is None else min(len(body), faults.drop_after)
        for begin in range(0, most, SLICE):
            piece = body[begin : min(begin + SLICE, most)]
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if faults.chunked else piece
            self.wfile.write(framed)
            state.sent_bytes += len(piece)
            time.sleep(max(0.0, begun + (begin + len(piece)) / faults.rate - time.monotonic()))
        time.sleep(faults.silence_s if most < len(body) else 0)
        if faults.chunked and most == len(body):
            self.wfile.write(b"0\r\n\r\n")


def model_bytes(size: int, seed: int = 0) -> bytes:
    """Make a ``.m`` file of about ``size`` bytes by its header: one layer, and as many words as it takes."""
    per_word = 64 * 4 + 36
    vocab = max(1, (size - 30000) // per_word)
    pairs = {0: 0, 1: 0xABCD00, 2: 64, 3: 96, 4: 1, 5: 4, 6: 2, 7: 0, 8: 0, 9: vocab, 10: 128, 11: 1, 13: 2}
    header = struct.pack("<Ii", 0x0A00ABCD, 8 + 8 * len(pairs))
    header += b"".join(struct.pack("<ii", key, value) for key, value in pairs.items())
    matrices = 64 * (2 * 64 + 2 * 32 + 3 * 96) // 32 * 18
    rest = vocab * per_word + matrices + 4 * 3 * 64
    return header + np.random.default_rng(seed).bytes(rest)


def tokenizer_bytes(size: int = 5000) -> bytes:
    """Make a file that begins as ``.t`` files do."""
    return struct.pack("<Ii", 0x567124, 8) + np.random.default_rng(size).bytes(size)


def files_of(entry: Entry, model: bytes, tokenizer: bytes) -> dict[str, bytes]:
    """Lay out the files of a model as its repository has them, the model cut into its parts."""
    parts = len(entry.model_files)
    step = -(-len(model) // parts)
    cut = [model[index * step : (index + 1) * step] for index in range(parts)]
    named = dict(zip(entry.model_files, cut, strict=True)) | {entry.tokenizer_file: tokenizer}
    return {f"/{entry.page}/resolve/main/{name}": data for name, data in named.items()}
