"""Whatever a config holds, it ends in an error that names what is wrong, or in a model."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

from family_models import FOLDER  # type: ignore[import-not-found]
from hypothesis import given
from hypothesis import strategies as st

from dllama.errors import BadFile
from dllama.families import describe

FAMILY_CONFIGS = [json.loads(path.read_text())["config"] for path in sorted(FOLDER.glob("*.json"))]
# What a field of another kind, size or sign may hold.
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 64, 2**31, 2**63, 10**400, 0.0, -0.5, 0.5, 1e-300, 1e308),
    *(float("inf"), float("nan"), "", "silu", "yarn", "x" * 1000, [], [0], [1, 2], [1.0] * 5000, [None]),
    *(
        ["full_attention"] * 2,
        ["sliding_attention"] * 2,
        {},
        {"rope_type": "longrope"},
        {"full_attention": 3},
        [[]],
        {"": {}},
    ),
]


def test_odd_configs_by_the_thousand() -> None:
    """Two fields at a time, at random, are something else: an error that names what is wrong, or a model."""
    rng, count = random.Random(5), 0
    for _ in range(20_000):
        config = dict(rng.choice(FAMILY_CONFIGS))
        for _ in range(2):
            owner, key = config, rng.choice(sorted(config))
            if isinstance(owner[key], dict) and owner[key]:
                config[key] = owner = dict(owner[key])
                key = rng.choice(sorted(owner))
            owner[key] = rng.choice(ODD)
        try:
            describe(config, "config.json")
        except BadFile:
            count += 1
    assert 5_000 < count < 20_000


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_field_may_be_anything(data: st.DataObject) -> None:
    """A broken config ends in an error that names what is wrong, whatever is broken."""
    config = dict(data.draw(st.sampled_from(FAMILY_CONFIGS)))
    for _ in range(data.draw(st.integers(1, 3))):
        owner = config
        key = data.draw(st.sampled_from(sorted(owner)))
        if isinstance(owner[key], dict) and owner[key] and data.draw(st.booleans()):
            config[key] = owner = dict(owner[key])
            key = data.draw(st.sampled_from(sorted(owner)))
        owner[key] = data.draw(JUNK)
    with suppress(BadFile):
        describe(config, "config.json")
