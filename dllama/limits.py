"""Limits that flags, the engine and readers of models share, without heavy imports."""

from __future__ import annotations

DEFAULT_MAX_DRAFT = 16
MOST_DRAFT = 31  # with the token before it, as many results as nodes have room for
# Of what a model multiplies or divides by: reciprocals, and products with a position, are finite in float32.
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-30, 1e30
