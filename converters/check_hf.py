#!/usr/bin/env python3
"""Say whether dllama can run a Hugging Face model before its weights are there: ``check_hf.py SRC q40|… [CONTEXT]``.

Reads ``config.json`` and the tokenizer. With a context, the memory that the model needs for so many tokens on this
machine alone is compared with what is free. ``launch.py`` runs it; writes nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from _start import start  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from dllama.config import ModelConfig


def main(words: list[str]) -> None:
    """Check one model; raises what is wrong with it."""
    from dataclasses import replace
    from pathlib import Path

    from _model import number_type  # type: ignore[import-not-found]

    from dllama.families import describe
    from dllama.formats.json_file import read_object
    from dllama.hub.folders import CONFIG
    from dllama.text.opening import open_tokenizer

    folder, type_name, *context = words
    path = Path(folder, CONFIG)
    config = replace(describe(read_object(path, "configuration"), path).config, weight_type=number_type(type_name))
    open_tokenizer(folder)
    if context:
        check_memory(config, context[0])


def check_memory(config: ModelConfig, context: str) -> None:
    """Compare what one node needs with what is free."""
    from dllama import machine
    from dllama.engine.sizing import NodeOptions, settle_size
    from dllama.errors import UsageError
    from dllama.plan import make_plan

    if not context.isdecimal():
        raise UsageError(f"CONTEXT: expected a number of tokens, found '{context:.40}'")
    options = NodeOptions(num_threads=machine.physical_cores(), max_seq_len=int(context))
    settle_size(config, make_plan(config), 0, options, machine.available_memory())


if __name__ == "__main__":
    sys.exit(start(main, "SRC q40|q80|f16|f32 [CONTEXT]", (2, 3)))
