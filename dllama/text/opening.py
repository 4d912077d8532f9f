"""From a path to a vocabulary: what kind of tokenizer file it is, and what lies beside it.

What reads a kind is imported when it is met: a ``.t`` file needs none of the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dllama.errors import BadFile, UnsupportedModel, UsageError
from dllama.formats.checked_file import CheckedFile
from dllama.formats.t_file import read_t_file
from dllama.hub.folders import TOKENIZERS
from dllama.text.t_vocabulary import TVocabulary
from dllama.text.tokenizer import Tokenizer
from dllama.text.vocabulary import NO_ID, Facts, Vocabulary

if TYPE_CHECKING:
    from dllama.formats.spm_model import SpmModel
    from dllama.formats.tokenizer_json import AddedToken, TokenizerJson
    from dllama.text.hf_files import HfFiles

_KINDS = "a tokenizer: .t, tokenizer.json, tokenizer.model (SentencePiece or tiktoken), or GGUF"
_T_MAGICS = (b"\x24\x71\x56\x00", b"\x23\x71\x56\x00")
# transformers adds BOS and EOS for these by tokenizer_config.json, whatever tokenizer.json says.
_ADD_BY_CONFIG = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load a tokenizer: ``.t``, ``tokenizer.json``, ``tokenizer.model``, GGUF, or a Hugging Face folder.

    Beside ``tokenizer.json`` and ``tokenizer.model`` other files of a Hugging Face folder are read if they are there:
    tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja, config.json and
    generation_config.json.

    Raises:
        UsageError: There is no such file, or it may not be opened.
        BadFile: It is not sound. UnsupportedModel: It does what dllama cannot.
    """
    return Tokenizer(open_vocabulary(path))


def open_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Give the vocabulary of ``open_tokenizer``."""
    path = _file_of(Path(path))
    head = _head(path)
    if path.suffix == ".t" or head.startswith(_T_MAGICS):
        return TVocabulary(read_t_file(path), os.fspath(path))
    return _reader_of(path, head)(path)


def find_in_folder(folder: Path) -> Path | None:
    """Find the tokenizer of a Hugging Face folder, or its only ``.t`` file."""
    own = sorted(folder.glob("*.t"))
    named = [folder / name for name in TOKENIZERS] + (own if len(own) == 1 else [])
    return next((path for path in named if path.is_file()), None)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = find_in_folder(path)
    if found is None:
        raise UsageError(f"{path}: no tokenizer in this folder; expected {' or '.join(TOKENIZERS)}, or one .t file")
    return found


def _head(path: Path) -> bytes:
    with CheckedFile(path, "tokenizer") as file:
        return file.read(0, min(file.size, 512), "head")


def _reader_of(path: Path, head: bytes) -> Callable[[Path], Vocabulary]:
    from dllama.formats.tiktoken_file import FIRST_LINE

    if head.startswith(b"GGUF"):
        return _open_gguf
    if head.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"{"):
        return _open_json
    if FIRST_LINE.match(head):
        return _open_tiktoken
    if head.startswith(b"\n"):  # field 1 of a message: SentencePiece writes its pieces first
        return _open_spm
    raise BadFile(path, "", _KINDS, f"a file that begins with {head[:8]!r}")


def _open_gguf(path: Path) -> Vocabulary:
    from dllama.formats.gguf_container import read_container
    from dllama.text.gguf_vocabulary import gguf_vocabulary

    return gguf_vocabulary(os.fspath(path), read_container(path, "tokenizer").metadata)


def _open_tiktoken(path: Path) -> Vocabulary:
    from dllama.text.llama3 import llama3_data

    return TVocabulary(llama3_data(path), os.fspath(path))


def _open_json(path: Path) -> Vocabulary:
    from dllama.formats.tokenizer_json import read_tokenizer_json
    from dllama.text.hf_files import missing_from, read_hf_files
    from dllama.text.json_vocabulary import JsonVocabulary

    file, files = read_tokenizer_json(path), read_hf_files(path.parent)
    names = [token.content for token in file.added]
    file = file.with_added(missing_from([*names, *(piece for piece in file.pieces if piece)], files.added_tokens()))
    ids = file.ids()
    before, behind = _ends(file, max(ids.values()))
    adds_bos, adds_eos = _adds(files, bool(before)), _adds(files, bool(behind), "eos")
    default = Facts(before[0] if before else NO_ID, tuple(behind[:1]), adds_bos, adds_eos)
    return JsonVocabulary(file, files.facts(ids.get, max(ids.values()) + 1, default))


def _adds(files: HfFiles, by_file: bool, what: str = "bos") -> bool:
    """Whether BOS or EOS is added: as the post-processor does, but for classes that have their own switch."""
    flag = files.flag(f"add_{what}_token")
    return flag if flag is not None and files.tokenizer_class in _ADD_BY_CONFIG else by_file


def _ends(file: TokenizerJson, last: int) -> tuple[list[int], list[int]]:
    """Give the ids that the post-processor puts before and behind a text, none of them above ``last``."""
    from dllama.formats.post_processor import added_ids

    before, behind = added_ids(file.path, file.parts["post_processor"])
    if max([*before, *behind], default=0) > last:
        raise BadFile(file.path, "post_processor", f"ids up to {last}", str(max(before + behind)))
    if len(before) > 1 or len(behind) > 1:
        raise UnsupportedModel(file.path, "post_processor", "one token at most before and behind a text", "more")
    return before, behind


def _open_spm(path: Path) -> Vocabulary:
    from dllama.formats.spm_model import read_spm_model
    from dllama.text.hf_files import missing_from, read_hf_files
    from dllama.text.spm_vocabulary import SpmVocabulary

    model, files = read_spm_model(path), read_hf_files(path.parent)
    ids = {piece: token_id for token_id, piece in enumerate(model.pieces)}
    added = missing_from(ids, files.added_tokens())
    _check_added(path, model, added)
    ids |= {token.content: token.id for token in added}
    default = _spm_facts(model, files)
    facts = files.facts(ids.get, len(ids), default)
    if not facts.token_texts:
        facts = replace(facts, token_texts=_spm_texts(model))
    return SpmVocabulary(os.fspath(path), model, facts, added, space_everywhere=files.flag("legacy") is True)


def _check_added(path: Path, model: SpmModel, added: Sequence[AddedToken]) -> None:
    for place, token in enumerate(added, len(model.pieces)):
        if token.id != place:
            raise BadFile(path, "added tokens", f"id {place} behind the model's own", str(token.id))


def _spm_facts(model: SpmModel, files: HfFiles) -> Facts:
    eos_ids = (model.eos_id,) if model.eos_id != NO_ID else ()
    adds_bos = files.flag("add_bos_token") is not False and model.bos_id != NO_ID
    return Facts(model.bos_id, eos_ids, adds_bos, files.flag("add_eos_token") or False)


def _spm_texts(model: SpmModel) -> Mapping[str, str]:
    ids = {"bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    return {name: model.pieces[token_id] for name, token_id in ids.items() if token_id != NO_ID}
