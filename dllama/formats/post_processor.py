"""What the post-processor of a ``tokenizer.json`` puts before and behind a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllama.errors import BadFile, UnsupportedModel
from dllama.formats.tokenizer_json import walk
from dllama.formats.vocabulary_bounds import MAX_VOCAB_SIZE

_MOST = 8  # ids on either side


def added_ids(path: str, part: Mapping[str, Any] | None) -> tuple[list[int], list[int]]:
    """Give the ids before and behind every text.

    Raises:
        BadFile: The part has not its known form. UnsupportedModel: It is of another kind.
    """
    before: list[int] = []
    behind: list[int] = []
    for each in walk(part):
        kind = each.get("type")
        if kind == "TemplateProcessing":
            left, right = _template(path, each)
        elif kind in ("BertProcessing", "RobertaProcessing"):
            left, right = [_pair(path, each.get("cls"))], [_pair(path, each.get("sep"))]
        elif kind in ("ByteLevel", "Sequence"):
            continue
        else:
            expected = "TemplateProcessing, ByteLevel or a Sequence of them"
            raise UnsupportedModel(path, "post_processor", expected, f"{kind!r:.80}")
        before, behind = left + before, behind + right
    if len(before) > _MOST or len(behind) > _MOST:
        raise BadFile(path, "post_processor", f"at most {_MOST} tokens before and behind a text", "more")
    return before, behind


def _template(path: str, part: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Read ``single``: the tokens and, between them, the text."""
    ids: list[int] = []
    place: int | None = None
    items, known = part.get("single"), part.get("special_tokens")
    for item in items if isinstance(items, list) else ():
        if isinstance(known, dict) and isinstance(item, dict) and isinstance(item.get("SpecialToken"), dict):
            named = known.get(str(item["SpecialToken"].get("id")))
            ids += _ids(path, named.get("ids") if isinstance(named, dict) else None)
        elif isinstance(item, dict) and "Sequence" in item and place is None:
            place = len(ids)
        else:
            raise _bad(path)
    if place is None:
        raise _bad(path)
    return ids[:place], ids[place:]


def _ids(path: str, ids: object) -> list[int]:
    if not isinstance(ids, list) or not all(map(_is_id, ids)):
        raise _bad(path)
    return ids


def _pair(path: str, pair: object) -> int:
    if not isinstance(pair, list) or len(pair) != 2 or not _is_id(pair[1]):
        raise _bad(path)
    return int(pair[1])


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_VOCAB_SIZE


def _bad(path: str) -> BadFile:
    return BadFile(path, "post_processor", "tokens by name and id, and one text between them", "another form")
