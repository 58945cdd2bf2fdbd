"""A conversation in the terminal."""

from __future__ import annotations

import sys

from rich.console import Console

from forebay.cli.ask import collect
from forebay.cli.view import receipt_table
from forebay.client import Completion, Forebay, Message, Sampling
from forebay.errors import ForebayError


class Conversation:
    """Keeps the messages, streams each answer to standard output, shows receipts on standard error."""

    def __init__(
        self,
        client: Forebay,
        model: str | None,
        system: str,
        sampling: Sampling,
        *,
        show_receipt: bool,
    ) -> None:
        self._client, self._model, self._system, self._sampling = client, model, system, sampling
        self._show_receipt = show_receipt
        self._console = Console(stderr=True)
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = []
        if self._system:
            self.messages.append(Message(role="system", content=self._system))

    def ask(self, text: str) -> Completion:
        """Stream the answer to one message and keep both; on an error neither is kept."""
        messages = [*self.messages, Message(role="user", content=text)]
        answer = collect(self._client.chat(messages, model=self._model, **self._sampling), is_quiet=False)
        sys.stdout.write("\n")
        self.messages = [*messages, Message(role="assistant", content=answer.text)]
        if self._show_receipt and answer.receipt is not None:
            self._console.print(receipt_table(answer.receipt, answer.usage))
        return answer

    def loop(self) -> None:
        """Read, answer, until /quit or the end of the input; Ctrl-C ends the answer at hand."""
        self._console.print("[dim]/reset forgets, /quit or Ctrl-D ends, Ctrl-C stops an answer")
        while True:
            try:
                text = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if text == "/quit":
                return
            if text == "/reset":
                self.reset()
            elif text:
                self._answer(text)

    def _answer(self, text: str) -> None:
        try:
            self.ask(text)
        except KeyboardInterrupt:
            self._console.print("\n[dim]stopped")
        except ForebayError as error:
            self._console.print(f"[red]{error.message}", markup=True, highlight=False)
