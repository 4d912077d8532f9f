"""Limits that flags and the engine share, without heavy imports."""

from __future__ import annotations

DEFAULT_MAX_DRAFT = 16
MOST_DRAFT = 31  # with the token before it, as many results as nodes have room for
