"""``launch.py``: set dllama up, fetch a model if need be, and run it.

Standard library only. What can fail fails first: the system, the disk and the memory are looked at before anything is
downloaded, and the core is compiled before the hours that a download may take.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

from dllama.errors import DllamaError, UsageError
from dllama.hub import checkout, folders
from dllama.hub.catalogue import CATALOGUE, Entry, find_entry
from dllama.hub.local_workers import run_nodes
from dllama.hub.path_launch import is_path
from dllama.hub.progress import size_text
from dllama.hub.repository import PREFIX, parse_reference

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

DEMO_PROMPT = "Once upon a time"
DEMO_SEED = 2
DEMO_NODES = 2
MOST_NODES = 64

_NODES_HELP = """run on N nodes of this machine: a root and N-1 workers, which end with it (default: 1; demo: 2). The
physical cores are shared out equally, at least one thread for each; more nodes than cores work, but take turns.
--nthreads in the environment or the configuration file is each node's instead"""

_NAME_HELP = """a model of --list; hf:ORG/MODEL, from Hugging Face (hf:ORG/MODEL@REVISION, or hf:ORG/MODEL:Q4_K_M for
one of its GGUF files); the path of a .m or .gguf file, or of a Hugging Face folder; demo: the bundled model; setup:
only prepare .venv"""

NEXT_STEPS = """
That was the bundled model, on {where}. Next things to try:

  {dllama} chat --model demo
      talk to it
  python3 {launch} --list
      the models that can be downloaded by name, and talked to
  {dllama} chat --model YOUR.m --tokenizer YOUR.t
      a model file of distributed-llama's that you have
  {dllama} inference --model demo --prompt "Once upon a time, there was a little fox"
      another story, a new one each time; --seed N repeats one
  {dllama} bench -m demo -p 64 -n 32
      how fast this machine is
  {dllama} worker --key-file cluster.key
      on another machine: takes its part of a model that runs here with --workers HOST:9990; see {guide}
  {dllama} doctor
      what could make it faster
  {dllama} --help
      all commands
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(f"{message}; see python3 launch.py --help")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; argparse's own ignores that a disk is full."""
        print(self.format_help(), end="", file=file)
        print(end="", flush=True)


def make_parser() -> Parser:
    """Say what the command line may hold."""
    parser = Parser(
        prog="launch.py", allow_abbrev=False, description="Set dllama up in .venv, download a model, and run it."
    )
    parser.add_argument("name", nargs="?", metavar="MODEL", help=_NAME_HELP)
    parser.add_argument(
        "extras", nargs="*", help="with setup: extras of pyproject.toml to install as well (test, lint, compare)"
    )
    parser.add_argument("--nodes", type=_nodes, metavar="N", help=_NODES_HELP)
    parser.add_argument("--workers", nargs="+", metavar="HOST:PORT", help="run with these workers, on other machines")
    parser.add_argument("--key-file", metavar="FILE", help="the key that is shared with them")
    models = parser.add_argument_group("models")
    models.add_argument("--list", action="store_true", help="show the models that can be downloaded")
    models.add_argument("--dry-run", action="store_true", help="say what would be fetched, and whether it fits")
    models.add_argument("--json", action="store_true", help="with --list and --dry-run: print JSON alone")
    models.add_argument("-y", "--yes", action="store_true", help="download without asking")
    models.add_argument("-skip-run", "--skip-run", action="store_true", help="only download; needs no compiler")
    models.add_argument("-skip-script", "--skip-script", action="store_true", help="do not write run_NAME.sh")
    demo = parser.add_argument_group("demo")
    demo.add_argument("--prompt", default=DEMO_PROMPT, help="how the story begins (default: %(default)s)")
    demo.add_argument("--steps", type=int, default=256, help="most tokens to generate (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=DEMO_SEED, help="another seed, another story")
    return parser


def _nodes(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= MOST_NODES:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_NODES}, found {text!r:.80}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; raises UsageError for what it cannot use."""
    options = make_parser().parse_args(arguments)
    name = options.name
    if not options.list and name not in ("demo", "setup") and not _is_known(name):
        raise UsageError(_unknown(name))
    unknown = options.extras if name != "setup" else []
    if options.list and name is not None:
        unknown = [name]
    if unknown:
        raise UsageError(f"unknown argument '{unknown[0]}'; see python3 launch.py --help")
    if options.dry_run and (name in ("demo", "setup") or _is_here(name)):
        raise UsageError("--dry-run is for models that are downloaded; see python3 launch.py --list")
    if options.nodes and (options.list or options.dry_run or name == "setup"):
        raise UsageError("--nodes says how a model is run; leave it away with --list, --dry-run and setup")
    if (options.workers or options.key_file) and (options.nodes or options.list or name in ("demo", "setup")):
        raise UsageError("--workers and --key-file run a model on other machines; leave --nodes and others away")
    if options.json and not (options.list or options.dry_run):
        raise UsageError("--json goes with --list or --dry-run")
    return options


def _is_known(name: str | None) -> bool:
    """Whether a name means some model; raises UsageError for a reference that is written wrongly."""
    if name is not None and name.startswith(PREFIX):
        parse_reference(name)
        return True
    return name is not None and (find_entry(name) is not None or is_path(name))


def _is_here(name: str | None) -> bool:
    return name is not None and not name.startswith(PREFIX) and find_entry(name) is None and is_path(name)


def _unknown(name: str | None) -> str:
    available = "available: demo (the bundled model), those of python3 launch.py --list, hf:ORG/MODEL, and paths"
    if name is None:
        return f"name a model; {available}. Run: python3 launch.py demo"
    close = difflib.get_close_matches(name.replace("-", "_"), CATALOGUE, 1)
    return f"unknown name '{name}'; {f'did you mean {close[0]}? ' if close else ''}{available}"


def run_command(options: argparse.Namespace) -> int:
    """Do what was asked for and return the exit code."""
    if options.list:
        return list_models(as_json=options.json)
    if options.name not in ("demo", "setup"):
        return _run_model(options)
    with checkout.only_one():
        checkout.set_up(options.extras)
    return run_demo(options) if options.name == "demo" else 0


def _run_model(options: argparse.Namespace) -> int:
    from dllama.hub import model_launch, path_launch, repository_launch

    if options.name.startswith(PREFIX):
        reference = parse_reference(options.name)
        return (repository_launch.dry_run if options.dry_run else repository_launch.launch_repository)(
            reference, options
        )
    entry = find_entry(options.name)
    if entry is None:
        return path_launch.launch_path(options.name, options)
    return (model_launch.dry_run if options.dry_run else model_launch.launch_model)(entry, options)


def list_models(*, as_json: bool) -> int:
    """Show the catalogue, and what of it is here."""
    if as_json:
        print(json.dumps([_listed(entry) for entry in CATALOGUE.values()], indent=1), flush=True)
        return 0
    print(f"{'name':34}{'download':>10}{'memory':>10}")
    for entry in CATALOGUE.values():
        remark = "is here" if folders.find_model(entry.name) else ""
        sizes = f"{size_text(entry.model_bytes):>10}{size_text(entry.memory_bytes):>10}"
        print(f"{entry.name:34}{sizes}  {remark}".rstrip())
    print("\nMemory is for a context of 4096 tokens. Run one: python3 launch.py NAME", flush=True)
    return 0


def _listed(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "repository": entry.page,
        "model_bytes": entry.model_bytes,
        "memory_bytes": entry.memory_bytes,
        "is_here": folders.find_model(entry.name) is not None,
    }


def run_demo(options: argparse.Namespace) -> int:
    """Run the bundled model and say what to try next."""
    demo = folders.bundled_model()
    for file in (demo.model, demo.tokenizer):
        if not file.is_file():
            back = f"git checkout -- {checkout.from_here(demo.folder)}"
            raise checkout.SetupError(f"{checkout.from_here(file)} is missing; get it back with: {back}")
    dllama = checkout.program()
    command = [str(dllama), "inference", "--model", str(demo.model), "--tokenizer", str(demo.tokenizer)]
    command += ["--prompt", options.prompt, "--steps", str(options.steps), "--seed", str(options.seed), "--text"]
    nodes = options.nodes or DEMO_NODES
    status = run_nodes(command, nodes)
    if status == 0:
        where = "this machine's CPU" if nodes == 1 else f"a cluster of {nodes} nodes, all of them on this machine"
        files = {"dllama": dllama, "launch": checkout.ROOT / "launch.py", "guide": checkout.ROOT / "docs/cluster.md"}
        paths = {name: checkout.from_here(file) for name, file in files.items()}
        print(NEXT_STEPS.format(where=where, **paths), flush=True)
    return status


def main(arguments: list[str]) -> int:
    """Run one command and return the exit code."""
    try:
        return run_command(parse(arguments))
    except DllamaError as error:
        return complain(f"🚨 {error}", error.exit_code)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(file=sys.stderr)  # below the ^C
        return complain("🛑 Interrupted; what is there is kept, run the same command again to go on", 130)
    except BrokenPipeError:
        drop(sys.stdout)
        return 141
    except OSError as error:
        drop(sys.stdout)
        return complain(f"🚨 {error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)


def complain(text: str, status: int) -> int:
    """Say on stderr in one line what went wrong; if that cannot be, the exit code still says so."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    try:
        print(shown, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)
    return status


def drop(stream: TextIO) -> None:
    """Let the interpreter's last flush go nowhere: the reader of this stream is gone or cannot take more."""
    with contextlib.suppress(OSError, AttributeError):  # no such file, or no such stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
