"""What of an answer is shown while it comes: its reasoning dimmed, hidden or as the model wrote it."""

from __future__ import annotations

from collections.abc import Callable

from dllama.cli.chat.screen import PlainScreen
from dllama.text.reasoning import ReasoningSplitter


class AnswerView:
    """Follows one answer (see ``answer.Listener``).

    Args:
        screen: Where it is shown.
        is_stopped: Whether the user wants it to end.
        think: ``"hide"`` leaves reasoning out; else it is dimmed where the screen can, and as it is elsewhere.
        prompt: What comes before the answer; some prompts open the reasoning.
    """

    def __init__(self, screen: PlainScreen, is_stopped: Callable[[], bool], think: str, prompt: str) -> None:
        self._screen, self.is_stopped = screen, is_stopped
        self._hides, self._has_hidden, self._has_shown = think == "hide", False, False
        is_open = ReasoningSplitter.is_opened_by(prompt)
        self._splitter = ReasoningSplitter(is_open) if self._hides or screen.shows_kinds else None

    def text(self, text: str) -> None:
        """Show the next piece."""
        self._show(self._splitter.add(text) if self._splitter else [(text, False)])

    def finish(self) -> None:
        """Show what was held back, and end the line."""
        self._show(self._splitter.finish() if self._splitter else [])
        self._screen.end_answer()
        if self._has_hidden and not self._has_shown:
            self._screen.note("(all of the answer is reasoning; /set think show shows it)")

    def reading(self, num_tokens: int) -> None:
        """Tell how many tokens of a long prompt are read."""
        self._screen.progress(f"reading the conversation: {num_tokens} tokens …")

    def _show(self, parts: list[tuple[str, bool]]) -> None:
        for text, is_reasoning in parts:
            if is_reasoning and self._hides:
                self._has_hidden = True
                self._screen.progress("thinking …")
            else:
                self._has_shown = True
                self._screen.answer(text, is_reasoning=is_reasoning)
