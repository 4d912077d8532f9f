"""``dllama perplexity``: how well a model predicts a text."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dllama.cli.common import add_model_flags, add_prompt_flags, load_engine, prepare, read_prompt, say, to_json
from dllama.errors import UsageError

if TYPE_CHECKING:
    from dllama.engine import Engine

EXAMPLE = """A text longer than the context is scored in pieces of the context's length, each without what came before
it; they overlap by one token, so that every token but the first is scored once.

example: dllama perplexity --model dllama/demo/model.m --tokenizer dllama/demo/tokenizer.t --prompt-file story.txt"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_prompt_flags(parser, "the text to score")
    add_model_flags(parser)


def chunks(tokens: list[int], length: int) -> Iterator[list[int]]:
    """Cut tokens into pieces of at most ``length`` >= 2, each beginning with the last token of the one before."""
    for begin in range(0, len(tokens) - 1, length - 1):
        yield tokens[begin : begin + length]


def log_probs(engine: Engine, tokens: list[int]) -> Iterator[float]:
    """Give the log-probability of every token but the first."""
    if engine.max_seq_len < 2:
        raise UsageError("--max-seq-len: expected at least 2 to score a text, found 1")
    for chunk in chunks(tokens, engine.max_seq_len):
        yield from (float(value) for value in engine.score(chunk))


def results(log_probs: list[float]) -> dict[str, float]:
    """Sum up, under distributed-llama's names."""
    mean = math.fsum(log_probs) / len(log_probs)
    perplexity = math.inf if mean <= -700 else math.exp(-mean)
    return {"perplexity": perplexity, "avgLogProb": mean, "bitPerToken": -mean / math.log(2)}


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    text = read_prompt(args)
    show = (lambda _line: None) if args.json else say
    scored: list[float] = []
    with prepare(args, show) as prepared:
        tokens = prepared.tokenizer.encode(text)
        if len(tokens) < 2:
            raise UsageError(f"--prompt: expected a text of at least 2 tokens, found {len(tokens)}")
        with load_engine(args, prepared, show) as engine:
            show(f"Evaluating {len(tokens)} tokens...")
            for value in log_probs(engine, tokens):
                scored.append(value)
                show(f"{len(scored):5d} / {len(tokens) - 1}, prob={math.exp(value):f}")
    found = results(scored)
    if args.json:
        say(to_json({"model": args.model, "tokens": len(tokens), **found}))
        return
    say("")
    say("Results")
    say(f"   perplexity: {found['perplexity']:f} (lower = better)")
    say(f"   avgLogProb: {found['avgLogProb']:f}")
    say(f"   bitPerToken: {found['bitPerToken']:f}")
