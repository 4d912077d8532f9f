#!/usr/bin/env python3
"""Make a ``.t`` file of the tokenizer of a Hugging Face folder: ``convert_tokenizer_hf.py FOLDER NAME``.

Writes ``dllama_tokenizer_NAME.t`` in the current folder. As in distributed-llama's converter the tokens that end an
answer are those of ``config.json``; dllama itself reads ``tokenizer.json``, and ``generation_config.json`` beside it.
"""

from __future__ import annotations

import sys

from _start import start  # type: ignore[import-not-found]


def main(words: list[str]) -> None:
    """Convert one tokenizer."""
    from dataclasses import replace
    from pathlib import Path

    from _tokenizer import write_tokenizer  # type: ignore[import-not-found]

    from dllama.formats.generation_config import eos_ids_of
    from dllama.text.hf_files import read_hf_files
    from dllama.text.opening import open_tokenizer

    folder, name = words
    data = open_tokenizer(folder).data
    if eos_ids := eos_ids_of(read_hf_files(Path(folder)).model):
        data = replace(data, eos_ids=eos_ids)
    write_tokenizer(data, name)


if __name__ == "__main__":
    sys.exit(start(main, "FOLDER NAME", (2,)))
