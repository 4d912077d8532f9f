#!/usr/bin/env python3
"""Make ``dllama_tokenizer_llama3.t`` of Llama 3's ``tokenizer.model``: ``convert_tokenizer_llama3.py tokenizer.model``.

Meta publishes no chat template; the one that is written is dllama's own.
"""

from __future__ import annotations

import sys

from _start import start  # type: ignore[import-not-found]


def main(words: list[str]) -> None:
    """Convert one tokenizer."""
    from dataclasses import replace

    from _tokenizer import template, write_tokenizer  # type: ignore[import-not-found]

    from dllama.text.llama3 import llama3_data

    write_tokenizer(replace(llama3_data(words[0]), chat_template=template("llama3")), "llama3")


if __name__ == "__main__":
    sys.exit(start(main, "tokenizer.model", (1,)))
