"""``dllama export gguf``: write a model and its tokenizer as one GGUF file, llama.cpp's format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.cli.common import add_file_flags, find_files, open_tokenizer, say, to_json
from dllama.cli.engine_flags import weight_type
from dllama.cli.parser import file_name

if TYPE_CHECKING:
    from dllama.formats.source import ModelSource
    from dllama.text.tokenizer import Tokenizer

EXAMPLE = "example: dllama export gguf --model demo --output demo.gguf"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_file_flags(parser.add_argument_group("model"))
    parser.add_argument("--output", type=file_name, required=True, metavar="FILE", help="the file to write (.gguf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def export(model: ModelSource, tokenizer: Tokenizer, output: str, is_quiet: bool) -> None:
    """Write the file, and show how far it is unless told not to."""
    from dllama.formats.gguf_export import export_gguf
    from dllama.hub.progress import Progress
    from dllama.text.gguf_export import gguf_metadata

    metadata, name = gguf_metadata(tokenizer), Path(output).stem
    if is_quiet:
        export_gguf(model, output, metadata, name)
        return
    with Progress(f"Writing {Path(output).name}", 0, mark="🔶") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        export_gguf(model, output, metadata, name, show)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama.formats.open_model import open_model
    from dllama.text.gguf_export import losses

    find_files(args)
    with open_model(args.model, weight_type(args, args.model)) as model:
        tokenizer = open_tokenizer(args, model.config)
        export(model, tokenizer, args.output, is_quiet=args.json)
        facts, lost = model.summary(), losses(tokenizer)
    size = Path(args.output).stat().st_size
    if args.json:
        say(to_json({"model": args.model, "output": args.output, "bytes": size, "facts": facts, "lost": lost}))
    else:
        for line in lost:
            say(line)
        say(f"{args.output}: {facts['Arch']}, {size} bytes")
