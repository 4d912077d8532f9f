"""Who may use a worker: the pre-shared key, and proof of it without showing it.

Both sides send a random nonce and prove that they know the key by an HMAC-SHA-256 over everything that was said before:
both preambles (versions), role, session, rank and nonces. The connecting side proves itself first, so a worker makes no
proof for strangers; the two proofs carry different labels, so that neither can be sent back; nonces are fresh, so that
none can be used again. Links between the nodes of a session are proved with a key derived from this one. Without a key
the same is done with an empty one, which proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from dllama.errors import UsageError

KEY_VARIABLE = "DLLAMA_CLUSTER_KEY"
_LEAST_KEY = 16  # characters: a sniffed handshake lets a guesser try keys at leisure
_MOST_KEY = 4096
_CONNECTS, _ANSWERS, _LINKS = b"dllama connects", b"dllama answers", b"dllama links"
_ADVICE = "make one: head -c 32 /dev/urandom | base64 > cluster.key"


def load_key(file: str | None) -> bytes | None:
    """Get the cluster's key from a file or, without one, from ``DLLAMA_CLUSTER_KEY``; None if there is neither.

    Raises:
        UsageError: The file cannot be read, or the key is too short.
    """
    where, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "").encode("utf-8", "surrogateescape")
    if file is not None:
        where = f"--key-file {file}"
        try:
            with Path(file).open("rb") as stream:
                text = stream.read(_MOST_KEY + 1)
        except (OSError, ValueError) as error:
            raise UsageError(f"{where}: {getattr(error, 'strerror', None) or error}; {_ADVICE}") from None
    elif not text:
        return None
    text = text.removeprefix(b"\xef\xbb\xbf").strip()  # some editors put a mark before it
    if not _LEAST_KEY <= len(text) <= _MOST_KEY:
        found = "more" if len(text) > _MOST_KEY else str(len(text))
        raise UsageError(f"{where}: expected a key of {_LEAST_KEY} to {_MOST_KEY} bytes, found {found}; {_ADVICE}")
    return hashlib.sha256(text).digest()


def link_key(key: bytes | None, session: bytes) -> bytes:
    """Derive the key of the links between the nodes of a session."""
    return hmac.digest(key or b"", _LINKS + session, "sha256")


class Transcript:
    """All bytes of a handshake so far, and the proofs over them.

    Attributes:
        key: What both sides should know.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self.key, self._said = key, hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Note what one side said."""
        self._said.update(len(data).to_bytes(4, "little") + data)

    def proof(self, *, of_connecting: bool) -> bytes:
        """Make the proof of one side."""
        label = _CONNECTS if of_connecting else _ANSWERS
        return hmac.digest(self.key or b"", label + self._said.digest(), "sha256")

    def is_proof(self, mac: bytes, *, of_connecting: bool) -> bool:
        """Whether the other side's proof holds; takes the same time wherever it fails."""
        return hmac.compare_digest(mac, self.proof(of_connecting=of_connecting))
