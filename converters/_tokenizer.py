"""What the converters of tokenizers have in common."""

from __future__ import annotations

from _start import ROOT  # type: ignore[import-not-found]

from dllama.formats.t_file import TokenizerData, write_t_file


def template(name: str) -> str:
    """Give one of the chat templates that come with dllama."""
    return str((ROOT / "dllama" / "text" / "templates" / f"{name}.jinja").read_text("utf-8"))


def write_tokenizer(data: TokenizerData, name: str) -> None:
    """Write a tokenizer in the current folder, and say so."""
    path = f"dllama_tokenizer_{name}.t"
    write_t_file(path, data)
    ids = ", ".join(map(str, data.eos_ids))
    print(f"{data.vocab_size} tokens, BOS {data.bos_id}{'' if data.add_bos else ' (not added)'}, EOS {ids}")
    print(f"✅ {path}")
