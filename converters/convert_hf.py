#!/usr/bin/env python3
"""Make a ``.m`` file of a Hugging Face folder: ``convert_hf.py SRC q40|q80|f16|f32 NAME``.

Writes ``dllama_model_NAME_TYPE.m`` in the current folder. Of the families that distributed-llama knows the file equals
its converter's, byte by byte.
"""

from __future__ import annotations

import sys

from _start import start  # type: ignore[import-not-found]


def main(words: list[str]) -> None:
    """Convert one model."""
    from pathlib import Path

    from _model import number_type, write_model  # type: ignore[import-not-found]

    from dllama.formats.hf_folder import open_hf_folder
    from dllama.formats.json_file import read_object
    from dllama.formats.peer_header import header_of_config

    folder, type_name, name = words
    with open_hf_folder(folder, number_type(type_name)) as source:
        raw = read_object(Path(folder, "config.json"), "configuration")
        write_model(source, f"dllama_model_{name}_{type_name}.m", header_of_config(raw, source.config))


if __name__ == "__main__":
    sys.exit(start(main, "SRC q40|q80|f16|f32 NAME", (3,)))
