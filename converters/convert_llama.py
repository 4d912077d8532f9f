#!/usr/bin/env python3
"""Make a ``.m`` file of a folder of Meta's: ``convert_llama.py FOLDER q40|q80|f16|f32``.

Reads ``params.json`` and all ``consolidated.*.pth``, without PyTorch, and writes ``dllama_model_FOLDER_TYPE.m`` in the
current folder, with the folder's name in lower case. The file equals that of distributed-llama's converter, byte by
byte, but for what this leaves out: the scaling of rotary embeddings, and an epsilon that is not 1e-5.
"""

from __future__ import annotations

import sys

from _start import start  # type: ignore[import-not-found]


def main(words: list[str]) -> None:
    """Convert one model."""
    from pathlib import Path

    from _model import number_type, write_model  # type: ignore[import-not-found]

    from dllama.formats.meta_folder import open_meta_folder
    from dllama.formats.peer_header import header_of_params

    folder, type_name = Path(words[0]), words[1]
    with open_meta_folder(folder, number_type(type_name)) as source:
        name = folder.resolve().name.lower()
        config = source.config
        scaling = f"scaled by {config.rope_scaling.factor:g}" if config.rope_scaling else "not scaled"
        print(f"context {config.max_seq_len}, {config.vocab_size} tokens, rotary embedding {scaling}")
        write_model(source, f"dllama_model_{name}_{type_name}.m", header_of_params(source.params, config))


if __name__ == "__main__":
    sys.exit(start(main, "FOLDER q40|q80|f16|f32", (2,)))
