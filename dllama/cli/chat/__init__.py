"""``dllama chat``: a conversation with a model.

Read ``repl.py`` first: it reads messages (``line_reader``), has them answered (``answer``), shows the answers
(``view``, ``screen``, ``wrapping``) and heeds keys (``keys``) and commands (``commands``). ``program`` joins them.
"""

from __future__ import annotations

import argparse

from dllama.cli.chat.settings import THINK, think_kind
from dllama.cli.common import add_model_flags
from dllama.cli.engine_flags import add_draft_flag
from dllama.cli.parser import file_name, whole
from dllama.cli.sampling_flags import add_sampling_flags

EXAMPLE = """examples:
  dllama chat --model demo                       talk to the bundled model
  dllama chat --model MODEL.m --system "Answer in one sentence."
  echo "Why is the sky blue?" | dllama chat --model MODEL.m
In the chat, /help lists the commands."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_model_flags(parser)
    add_draft_flag(parser)
    group = parser.add_argument_group("conversation")
    system = group.add_mutually_exclusive_group()
    system.add_argument("--system", metavar="TEXT", help="system message: how the model is to behave")
    system.add_argument("--system-file", type=file_name, metavar="FILE", help="the same from a file")
    help_ = "how messages are written for the model (default: what the tokenizer file says)"
    group.add_argument("--chat-template", metavar="NAME", help=help_)
    group.add_argument("--load", type=file_name, metavar="FILE", help="go on with a saved conversation")
    help_ = "when the context is full, forget the oldest turns instead of ending"
    group.add_argument("--context-shift", action="store_true", help=help_)
    help_ = "reasoning: show it dimmed, hide it, or ask the model for none (default: show)"
    group.add_argument("--think", type=think_kind, default="show", metavar="|".join(THINK), help=help_)
    help_ = "most tokens of an answer (default 0: until it ends)"
    parser.add_argument("--steps", type=whole(0), default=0, metavar="N", help=help_)
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from dllama.cli.chat.program import run_chat

    run_chat(args)
