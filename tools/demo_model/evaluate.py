"""Measure the exported model: held-out perplexity, endings and repetitions of sampled stories, answers to questions."""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from batches import Ids, split_documents
from chats import Message
from convert import load_checkpoint, load_exported
from data import render_chat
from grammar import expand, most_repeated
from model import Llama
from sampling import sample
from small_talk import fact
from stories import tell
from tokenizer import BOS, EOS, EOT
from tokenizers import Tokenizer
from train import mean_loss

Report = dict[str, float | int]
ASKED = (("fox", "kite"), ("rabbit", "drum"), ("bear", "sled"), ("girl", "lantern"), ("hedgehog", "hat"))
RECALL = (("Who was the story about?", "N"), ("Where did <N> live?", "home"), ("Who was <F>?", "fkind"))
QUESTION_SEED, SAMPLE_SEED = 950_000, 1


class Speaker:
    """A model with its tokenizer: text in, text out."""

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.stops = {tokenizer.token_to_id(EOS), tokenizer.token_to_id(EOT)}

    def rows(self, prompt: str, rows: int, seed: int, temperature: float = 0.8) -> list[list[int]]:
        """Sample several continuations of one prompt."""
        ids = self.tokenizer.encode(prompt).ids
        return sample(self.model, ids, self.stops, rows=rows, seed=seed, temperature=temperature)

    def text(self, prompt: str, seed: int, temperature: float = 0.8) -> str:
        """Sample one continuation, as text without special tokens."""
        return self.tokenizer.decode(self.rows(prompt, 1, seed, temperature)[0])


def perplexity(model: Llama, documents: list[Ids]) -> float:
    """Perplexity per token of whole documents with F32 activations."""
    return math.exp(mean_loss(model, documents, bf16=False))


def judge(outputs: list[list[int]], stops: set[int], prompt: list[int]) -> Report:
    """Count endings and repetitions."""
    ended = [ids for ids in outputs if ids[-1] in stops]
    repeats = [most_repeated(prompt + ids) for ids in outputs]
    clean = sum(ids[-1] in stops and count <= 3 for ids, count in zip(outputs, repeats, strict=True))
    return {
        "sampled": len(outputs),
        "ended_by_eos": len(ended),
        "a_4gram_over_3_times": sum(count > 3 for count in repeats),
        "ended_and_unrepetitive": clean,
        "mean_tokens": round(float(np.mean([len(ids) for ids in outputs])), 1),
    }


def story_report(speaker: Speaker, prompt: str, count: int = 100) -> Report:
    """Judge plain stories."""
    ids = speaker.tokenizer.encode(prompt).ids
    return judge(speaker.rows(prompt, count, SAMPLE_SEED), speaker.stops, ids)


def request_report(speaker: Speaker, per_request: int = 20) -> Report:
    """Stories asked for in chat: does the answer end, and is it about what was asked?"""
    outputs: list[list[int]] = []
    hero_named = thing_named = 0
    for hero, thing in ASKED:
        messages = [("user", f"Tell me a story about a {hero} who wants a {thing}.")]
        rows = speaker.rows(render_chat(messages, True), per_request, SAMPLE_SEED)
        texts = [speaker.tokenizer.decode(ids) for ids in rows]
        hero_named += sum(hero in text for text in texts)
        thing_named += sum(thing in text for text in texts)
        outputs += rows
    return judge(outputs, speaker.stops, []) | {"names_the_hero": hero_named, "names_the_thing": thing_named}


def _accuracy(speaker: Speaker, cases: list[tuple[list[Message], str]]) -> float:
    right = sum(speaker.text(render_chat(before, True), 0, temperature=0) == answer for before, answer in cases)
    return round(right / len(cases), 3)


def fact_cases(count: int = 100) -> list[tuple[list[Message], str]]:
    """Questions with exactly one answer: sums, days, colors, sounds, homes, legs."""
    rng = random.Random(QUESTION_SEED)
    cases: list[tuple[list[Message], str]] = []
    while len(cases) < count:
        question, answer = fact(rng)
        if "{" not in question and not question.startswith("name"):
            cases.append(([("user", question)], answer[0].upper() + answer[1:]))
    return cases


def recall_report(speaker: Speaker, count: int = 102) -> float:
    """Share of questions on a story in the context whose greedy answer contains the fact asked for."""
    rng = random.Random(QUESTION_SEED)
    right = 0
    for index in range(count):
        question, key = RECALL[index % len(RECALL)]
        story = tell(rng)
        messages = [
            ("user", "Tell me a story."),
            ("assistant", story.text),
            ("user", expand(question, story.facts, rng)),
        ]
        right += story.facts[key] in speaker.text(render_chat(messages, True), 0, temperature=0)
    return round(right / count, 3)


def measure(work: Path, model_file: Path) -> dict[str, object]:
    """Take all measurements; the sampled ones from the exported model."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    test = split_documents(np.load(work / "test.npy"))
    exported = load_exported(model_file)
    f32, q40 = perplexity(load_checkpoint(work / "checkpoint.pt"), test), perplexity(exported, test)
    speaker = Speaker(exported, tokenizer)
    return {
        "perplexity_f32": round(f32, 4),
        "perplexity_q40": round(q40, 4),
        "q40_over_f32": round(q40 / f32, 4),
        "stories_once_upon_a_time": story_report(speaker, BOS + "Once upon a time"),
        "stories_from_bos_alone": story_report(speaker, BOS),
        "stories_asked_for_in_chat": request_report(speaker),
        "facts_answered_exactly": _accuracy(speaker, fact_cases()),
        "questions_on_a_story_answered": recall_report(speaker),
    }


def write(report: dict[str, object], path: Path) -> None:
    """Write and print a report."""
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n")
    print(text, flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--model", type=Path, default=Path("build/demo_model/out/model.m"))
    args = parser.parse_args()
    write(measure(args.work, args.model), args.work / "report.json")


if __name__ == "__main__":
    main()
