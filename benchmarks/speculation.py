"""What guessing from the text so far gains on texts that quote, and what it costs on texts that do not.

Run from the root: ``.venv/bin/python benchmarks/speculation.py [--model FILE] [--case NAME …]``. A random model quotes
nothing, so each answer of ``benchmarks/transcripts`` is replayed: every step is computed, and every token is chosen
greedily from its logits, but the one that the transcript has next is taken. With and without drafts take turns; each
time the engine knows nothing of how long steps take.

Guesses depend on how a text is cut into tokens. By default it is cut into words of at most seven letters with the blank
before them, single marks and line ends, which is about how Llama 3 cuts it. ``--tokens demo`` takes the bundled model's
tokens, which are shorter: a quotation has more of them, and matches of three that mean nothing are more frequent.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from one_machine import MODEL, ROOT, make_model  # type: ignore[import-not-found]

from dllama.engine import Engine, SamplingParams
from dllama.engine.sampling import Row, Sampler
from dllama.engine.step_times import StepTimes
from dllama.text.tokenizer import Tokenizer

TRANSCRIPTS = ROOT / "benchmarks" / "transcripts"
REQUIRED = {"code": 1.6, "proofreading": 1.6, "summary": 1.6, "questions": 1.6, "chat": 0.98, "story": 0.98}
BETWEEN = "=== answer ===\n"
PIECE = re.compile(r" ?[^\W\d_]{1,7}|\d{1,3}| +(?= )|.|\n", re.DOTALL)
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Transcript:
    """A prompt and the answer that is replayed, as token ids."""

    name: str
    prompt: list[int]
    answer: list[int]
    num_chars: int  # of the answer


def read_transcripts(tokens: str) -> list[Transcript]:
    """Read all transcripts and cut them into tokens: ``"words"``, numbered as they come, or ``"demo"``."""
    ids: dict[str, int] = {}
    demo = Tokenizer.from_file(ROOT / "dllama" / "demo" / "tokenizer.t")

    def encode(text: str) -> list[int]:
        if tokens == "demo":
            return demo.encode(text)
        return [ids.setdefault(piece, len(ids)) for piece in PIECE.findall(text)]

    transcripts = []
    for name in REQUIRED:
        prompt, answer = (TRANSCRIPTS / f"{name}.txt").read_text(encoding="utf-8").split(BETWEEN)
        transcripts.append(Transcript(name, encode(prompt), encode(answer), len(answer)))
    return transcripts


class Replay(Sampler):
    """Chooses as it would, and then takes what the transcript has."""

    def __init__(self, transcript: Transcript, vocab_size: int) -> None:
        super().__init__(GREEDY, len(transcript.prompt), vocab_size)
        self._transcript = transcript

    def choose(self, row: Row, token_ids: Any) -> int:
        """Give the token that follows ``token_ids`` in the transcript."""
        super().choose(row, token_ids)
        return self._transcript.answer[len(token_ids) - len(self._transcript.prompt)]


def replay(engine: Engine, transcript: Transcript, is_drafted: bool) -> tuple[float, float]:
    """Give the tokens per second behind the first, and the share of the steps' drafts that was right."""
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=len(transcript.answer))
    request = engine._requests[engine.add(transcript.prompt, params)]
    request._sampler = Replay(transcript, engine.config.vocab_size)
    if not is_drafted:
        request.sequence.drafter = None
    engine._executor._scheduler.step_times = StepTimes()
    outputs = engine.step()
    while not outputs:
        outputs = engine.step()
    before, start = engine.drafts(), time.perf_counter()
    while engine.has_work:
        outputs += engine.step()
    seconds, after = time.perf_counter() - start, engine.drafts()
    assert [output.token_id for output in outputs] == transcript.answer
    drafted, accepted = (after[name] - before[name] for name in ("drafted", "accepted"))
    return (len(outputs) - 1) / seconds, accepted / drafted if drafted else 0.0


def measure(engine: Engine, transcript: Transcript, rounds: int) -> dict[str, Any]:
    """Replay a transcript in turns, with drafts and without; give the record of it."""
    plain, drafted, shares = [], [], []
    for _ in range(rounds):
        plain.append(replay(engine, transcript, is_drafted=False)[0])
        speed, share = replay(engine, transcript, is_drafted=True)
        drafted.append(speed)
        shares.append(share)
    ratios = [with_ / without for with_, without in zip(drafted, plain, strict=True)]
    return {
        "benchmark": "speculation",
        "case": transcript.name,
        "ratio": statistics.median(ratios),
        "required": REQUIRED[transcript.name],
        "ratios": ratios,
        "plain_tokens_per_second": statistics.median(plain),
        "drafted_tokens_per_second": statistics.median(drafted),
        "accepted_share": statistics.median(shares),
        "prompt_tokens": len(transcript.prompt),
        "answer_tokens": len(transcript.answer),
        "chars_per_token": transcript.num_chars / len(transcript.answer),
    }


def show(record: dict[str, Any]) -> None:
    """Print the line of one transcript."""
    mark = "ok    " if record["ratio"] >= record["required"] else "MISSED"
    spread = f"{min(record['ratios']):.2f} to {max(record['ratios']):.2f}"
    print(
        f"{mark} {record['case']:<13} {record['plain_tokens_per_second']:7.1f} -> "
        f"{record['drafted_tokens_per_second']:7.1f} tokens/s  ratio {record['ratio']:.3f} ({spread}), "
        f"required {record['required']:g}  {record['answer_tokens']} tokens, {record['accepted_share']:.0%} accepted",
        flush=True,
    )


def main() -> int:
    """Measure what is asked for; 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--case", nargs="+", choices=list(REQUIRED), default=list(REQUIRED))
    parser.add_argument("--tokens", choices=["words", "demo"], default="words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nthreads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as a list of records")
    args = parser.parse_args()
    make_model(args.model, args.model.with_suffix(".t"))
    records = []
    with Engine.load(args.model, num_threads=args.nthreads, max_seq_len=4096) as engine:
        for transcript in read_transcripts(args.tokens):
            if transcript.name in args.case:
                records.append(measure(engine, transcript, args.rounds))
                show(records[-1])
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0 if all(record["ratio"] >= record["required"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
