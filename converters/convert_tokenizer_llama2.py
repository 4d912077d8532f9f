#!/usr/bin/env python3
"""Make ``dllama_tokenizer_llama2.t`` of Llama 2's ``tokenizer.model``: ``convert_tokenizer_llama2.py FOLDER``.

Meta publishes no chat template; the one that is written is dllama's own.
"""

from __future__ import annotations

import sys

from _start import start  # type: ignore[import-not-found]


def main(words: list[str]) -> None:
    """Convert one tokenizer."""
    from dataclasses import replace
    from pathlib import Path

    from _tokenizer import template, write_tokenizer  # type: ignore[import-not-found]

    from dllama.text.opening import open_tokenizer

    write_tokenizer(
        replace(open_tokenizer(Path(words[0]) / "tokenizer.model").data, chat_template=template("llama2")), "llama2"
    )


if __name__ == "__main__":
    sys.exit(start(main, "FOLDER", (1,)))
