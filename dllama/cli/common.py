"""What the commands share: flags of the model and the machine, loading with the start lines, printing, timing.

The printed lines are distributed-llama's, because scripts read them; each is flushed, so that a reader of a pipe sees
it at once. Heavy modules are imported when they are used: an error in the flags must not wait for numpy.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.cli import cluster_flags
from dllama.cli.engine_flags import add_kv_flag, add_weight_flag, kv_type, weight_type
from dllama.cli.parser import Refused, file_name, whole
from dllama.cli.sampling_flags import take_defaults
from dllama.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from dllama.cluster import Cluster
    from dllama.config import ModelConfig
    from dllama.engine import Engine, Output
    from dllama.text.tokenizer import Tokenizer

MIB = 1 << 20
PATIENCE_S = 10  # loading says how far it is when it takes longer than this
_COUNTED = ("sync_us", "sent_bytes", "received_bytes", "tokens", "steps")
_CPU_ONLY = "dllama runs on CPUs only; leave the flag away"


def say(text: str = "") -> None:
    """Print one line on stdout, now."""
    print(text, flush=True)


def to_json(value: object, indent: int | None = None) -> str:
    """Write JSON in ASCII, which no terminal or locale spoils, with null for numbers that JSON lacks."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    """Put None for NaN and infinities, however deep."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that runs a model on text."""
    group = parser.add_argument_group("model and machine")
    add_file_flags(group)
    add_size_flags(group)
    group.add_argument("--json", action="store_true", help="print JSON and nothing else")
    add_ignored_flags(group)
    cluster_flags.add_cluster_flags(parser)


def add_size_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags that say how large a node is made."""
    group.add_argument(
        "--nthreads", type=whole(1, 1024), metavar="N", help="compute threads (default: the physical cores it may use)"
    )
    group.add_argument(
        "--max-seq-len",
        type=whole(0),
        default=0,
        metavar="N",
        help="longest context, at most the model's (default: the model's, 8192 or what memory allows)",
    )
    add_kv_flag(group)
    cluster_flags.add_wire_flag(group)


def add_ignored_flags(group: argparse._ActionsContainer) -> None:
    """Add flags of distributed-llama's that change nothing here, or cannot be served."""
    group.add_argument("--net-turbo", type=whole(0, 1), metavar="0|1", help="accepted and ignored: always on")
    group.add_argument("--gpu-index", action=Refused, why=_CPU_ONLY)
    group.add_argument("--gpu-segments", action=Refused, why=_CPU_ONLY)


def add_file_flags(group: argparse._ArgumentGroup) -> None:
    """Add ``--model`` and ``--tokenizer``."""
    add_model_flag(group)
    help_ = "tokenizer: a file, or a folder with one (default: the model's own, or the one beside it)"
    group.add_argument("--tokenizer", type=file_name, metavar="FILE", help=help_)


def add_model_flag(group: argparse._ActionsContainer) -> None:
    """Add ``--model``."""
    help_ = "model: a .m or .gguf file, a Hugging Face folder, or the name of a downloaded one (see dllama models list)"
    group.add_argument("--model", type=file_name, required=True, metavar="PATH|NAME", help=help_)
    add_weight_flag(group)


def find_model(given: str) -> tuple[str, str | None]:
    """Find what ``--model`` means: a file, a folder, or the name of a downloaded model.

    Returns:
        The model, and the tokenizer that belongs to it, if one is known; they may be the same.

    Raises:
        UsageError: No model of that name is here.
    """
    from dllama.hub import folders

    path = Path(given)
    if not folders.is_model(path) and (found := folders.find_model(given)):
        return str(found.model), str(found.tokenizer)
    if path.exists() or path.name != given or path.suffix == ".m":
        beside = folders.find_tokenizer(path)
        return given, str(beside) if beside else None
    advice = "dllama models list shows those that are here, python3 launch.py --list those that can be had"
    raise UsageError(f"--model {given}: no such model file, and no downloaded model of that name; {advice}")


def find_files(args: argparse.Namespace) -> None:
    """Put paths in place of ``--model NAME`` and of a ``--tokenizer`` that was left away.

    Raises:
        UsageError: No model of that name is here.
    """
    args.model, beside = find_model(args.model)
    args.tokenizer = args.tokenizer or beside


def open_tokenizer(args: argparse.Namespace, config: ModelConfig) -> Tokenizer:
    """Open the tokenizer that ``find_files`` found, once it is known that the model is one.

    Raises:
        UsageError: None was found, or it belongs to another model.
    """
    from dllama.engine import prompts

    tokenizer = prompts.open_tokenizer(args.tokenizer, config)
    if tokenizer is None:
        raise UsageError(f"--tokenizer: none is beside {args.model}, or several are; name one")
    return tokenizer


def add_prompt_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--prompt`` and ``--prompt-file``."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--prompt", metavar="TEXT", help=what)
    help_ = "read it from a file in UTF-8; - for standard input"
    group.add_argument("--prompt-file", type=file_name, metavar="FILE", help=help_)


def read_prompt(args: argparse.Namespace) -> str:
    """Get the text of ``--prompt`` or ``--prompt-file``.

    Raises:
        UsageError: The file cannot be read, or is not UTF-8.
    """
    if args.prompt_file is None:
        return str(args.prompt)
    if args.prompt_file == "-" and sys.stdin is None:
        raise UsageError("--prompt-file -: standard input is closed")
    try:
        raw = sys.stdin.buffer.read() if args.prompt_file == "-" else Path(args.prompt_file).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise UsageError(f"--prompt-file {args.prompt_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompt-file {args.prompt_file}: not UTF-8 at byte {error.start}") from error


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before weights are loaded: a tokenizer that fits the model, the longest context, the workers.

    Use it as a context: workers are let go at its end, however that comes.
    """

    tokenizer: Tokenizer
    context: int
    model_context: int  # the most that --max-seq-len can give
    cluster: Cluster | None = None
    sampling: str = ""  # what generation_config.json chose, for the user

    def __enter__(self) -> Prepared:
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """End the sessions of the workers, if they have not ended yet."""
        if self.cluster is not None:
            self.cluster.close()


def prepare(args: argparse.Namespace, show: Callable[[str], None]) -> Prepared:
    """Find and open both files, reach the workers, compare the need of memory with what is free, and show the facts.

    Nearly all that can go wrong goes wrong here, within seconds.
    """
    from dllama import machine
    from dllama.engine.opening import settle
    from dllama.engine.sizing import NodeOptions
    from dllama.formats.open_model import open_model
    from dllama.version import isa

    find_files(args)
    level = isa()
    options = NodeOptions(
        num_threads=args.nthreads or machine.physical_cores(),
        max_seq_len=args.max_seq_len or None,
        kv_type=kv_type(args),
        wire_type=cluster_flags.wire_type(args),
    )
    with open_model(args.model, weight_type(args, args.model)) as model:
        tokenizer = open_tokenizer(args, model.config)
        cluster = cluster_flags.connect(args, show)
        try:
            size = settle(model.config, options, cluster)
        except BaseException:
            if cluster is not None:
                cluster.close()
            raise
        facts = {"📄": tokenizer.summary(), "💡": model.summary(size.max_seq_len)}
    for mark, values in facts.items():
        for name, value in values.items():
            show(f"{mark} {name}: {value}")
    sampling = take_defaults(args, tokenizer.generation)
    if sampling:
        show(f"🎲 Sampling: {sampling} (of the model)")
    show(f"📀 RequiredMemory: {size.memory.total // MIB} MB")
    show(f"🧠 CPU: {level}")
    return Prepared(tokenizer, size.max_seq_len, model.config.max_seq_len, cluster, sampling)


def load_engine(
    args: argparse.Namespace, prepared: Prepared, show: Callable[[str], None], step_seconds: float | None = None
) -> Engine:
    """Load ``--model``, saying so; ``step_seconds`` as ``Engine.load`` has it."""
    from dllama.engine import Engine

    given = {} if getattr(args, "draft_max", None) is None else {"max_draft": args.draft_max}

    show("💿 Loading weights...")
    bars = cluster_flags.Bars(show, is_live=not args.json)
    try:
        engine = Engine.load(
            args.model,
            prepared.tokenizer,
            num_threads=args.nthreads,
            max_seq_len=prepared.context,
            weight_type=weight_type(args, args.model),
            kv_type=kv_type(args),
            step_seconds=step_seconds,
            wire_type=cluster_flags.wire_type(args),
            workers=prepared.cluster,
            node_progress=bars if prepared.cluster else None,
            progress=_Progress(show),
            **given,
        )
    finally:
        bars.close()
    show("💿 Weights loaded")
    return engine


class _Progress:
    """Shows how much is loaded, once loading has taken a while, a few lines in all."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._next = show, time.monotonic() + PATIENCE_S

    def __call__(self, done: int, total: int) -> None:
        """Take the bytes loaded so far, and all of them."""
        if time.monotonic() >= self._next:
            self._show(f"💿 Loaded {done // MIB}/{total // MIB} MB")
            self._next = time.monotonic() + PATIENCE_S


@dataclass(frozen=True, slots=True)
class StepCost:
    """What steps cost: microseconds of wall clock, those of them spent in exchange, bytes, tokens computed, steps."""

    wall_us: int = 0
    sync_us: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    tokens: int = 0
    steps: int = 0

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(
            self.wall_us + other.wall_us,
            self.sync_us + other.sync_us,
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            self.tokens + other.tokens,
            self.steps + other.steps,
        )

    def line(self, mark: str, rest: str) -> str:
        """Write distributed-llama's line of one step; ``mark`` is its first word."""
        compute, sync = (self.wall_us - self.sync_us) // 1000, self.sync_us // 1000
        sent, received = self.sent_bytes // 1024, self.received_bytes // 1024
        return f"{mark}{compute:5d} ms Sync{sync:5d} ms | Sent{sent:6d} kB Recv{received:6d} kB | {rest}"


def timed_step(engine: Engine) -> tuple[list[Output], StepCost]:
    """Run one step of the engine and measure it, sampling and text included."""
    before, start = engine.counters(), time.perf_counter_ns()
    outputs = engine.step()
    wall_us, after = (time.perf_counter_ns() - start) // 1000, engine.counters()
    spent = {name: after[name] - before[name] for name in _COUNTED}
    return outputs, StepCost(wall_us=wall_us, **spent)
