"""Asking a server: redirects, tokens, proxies, certificates, and the words when something is refused."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from download_server import DownloadServer, serve  # type: ignore[import-not-found]

from dllama.errors import UsageError
from dllama.hub import remote
from dllama.hub.remote import DownloadFailed, Facts, Server, Trouble, is_offline

PATH = "/b4rtaz/repo/resolve/main/file.m"
DATA = bytes(range(256)) * 100


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[DownloadServer]:
    with serve({PATH: DATA}) as state:
        yield state


def ask(state: DownloadServer, token: str = "", **options: object) -> Facts:
    server = Server(state.url, token, timeout_s=2.0)
    answer = server.ask(server.url("b4rtaz/repo", "file.m"), **options)  # type: ignore[arg-type]
    answer.close()
    return answer.facts


def test_facts_are_those_of_the_endpoint(server: DownloadServer) -> None:
    facts = ask(server)
    assert (facts.size, len(facts.sha256 or "")) == (len(DATA), 64)
    assert facts.etag.startswith('"')
    assert ask(server, method="HEAD") == Facts(facts.size, facts.sha256)


def test_storage_is_not_believed_about_hashes(server: DownloadServer) -> None:
    server.gives_hash = False
    server.faults.etags = [f'"{"0" * 64}"']
    assert ask(server) == Facts(len(DATA), None, f'"{"0" * 64}"')


def test_an_etag_that_is_a_hash_is_one(server: DownloadServer) -> None:
    server.redirects = server.gives_hash = False
    server.faults.etags = [f'"{"ab" * 32}"', f'"{"ab" * 20}"', 'W/"weak"', "unquoted"]
    assert ask(server).sha256 == "ab" * 32
    assert ask(server) == Facts(len(DATA), None, f'"{"ab" * 20}"')
    assert ask(server) == Facts(len(DATA), None, "")
    assert ask(server) == Facts(len(DATA), None, "")


def test_token_goes_to_the_endpoint_alone(server: DownloadServer) -> None:
    ask(server, token="hf_secret")
    here, there = server.gets()
    assert (here.token, there.token) == ("Bearer hf_secret", None)
    assert here.host != there.host


def test_token_is_not_sent_in_the_clear_to_other_machines() -> None:
    assert remote._is_private("https://huggingface.co/x")
    assert remote._is_private("http://127.0.0.1:80/x")
    assert not remote._is_private("http://mirror.example/x")


def test_no_token_no_header(server: DownloadServer) -> None:
    ask(server)
    assert {seen.token for seen in server.seen} == {None}


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("file:///etc/passwd", "not an address of a file"),
        ("ftp://127.0.0.1/x", "not an address of a file"),
        ("http://user:word@127.0.0.1/x", "not an address of a file"),
        ("http://[::1/x", "not an address of a file"),
        ("http://127.0.0.1:99999/x", "not an address of a file"),
        ("", "not an address of a file"),
        (PATH, "redirected more than 8 times"),
    ],
)
def test_redirects_that_lead_nowhere(server: DownloadServer, location: str, words: str) -> None:
    server.faults.location = location
    with pytest.raises(DownloadFailed, match=words) as caught:
        ask(server)
    assert "\n" not in str(caught.value)
    assert len(server.seen) <= 9


def test_redirect_out_of_encryption() -> None:
    with pytest.raises(DownloadFailed, match=r"redirects to other\.example without encryption, which is refused"):
        remote._follow("https://hub.example/x", "http://other.example/x")
    assert remote._follow("https://hub.example/x", "/y") == "https://hub.example/y"


def test_storage_that_refuses_may_be_asked_again(server: DownloadServer) -> None:
    server.faults.location = server.other_url + "/gone"
    with pytest.raises(DownloadFailed, match="answered 404"):
        ask(server)
    server.redirects = False
    server.faults.statuses = [403]
    with pytest.raises(DownloadFailed, match="answered 403: your account may not read it: accept the terms"):
        ask(server)
    server.redirects, server.faults.location = True, None
    server.faults.statuses = []
    with serve({}) as other:
        other.files[PATH] = b""
        other.redirects, other.faults.statuses = False, [403]
        server.faults.location = other.url + PATH
        with pytest.raises(Trouble, match="answered 403"):
            ask(server)


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Trouble, match=r"127\.0\.0\.1: Connection refused"):
            Server(f"http://127.0.0.1:{unused.getsockname()[1]}").ask(f"http://127.0.0.1:{unused.getsockname()[1]}/x")


@pytest.mark.parametrize("answer", [b"", b"no http\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n"])
def test_answers_that_are_no_http(answer: bytes) -> None:
    with speaks(answer) as url, pytest.raises(Trouble):
        Server(url, timeout_s=2.0).ask(url + "/x")


@pytest.mark.parametrize("header", [b"Content-Length: -5", b"Content-Length: 1_0", b"Content-Length: " + b"9" * 30])
def test_lengths_that_are_none(header: bytes) -> None:
    with speaks(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n\r\n") as url:
        answer = Server(url, timeout_s=2.0).ask(url + "/x")
        answer.close()
    assert (answer.length, answer.facts.size) == (None, None)


def test_a_compressed_answer_is_refused() -> None:
    with (
        speaks(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc") as url,
        pytest.raises(Trouble, match="encoded"),
    ):
        Server(url, timeout_s=2.0).ask(url + "/x")


class speaks:  # noqa: N801
    """A server that says one thing to whoever comes first."""

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self.answer, self.context, self.heard = answer, context, b""

    def __enter__(self) -> str:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.speak, daemon=True)
        self.thread.start()
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.socket.getsockname()[1]}"

    def speak(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            try:
                talk = self.context.wrap_socket(connection, server_side=True) if self.context else connection
                self.heard = talk.recv(65536)
                talk.sendall(self.answer)
                talk.close()
            except OSError:
                pass

    def __exit__(self, *_: object) -> None:
        self.thread.join(timeout=5)
        self.socket.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_certificates_are_checked(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with (
        speaks(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", context) as url,
        pytest.raises(DownloadFailed, match=r"127\.0\.0\.1: self.signed certificate; is the clock right\?"),
    ):
        Server(url, timeout_s=2.0).ask(url + "/x")


def test_proxy_is_used(server: DownloadServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    proxy = speaks(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")
    with proxy as address:
        monkeypatch.setenv("http_proxy", address)
        answer = Server("http://hub.example").ask("http://hub.example/x")
        answer.close()
    assert answer.facts.size == 7
    assert proxy.heard.startswith(b"GET http://hub.example/x HTTP/1.1\r\n")


def test_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Server.from_environment().url("o/r", "f") == "https://huggingface.co/o/r/resolve/main/f?download=true"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub/ ")
    assert urlsplit(Server.from_environment().url("o/r", "f")).path == "/hub/o/r/resolve/main/f"


@pytest.mark.parametrize(
    "endpoint",
    ["mirror.example", "file:///x", "https://", "https://me:word@x", "http://[x", "http://x:y", "http://x y"],
)
def test_endpoints_that_are_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match=r"HF_ENDPOINT=.*: expected an address"):
        Server.from_environment()


@pytest.mark.parametrize("token", ["a\nb", "a b", "ä"])
def test_tokens_that_are_none_are_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match="HF_TOKEN holds characters") as caught:
        Server.from_environment()
    assert token not in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("TRUE", True), ("0", False), ("", False)])
def test_offline(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() is expected
