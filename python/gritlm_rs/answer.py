"""An answer as it is made, for `for` and for `async for`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ._native import Job, Piece


class Answer:
    """Pieces of an answer, in a loop or in an async loop.

    The scheduler goes on making the answer whether or not its pieces are taken. Dropping the
    answer, or ending a loop over it early and dropping it, takes it out of the batch.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.tokens: list[int] = []
        """Ids of the tokens so far."""
        self.logprobs: list[float] = []
        """Their log-probabilities under the model."""
        self.finish_reason: str | None = None
        """`"stop"` or `"length"` once the answer is over."""
        self._text: list[str] = []
        self._event: asyncio.Event | None = None

    def _take(self, piece: Piece) -> Piece:
        self.tokens.append(piece.token)
        self.logprobs.append(piece.logprob)
        self._text.append(piece.text)
        self.finish_reason = piece.finish_reason
        return piece

    def _end(self) -> None:
        # An answer of no tokens has no piece to say why it is over.
        if not self.tokens and self._job.summary is not None:
            self.finish_reason = "length"

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        piece = self._job.next()
        if piece is None:
            self._end()
            raise StopIteration
        return self._take(piece)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        if self._event is None:
            self._event = event = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._job.on_event(lambda: loop.call_soon_threadsafe(event.set))
        while True:
            # Cleared first: what comes after the poll sets it again.
            self._event.clear()
            over, piece = self._job.poll()
            if piece is not None:
                return self._take(piece)
            if over:
                self._end()
                raise StopAsyncIteration
            await self._event.wait()

    def text(self) -> str:
        """Waits for the rest of the answer and returns all of its text."""
        for _ in self:
            pass
        return "".join(self._text)

    async def text_async(self) -> str:
        """Does what `text` does, for async code."""
        async for _ in self:
            pass
        return "".join(self._text)

    def cancel(self) -> None:
        """Takes the answer out of the batch before the next step."""
        self._job.cancel()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, without those of `past`."""
        return self._job.prompt_tokens

    @property
    def prompt_logprobs(self) -> list[tuple[int, float, list[tuple[int, float]]]]:
        """Where `prompt_logprobs` asked for them, and once the first piece has come (or, with
        `max_tokens` 0, the answer is over): of each token of the prompt from the second on its id,
        its log-probability, and the most likely tokens with theirs."""
        return self._job.prompt_logprobs

    @property
    def summary(self) -> dict[str, Any] | None:
        """Counts and times, once the answer is over."""
        text = self._job.summary
        return None if text is None else json.loads(text)
