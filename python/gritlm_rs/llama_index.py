"""LlamaIndex's classes on one engine, in this process: `GritLMEmbedding` and `GritLMChat`.

    engine = Engine("GritLM/GritLM-7B")
    Settings.embed_model = GritLMEmbedding(engine, query_instruction="Find the passage.")
    Settings.llm = GritLMChat(engine, max_tokens=500)

Needs `llama-index-core`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import PrivateAttr

from .answer import Answer
from .engine import Engine, Message


class GritLMEmbedding(BaseEmbedding):
    """Embeds texts. Queries are embedded with `query_instruction`, documents with none."""

    query_instruction: str = ""
    max_length: int = 512
    _engine: Engine = PrivateAttr()

    def __init__(self, engine: Engine, **fields: Any) -> None:
        # Texts of one call share the engine's steps, and the base class's calls are of 10.
        defaults: dict[str, Any] = {"model_name": engine.name, "embed_batch_size": 256}
        super().__init__(**defaults | fields)
        self._engine = engine

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self._engine.embed(texts, max_length=self.max_length).tolist()
        return found

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = await self._engine.embed_async(texts, max_length=self.max_length)
        found: list[list[float]] = vectors.tolist()
        return found

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _query(self) -> dict[str, Any]:
        return {"instruction": self.query_instruction, "max_length": self.max_length}

    def _get_query_embedding(self, query: str) -> list[float]:
        found: list[float] = self._engine.embed([query], **self._query())[0].tolist()
        return found

    async def _aget_query_embedding(self, query: str) -> list[float]:
        found: list[float] = (await self._engine.embed_async([query], **self._query()))[0].tolist()
        return found


class GritLMChat(CustomLLM):
    """Answers conversations, and prompts as the user's turn of one. Keyword arguments of
    `Engine.generate`, such as `stop` or `schema`, can be given to a call."""

    max_tokens: int = 256
    temperature: float = 0.0
    _engine: Engine = PrivateAttr()

    def __init__(self, engine: Engine, **fields: Any) -> None:
        super().__init__(**fields)
        self._engine = engine

    @property
    def metadata(self) -> LLMMetadata:
        """The model's name and limits."""
        return LLMMetadata(
            model_name=self._engine.name,
            context_window=self._engine.shape["max_positions"],
            num_output=self.max_tokens,
            is_chat_model=True,
        )

    def _answer(self, messages: Sequence[ChatMessage], given: dict[str, Any]) -> Answer:
        talk = [Message(role=one.role.value, content=one.content or "") for one in messages]
        # What the base class passes on for prompts that are formatted already.
        options = {name: value for name, value in given.items() if name != "formatted"}
        options = {"max_tokens": self.max_tokens, "temperature": self.temperature} | options
        return self._engine.generate(talk, **options)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation."""
        return _response(self._answer(messages, kwargs).text())

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answers a conversation, a piece at a time."""
        answer = self._answer(messages, kwargs)

        def pieces() -> ChatResponseGen:
            text = ""
            for piece in answer:
                text += piece.text
                yield _response(text, piece.text)

        return pieces()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Does what `chat` does, for async code."""
        return _response(await self._answer(messages, kwargs).text_async())

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Does what `stream_chat` does, for async code."""
        answer = self._answer(messages, kwargs)

        async def pieces() -> ChatResponseAsyncGen:
            text = ""
            async for piece in answer:
                text += piece.text
                yield _response(text, piece.text)

        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answers a prompt."""
        return CompletionResponse(text=self._answer([_user(prompt)], kwargs).text())

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answers a prompt, a piece at a time."""
        answer = self._answer([_user(prompt)], kwargs)

        def pieces() -> CompletionResponseGen:
            text = ""
            for piece in answer:
                text += piece.text
                yield CompletionResponse(text=text, delta=piece.text)

        return pieces()

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Does what `complete` does, for async code."""
        return CompletionResponse(text=await self._answer([_user(prompt)], kwargs).text_async())

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Does what `stream_complete` does, for async code."""
        answer = self._answer([_user(prompt)], kwargs)

        async def pieces() -> CompletionResponseAsyncGen:
            text = ""
            async for piece in answer:
                text += piece.text
                yield CompletionResponse(text=text, delta=piece.text)

        return pieces()


def _user(prompt: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=prompt)


def _response(text: str, delta: str | None = None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta)
