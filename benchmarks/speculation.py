"""What guessing from the text so far gains on texts that quote, and what it costs on texts that do not.

Run from the root: ``.venv/bin/python benchmarks/speculation.py [--model FILE] [--case NAME …]``. A random model quotes
nothing, so each answer of ``benchmarks/transcripts`` is replayed: every step is computed, and every token is chosen
greedily from its logits, but the one that the transcript has next is taken. Two engines, with drafts and without, take
turns of some tokens, so that both see the same minutes of a machine shared with others; the next time they exchange
their parts, since one may have the better memory. Each time they begin without any knowledge of how long steps take.

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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import MODEL, ROOT, make_model
from dllama.engine import Engine, Output, SamplingParams
from dllama.engine.sampling import Row, Sampler
from dllama.engine.step_times import StepTimes
from dllama.text.tokenizer import Tokenizer

TRANSCRIPTS = ROOT / "benchmarks" / "transcripts"
REQUIRED = {"code": 1.6, "proofreading": 1.6, "summary": 1.6, "questions": 1.6, "chat": 0.98, "story": 0.98}
SLICE = 16  # tokens of a turn
BETWEEN = "=== answer ===\n"
PIECE = re.compile(r" ?[^\W\d_]{1,7}|\d{1,3}| +(?= )|.|\n", re.DOTALL)
Engines = tuple[Engine, Engine]
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


class Player:
    """Replays a transcript on an engine, in pieces.

    Attributes:
        seconds: That its steps took behind the prompt.
        outputs: So far.
    """

    def __init__(self, engine: Engine, transcript: Transcript, is_drafting: bool) -> None:
        self._engine = engine
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=len(transcript.answer))
        request = engine._requests[engine.add(transcript.prompt, params)]
        request._sampler = Replay(transcript, engine.config.vocab_size)
        if not is_drafting:
            request.sequence.drafter = None
        engine._executor._scheduler.step_times = StepTimes()
        self.outputs: list[Output] = []
        while not self.outputs:
            self.outputs += engine.step()
        self.seconds = 0.0

    def play(self, num_tokens: int) -> None:
        """Go on until so many tokens are there, or all."""
        start = time.perf_counter()
        while len(self.outputs) < num_tokens and self._engine.has_work:
            self.outputs += self._engine.step()
        self.seconds += time.perf_counter() - start


def replay(engines: Engines, transcript: Transcript) -> tuple[float, float]:
    """Replay a transcript on two engines in turns, the second one with drafts; give their tokens per second."""
    players = [Player(engines[0], transcript, is_drafting=False), Player(engines[1], transcript, is_drafting=True)]
    for end in range(1, len(transcript.answer) + SLICE, SLICE):
        for player in players:
            player.play(end)
    for player in players:
        assert [output.token_id for output in player.outputs] == transcript.answer
    without, with_ = ((len(transcript.answer) - 1) / player.seconds for player in players)
    return without, with_


def count_drafts(engines: Engines) -> tuple[int, int]:
    """Give the tokens that both engines have drafted, and those that were accepted."""
    counts = [engine.drafts() for engine in engines]
    return sum(each["drafted"] for each in counts), sum(each["accepted"] for each in counts)


def measure(engines: Engines, transcript: Transcript, rounds: int) -> dict[str, Any]:
    """Replay a transcript some times, each time with the engines' parts exchanged; give the record of it."""
    before = count_drafts(engines)
    one, other = engines
    rates = [replay((other, one) if turn % 2 else (one, other), transcript) for turn in range(rounds)]
    drafted, accepted = (after - count for after, count in zip(count_drafts(engines), before, strict=True))
    ratios = [with_drafts / plain for plain, with_drafts in rates]
    return {
        "benchmark": "speculation",
        "case": transcript.name,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "required": REQUIRED[transcript.name],
        "unit": "tokens/s",
        "ours": [with_drafts for _, with_drafts in rates],
        "theirs": [plain for plain, _ in rates],  # without drafts
        "drafted": drafted / rounds,
        "accepted": accepted / rounds,
        "prompt_tokens": len(transcript.prompt),
        "answer_tokens": len(transcript.answer),
        "chars_per_token": transcript.num_chars / len(transcript.answer),
    }


def show(record: dict[str, Any]) -> None:
    """Print the line of one transcript."""
    mark = "ok    " if record["ratio"] >= record["required"] else "MISSED"
    with_drafts, plain = (statistics.median(record[side]) for side in ("ours", "theirs"))
    print(
        f"{mark} {record['case']:<13} {plain:6.1f} -> {with_drafts:6.1f} tokens/s  ratio {record['ratio']:.3f} "
        f"({record['ratio_min']:.2f} to {record['ratio_max']:.2f}), required {record['required']:g}  "
        f"{record['answer_tokens']} tokens, {record['accepted']:.0f} of {record['drafted']:.0f} drafts right",
        flush=True,
    )


def main() -> int:
    """Measure what is asked for; 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--case", nargs="+", choices=list(REQUIRED), default=list(REQUIRED))
    parser.add_argument("--tokens", choices=["words", "demo"], default="words")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--nthreads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as a list of records")
    args = parser.parse_args()
    make_model(args.model, args.model.with_suffix(".t"))
    records = []
    options: dict[str, Any] = {"num_threads": args.nthreads, "max_seq_len": 4096}
    with Engine.load(args.model, **options) as one, Engine.load(args.model, **options) as other:
        for transcript in read_transcripts(args.tokens):
            if transcript.name in args.case:
                records.append(measure((one, other), transcript, args.rounds))
                show(records[-1])
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 0 if all(record["ratio"] >= record["required"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
