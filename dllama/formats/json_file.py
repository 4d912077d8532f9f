"""Reading the JSON files beside a model's weights, which are as little to be trusted as the weights."""

from __future__ import annotations

import json
from typing import Final

from dllama.formats.checked_file import CheckedFile

MOST_JSON_BYTES: Final = 4 << 20  # of a configuration: hundreds of times what any has


def read_json(file: CheckedFile) -> object:
    """Parse an open file, as lenient as transformers is: NaN and infinities count as numbers.

    Raises:
        BadFile: It is too large, or no JSON.
    """
    if file.size > MOST_JSON_BYTES:
        raise file.bad("size", f"at most {MOST_JSON_BYTES} bytes of JSON", f"{file.size} bytes")
    raw = file.read(0, file.size, "text")
    try:
        value: object = json.loads(raw)
    except RecursionError:
        raise file.bad("", "JSON", "brackets nested without end") from None
    except ValueError as error:  # no UTF-8, no JSON, or numbers of thousands of digits
        raise file.bad("", "JSON", str(error).splitlines()[0]) from None
    return value
