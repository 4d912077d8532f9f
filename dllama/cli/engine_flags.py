"""Flags of the commands that load an engine, wherever its nodes are: number types and drafts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllama.cli.parser import whole
from dllama.limits import DEFAULT_MAX_DRAFT, MOST_DRAFT

if TYPE_CHECKING:
    import argparse


def add_draft_flag(group: argparse._ActionsContainer) -> None:
    """Add the flag that bounds guesses, of commands that generate."""
    help_ = "most tokens of a step that are guessed from the text so far and then verified"
    default = f"(default {DEFAULT_MAX_DRAFT}; 0: none)"
    group.add_argument("--draft-max", type=whole(0, MOST_DRAFT), metavar="N", help=f"{help_} {default}")


def add_weight_flag(group: argparse._ActionsContainer) -> None:
    """Add the flag that ``weight_type`` reads."""
    group.add_argument(
        "--weight-type",
        choices=["q40", "q80", "f16", "f32"],
        help="number type that the matrices of a Hugging Face folder are converted to (default: q40)",
    )


def weight_type(args: argparse.Namespace, model: str) -> Any:
    """Give the number type of ``--weight-type`` for a model, None for the default.

    One that is set elsewhere than on the command line is meant for folders, as files have their own.
    """
    is_meant = "weight_type" in args.given or Path(model).is_dir()
    return number_type(args.weight_type) if is_meant else None


def add_kv_flag(group: argparse._ActionsContainer) -> None:
    """Add the flag that ``kv_type`` reads."""
    group.add_argument(
        "--kv-type",
        choices=["f32", "f16", "q80"],
        help="number type of keys and values, q80 in half of f16's memory (default: f16, or f32 for F32 models)",
    )


def kv_type(args: argparse.Namespace) -> Any:
    """Give the number type of ``--kv-type``, None for the default."""
    return number_type(args.kv_type)


def number_type(name: str | None) -> Any:
    """Give the number type that a flag names, None for none."""
    from dllama.config import DType

    return DType[name.upper()] if name else None
