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
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.facts import machine_facts
from benchmarks.models import LLAMA_1B, MODEL, ROOT, make_model
from benchmarks.records import Record, comparison, is_met, show, write
from dllama.cli.parser import whole
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


def measure(engines: Engines, transcript: Transcript, rounds: int) -> Record:
    """Replay a transcript an even number of times, each time with the engines' parts exchanged."""
    before = count_drafts(engines)
    one, other = engines
    rates = [replay((other, one) if turn % 2 else (one, other), transcript) for turn in range(rounds)]
    drafted, accepted = (after - count for after, count in zip(count_drafts(engines), before, strict=True))
    plain, with_drafts = (list(each) for each in zip(*rates, strict=True))
    more: dict[str, Any] = {
        "threads": one.num_threads,
        "drafted": drafted / rounds,
        "accepted": accepted / rounds,
        "prompt_tokens": len(transcript.prompt),
        "answer_tokens": len(transcript.answer),
        "chars_per_token": transcript.num_chars / len(transcript.answer),
    }
    case, required = f"{transcript.name}, drafts / none", REQUIRED[transcript.name]
    return comparison("speculation", case, with_drafts, plain, required, **more)


def measures(args: argparse.Namespace) -> Iterator[Record]:
    """Measure what is asked for."""
    options: dict[str, Any] = {"num_threads": args.nthreads, "max_seq_len": 4096}
    model = LLAMA_1B.title if args.model == MODEL else args.model.stem
    rounds = args.rounds + args.rounds % 2  # each engine has each part as often as the other
    with Engine.load(args.model, **options) as one, Engine.load(args.model, **options) as other:
        for transcript in read_transcripts(args.tokens):
            if transcript.name in args.case:
                yield {"model": model, **measure((one, other), transcript, rounds)}


def main() -> int:
    """Measure what is asked for; 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--case", nargs="+", choices=list(REQUIRED), default=list(REQUIRED))
    parser.add_argument("--tokens", choices=["words", "demo"], default="words")
    parser.add_argument(
        "--rounds", type=whole(1, 1024), default=4, metavar="N", help="made even (default: %(default)s)"
    )
    parser.add_argument("--nthreads", type=whole(1, 1024))
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures in a file")
    args = parser.parse_args()
    make_model(args.model, args.model.with_suffix(".t"))
    facts, records = machine_facts(), show(measures(args))
    if args.json:
        write(args.json, records, facts)
    return 0 if all(map(is_met, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
