"""``dllama worker``: lends this machine's memory and cores to a root, one root at a time, until it is stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from dllama.cli.cluster_flags import add_key_flag
from dllama.cli.common import add_ignored_flags, say
from dllama.cli.parser import file_name, number, whole
from dllama.errors import UsageError

EXAMPLE = """Without a key it listens to this machine alone. For others:
  head -c 32 /dev/urandom | base64 > cluster.key     and the same file on every machine

example: dllama worker --port 9999 --key-file cluster.key"""
GIB = 1 << 30


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    help_ = "port to listen on (default 9990; 0: any that is free, printed)"
    parser.add_argument("--port", type=whole(0, 65535), default=9990, metavar="N", help=help_)
    help_ = "address to listen on (default: with a key all of this machine, else 127.0.0.1)"
    parser.add_argument("--host", type=file_name, metavar="ADDR", help=help_)
    help_ = "compute threads (default: the physical cores it may use)"
    parser.add_argument("--nthreads", type=whole(1, 1024), metavar="N", help=help_)
    add_key_flag(parser)
    help_ = "let everybody in the network use and read this worker, without a key"
    parser.add_argument("--insecure", action="store_true", help=help_)
    help_ = "where weights are kept for the next start (default: ~/.cache/dllama/tiles)"
    parser.add_argument("--cache-dir", type=file_name, metavar="DIR", help=help_)
    help_ = "most GiB of weights kept (default 32; 0: none)"
    parser.add_argument("--cache-size", type=number(0, 1e6), default=32.0, metavar="GIB", help=help_)
    help_ = "end when standard input ends, for programs that start workers"
    parser.add_argument("--until-eof", action="store_true", help=help_)
    add_ignored_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama import machine
    from dllama.cluster import addresses
    from dllama.cluster.auth import load_key
    from dllama.cluster.session import WorkerOptions
    from dllama.cluster.worker import Worker
    from dllama.hub.folders import cache_dir
    from dllama.version import isa

    machine.give_back_freed_memory()
    key = load_key(args.key_file)
    host = host_of(args, has_key=key is not None)
    level = isa()
    cache = Path(args.cache_dir) if args.cache_dir else cache_dir() / "tiles"
    options = WorkerOptions(args.nthreads or machine.physical_cores(), cache, int(args.cache_size * GIB), key)
    listener = addresses.listen(host, args.port)
    with listener:
        worker = Worker(listener, options, say)
        say(f"🧠 CPU: {level}, {options.num_threads} threads")
        if host == _LOCAL and args.host is None:
            say("🔒 Only this machine can connect; for others give --key-file FILE (see dllama worker --help)")
        elif key is None and not addresses.is_loopback(host or ""):
            say("⚠️ Everybody who can reach this port can use this worker (--insecure)")
        try:
            signal.signal(signal.SIGTERM, _terminate)
            say(f"Listening on {addresses.Address(host or '0.0.0.0', listener.getsockname()[1])}...")
            if args.until_eof:
                threading.Thread(target=_await_eof, daemon=True).start()
            worker.serve()
        except _Terminated:
            say("🛑 Stopped")
        finally:
            worker.close()


_LOCAL = "127.0.0.1"


def host_of(args: argparse.Namespace, *, has_key: bool) -> str | None:
    """Choose where to listen; None is everywhere.

    Raises:
        UsageError: The network is asked for, and nothing keeps strangers away.
    """
    from dllama.cluster import addresses

    if args.host is None:
        return None if has_key or args.insecure else _LOCAL
    host = str(args.host).removeprefix("[").removesuffix("]")  # as IPv6 numbers stand before ports
    if not has_key and not args.insecure and not addresses.is_loopback(host):
        raise UsageError(
            f"--host {args.host}: everybody who reaches it could use this worker; give --key-file FILE, "
            "the same on all machines, or allow it with --insecure"
        )
    return host


class _Terminated(Exception):
    """SIGTERM: the polite request to end."""


def _terminate(_number: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends what takes too long
    raise _Terminated


def _await_eof() -> None:
    """Send this process SIGTERM once its standard input ends, as it does when whoever started it is gone."""
    # A thread that waits inside sys.stdin holds its lock, without which the interpreter cannot end.
    with suppress(OSError):
        while sys.stdin is not None and os.read(sys.stdin.fileno(), 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
