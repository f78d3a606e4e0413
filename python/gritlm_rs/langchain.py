"""LangChain's classes on one engine, in this process: `GritLMEmbeddings` and `ChatGritLM`.

    engine = Engine("GritLM/GritLM-7B")
    embeddings = GritLMEmbeddings(engine, query_instruction="Find the passage that answers.")
    chat = ChatGritLM(engine=engine, max_tokens=500)

Needs `langchain-core`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.embeddings import Embeddings
from langchain_core.language_models.chat_models import (
    BaseChatModel,
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, ConfigDict

from ._native import Piece
from .answer import Answer
from .engine import Engine, Message

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class GritLMEmbeddings(Embeddings):
    """Embeds texts. Queries are embedded with `query_instruction`, documents with none."""

    def __init__(
        self,
        engine: Engine,
        *,
        query_instruction: str = "",
        max_length: int = 512,
        dimensions: int | None = None,
    ) -> None:
        self.engine = engine
        self.query_instruction = query_instruction
        self.how: dict[str, Any] = {"max_length": max_length, "dimensions": dimensions}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns a vector for each text."""
        return _lists(self.engine.embed(texts, **self.how))

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a query."""
        vectors = self.engine.embed([text], instruction=self.query_instruction, **self.how)
        return _lists(vectors)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Does what `embed_documents` does, for async code."""
        return _lists(await self.engine.embed_async(texts, **self.how))

    async def aembed_query(self, text: str) -> list[float]:
        """Does what `embed_query` does, for async code."""
        how = {"instruction": self.query_instruction, **self.how}
        return _lists(await self.engine.embed_async([text], **how))[0]


def _lists(vectors: Any) -> list[list[float]]:
    found: list[list[float]] = vectors.tolist()
    return found


class ChatGritLM(BaseChatModel):
    """Answers conversations of text.

    `stop` and all keyword arguments of `Engine.generate`, such as `seed`, `top_p` or `schema`, can
    be given to a call or to `bind`. With `logprobs`, `response_metadata["logprobs"]["content"]` has
    each token's log-probability and its so many most likely alternatives, as OpenAI's class has
    them.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    engine: Engine
    max_tokens: int = 256
    temperature: float = 0.0
    logprobs: int | None = None

    @property
    def _llm_type(self) -> str:
        return "gritlm"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model": self.engine.name,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[Answer, int | None]:
        """Queues an answer; also returns the number of most likely tokens to report."""
        options: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "logprobs": self.logprobs,
            "stop": stop or [],
        }
        # What LangChain itself binds, for its traces.
        options |= {name: v for name, v in given.items() if not name.startswith("ls_")}
        logprobs = options.pop("logprobs")
        talk = [_turn(message) for message in messages]
        return self.engine.generate(talk, logprobs=logprobs or 0, **options), logprobs

    def _chunk(self, answer: Answer, piece: Piece, logprobs: int | None) -> ChatGenerationChunk:
        about: dict[str, Any] = {}
        message = AIMessageChunk(content=piece.text)
        if logprobs is not None:
            about["logprobs"] = {"content": [self._probable(piece)]}
        if piece.finish_reason is not None:
            about |= {"finish_reason": piece.finish_reason, "model_name": self.engine.name}
            given, made = answer.prompt_tokens, len(answer.tokens)
            message.usage_metadata = UsageMetadata(
                input_tokens=given, output_tokens=made, total_tokens=given + made
            )
            message.chunk_position = "last"
        message.response_metadata = about
        return ChatGenerationChunk(message=message)

    def _probable(self, piece: Piece) -> dict[str, Any]:
        def named(id: int, logprob: float) -> dict[str, Any]:
            return {"token": self.engine.detokenize([id]), "logprob": logprob}

        top = [named(*one) for one in piece.top]
        return named(piece.token, piece.logprob) | {"top_logprobs": top}

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer, logprobs = self._answer(messages, stop, kwargs)
        for piece in answer:
            chunk = self._chunk(answer, piece, logprobs)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        answer, logprobs = self._answer(messages, stop, kwargs)
        async for piece in answer:
            chunk = self._chunk(answer, piece, logprobs)
            if run_manager is not None:
                await run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[Any, Any]:
        """Returns a chain whose answers follow a JSON schema or a class of pydantic's: the sampler
        takes only tokens that do."""
        if include_raw or kwargs:
            refused = ", ".join(["include_raw"] * include_raw + list(kwargs))
            raise ValueError(f"with_structured_output: {refused} is not supported")
        bound = self.bind(schema=convert_to_json_schema(schema))
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            parser: Runnable[Any, Any] = PydanticOutputParser(pydantic_object=schema)
        else:
            parser = JsonOutputParser()
        return bound | parser


def _turn(message: BaseMessage) -> Message:
    """Returns a message as the engine takes it."""
    role = ROLES.get(message.type, getattr(message, "role", None))
    if role is None:
        expected = "expected a human, AI, system or chat message"
        raise ValueError(f"messages: {expected}, found one of type {message.type!r}")
    blocks = [message.content] if isinstance(message.content, str) else message.content
    for block in blocks:
        if not isinstance(block, str) and block.get("type") != "text":
            found = block.get("type")
            raise ValueError(f"messages: expected text, found a block of type {found!r}")
    texts = [block if isinstance(block, str) else block["text"] for block in blocks]
    return Message(role=role, content="".join(texts))
