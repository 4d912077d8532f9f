"""Tests on networks of namespaces: they need root, for whom nothing is skipped."""

from __future__ import annotations

import os

import pytest

from tools.lan import problem


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid():
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"{problem()}; run make test-lan as root"))
