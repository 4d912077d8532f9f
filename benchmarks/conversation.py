"""How long a conversation waits for the first word of each answer, with what was read before kept and without.

Run from the root: ``.venv/bin/python benchmarks/conversation.py [--model FILE --tokenizer FILE]``; the model is one of
``models.py``. Each turn is told twice, one right after the other: to an engine that holds the conversation, as
``dllama chat`` does, and to a fresh one. Their answers are compared: they must be the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import MODEL, make_model
from dllama.engine import Engine, SamplingParams

TURNS, MESSAGE_TOKENS, ANSWER_TOKENS = 8, 200, 24
SAMPLING = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True)


def answer(engine: Engine, prompt: list[int]) -> tuple[float, list[int], int]:
    """Give the seconds to the first token, the tokens, and how many of the prompt's were kept from before."""
    start, first, token_ids, num_cached = time.perf_counter(), 0.0, [], 0
    for output in engine.generate(prompt, SAMPLING):
        first = first or time.perf_counter() - start
        assert output.token_id is not None
        token_ids.append(output.token_id)
        num_cached = output.num_cached
    return first, token_ids, num_cached


def message(turn: int, vocab_size: int) -> list[int]:
    """Give the token ids of what a user says; any will do."""
    return [(turn * 7919 + index * 104729) % vocab_size for index in range(MESSAGE_TOKENS)]


def measure(model: Path, tokenizer: Path) -> None:
    """Hold the conversation and print a line for each turn."""
    talk: list[int] = []
    ratios = []
    print("turn  prompt  kept   first word: kept   read anew   ratio")
    with Engine.load(model, tokenizer) as keeping:
        for turn in range(TURNS):
            talk += message(turn, keeping.config.vocab_size)
            kept, said, num_cached = answer(keeping, talk)
            with Engine.load(model, tokenizer) as fresh:
                anew, said_anew, _ = answer(fresh, talk)
            if said != said_anew:
                raise SystemExit(f"turn {turn + 1}: the answers differ")
            ratios.append(anew / kept)
            print(f"{turn + 1:4}  {len(talk):6}  {num_cached:4}  {kept:12.3f} s  {anew:8.3f} s  {ratios[-1]:6.1f}")
            talk += said
    print(f"median of the turns after the first: {statistics.median(ratios[1:]):.1f}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tokenizer", type=Path, default=MODEL.with_suffix(".t"))
    args = parser.parse_args()
    make_model(args.model, args.tokenizer)
    measure(args.model, args.tokenizer)


if __name__ == "__main__":
    main()
