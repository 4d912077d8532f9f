"""The converters of tokenizers: files equal to distributed-llama's, and ids equal to those of what was converted."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizer_worlds import (  # type: ignore[import-not-found]
    cut_by,
    save,
    spm_bytes,
    texts,
    tiktoken_lines,
    train_byte_level,
    with_bos,
)

from dllama.text.opening import open_tokenizer
from dllama.text.rank_bpe import LLAMA3_PATTERN, QWEN_PATTERN

CONVERTERS = Path(__file__).resolve().parent.parent / "converters"
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for message in messages %}<|start_header_id|>{{ message.content }}<|eot_id|>{% endfor %}"


def convert(script: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONVERTERS / script), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", timeout=60)


def peer_file(
    pieces: Sequence[bytes], scores: Sequence[float], bos_id: int, eos_ids: Sequence[int], template: str, add_bos: bool
) -> bytes:
    """What distributed-llama's writer makes: keys in its order, template, EOS ids, then every piece with its score."""
    text = template.encode()
    pairs = [(3, bos_id), (0, 1), (1, len(pieces)), (2, max(map(len, pieces)))]
    pairs += [(7, len(text))] * bool(text) + [(9, len(eos_ids)), (10, int(add_bos))]
    raw = struct.pack("<ii", 0x567124, 8 + 8 * len(pairs)) + b"".join(struct.pack("<ii", *pair) for pair in pairs)
    raw += text + struct.pack(f"<{len(eos_ids)}i", *eos_ids)
    return raw + b"".join(
        struct.pack("<fI", score, len(piece)) + piece for piece, score in zip(pieces, scores, strict=True)
    )


def bytes_of_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def converted(tmp_path: Path, script: str, *words: object) -> bytes:
    result = convert(script, *words, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    (path,) = tmp_path.glob("*.t")
    assert result.stdout.endswith(f"✅ {path.name}\n")
    return path.read_bytes()


def check_ids(converted_file: Path, source: Path, names: Sequence[str]) -> None:
    ours, theirs = open_tokenizer(converted_file), open_tokenizer(source)
    for text in texts(500, names):
        assert ours.encode(text, add_bos=True) == theirs.encode(text, add_bos=True), text


@pytest.mark.parametrize("is_qwen", [False, True])
def test_hugging_face_tokenizer_equals_the_peer(tmp_path: Path, is_qwen: bool) -> None:
    special = QWEN_SPECIAL if is_qwen else SPECIAL
    library = train_byte_level(cut_by(QWEN_PATTERN if is_qwen else LLAMA3_PATTERN), special, composes=is_qwen)
    library = library if is_qwen else with_bos(library, SPECIAL[0])
    first = library.token_to_id(special[0])
    eos_ids = [first + 2, first + 1]
    settings: dict[str, object] = {
        "tokenizer_class": "Qwen2Tokenizer" if is_qwen else "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    }
    if is_qwen:
        settings["add_bos_token"] = False
    config = {"bos_token_id": first, "eos_token_id": eos_ids}
    generation = {"eos_token_id": [first + 2, first + 1, first]}
    source = save(library, tmp_path / "source", settings, generation_config=generation)
    (source.parent / "config.json").write_text(json.dumps(config))
    found = converted(tmp_path, "convert_tokenizer_hf.py", source.parent, "x")
    assert (tmp_path / "dllama_tokenizer_x.t").exists()
    letters = bytes_of_letters()
    pieces = []
    for token_id in range(library.get_vocab_size()):
        name = library.id_to_token(token_id)
        assert name is not None
        pieces.append(b"".join(bytes([letters[char]]) if char in letters else char.encode() for char in name))
    scores = [-float(token_id) for token_id in range(len(pieces))]
    assert found == peer_file(pieces, scores, first, eos_ids, TEMPLATE, add_bos=not is_qwen)
    check_ids(tmp_path / "dllama_tokenizer_x.t", source, special)


def test_sentencepiece(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(spm_bytes("bpe"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    converted(tmp_path, "convert_tokenizer_llama2.py", folder)
    path = tmp_path / "dllama_tokenizer_llama2.t"
    check_ids(path, folder / "tokenizer.model", [])
    tokenizer = open_tokenizer(path)
    assert "[INST]" in tokenizer.chat_templates["default"]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, (2,), True)


def test_tiktoken(tmp_path: Path) -> None:
    library = train_byte_level(cut_by(LLAMA3_PATTERN), [])
    source = tmp_path / "tokenizer.model"
    source.write_bytes(tiktoken_lines(library))
    converted(tmp_path, "convert_tokenizer_llama3.py", source)
    path = tmp_path / "dllama_tokenizer_llama3.t"
    tokenizer = open_tokenizer(path)
    first = library.get_vocab_size()
    assert tokenizer.vocab_size == first + 256
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (first, (first + 1, first + 9))
    assert "<|start_header_id|>" in tokenizer.chat_templates["default"]
    check_ids(path, source, SPECIAL)


def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{" * 100)
    for script, words, status in (
        ("convert_tokenizer_hf.py", (tmp_path, "x"), 3),
        ("convert_tokenizer_hf.py", (tmp_path / "absent", "x"), 2),
        ("convert_tokenizer_llama2.py", (tmp_path,), 2),
        ("convert_tokenizer_llama3.py", (tmp_path / "tokenizer.json",), 3),
        ("convert_tokenizer_llama3.py", (), 2),
    ):
        result = convert(script, *words, cwd=tmp_path)
        assert result.returncode == status, result.stderr
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.t"))
