"""Ten unedited samples of the exported model, with their seeds: six stories and four chats."""

from __future__ import annotations

import argparse
from pathlib import Path

from chats import Message
from convert import load_exported
from data import render_chat
from evaluate import Speaker
from tokenizer import BOS
from tokenizers import Tokenizer

STORIES = (
    ("Once upon a time", 1),
    ("Once upon a time", 2),
    ("Once upon a time", 3),
    ("Once upon a time", 4),
    ("", 5),
    ("", 6),
)
CHATS = (
    (7, ("Tell me a story about a fox who wants a kite.", "Who helped?", "make it shorter")),
    (8, ("hello", "who are you?", "what can you do?", "tell me a short story about a brave mouse")),
    (
        9,
        (
            "Can you tell me a story about a girl named Luna?",
            "Where did Luna live?",
            "How did it end?",
            "tell me another one",
        ),
    ),
    (10, ("What is 3 + 4?", "what color is the sky", "What is the capital of France?", "thanks, bye")),
)


def _quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def write(work: Path, model_file: Path, out: Path) -> None:
    """Temperature 0.8, top-p 0.9, as in the measurements."""
    speaker = Speaker(load_exported(model_file), Tokenizer.from_file(str(work / "tokenizer.json")))
    parts: list[str] = []
    for start, seed in STORIES:
        parts.append(f'**Story, seed {seed}, prompt "{start}"**\n\n{_quote(start + speaker.text(BOS + start, seed))}')
    for seed, questions in CHATS:
        messages: list[Message] = []
        for question in questions:
            messages.append(("user", question))
            messages.append(("assistant", speaker.text(render_chat(messages, True), seed)))
        shown = "\n\n".join(f"*{role}:* {text}" for role, text in messages)
        parts.append(f"**Chat, seed {seed}**\n\n{_quote(shown)}")
    out.write_text("\n\n".join(parts) + "\n")
    print(f"wrote {out}", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--model", type=Path, default=Path("build/demo_model/out/model.m"))
    args = parser.parse_args()
    write(args.work, args.model, args.work / "samples.md")


if __name__ == "__main__":
    main()
