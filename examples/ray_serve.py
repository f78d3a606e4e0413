"""Serves embeddings and chat from replicas behind one endpoint: Ray Serve, an engine per replica.

    python examples/ray_serve.py --model GritLM/GritLM-7B --device cuda --most 8

This is for who runs Ray already and wants its autoscaling. `gritlm serve` is the full server: all
fields of the APIs of OpenAI, TEI and Cohere, document stores, reranking, keys, limits, metrics.
Here are `/v1/embeddings` (`input`, `instruction`, `dimensions`, `encoding_format`) and
`/v1/chat/completions` (`messages`, `max_tokens`, `temperature`, `top_p`, `seed`, `stop`, `stream`).

Requests to a replica are async and share the steps of its engine. Ray starts and stops replicas so
that each has about `--target` requests under way, and refuses requests when too many wait. A
replica is healthy if its engine still makes a token; Ray replaces one that is not, or that has
died. A client sees an error for what was under way there, or waits: requests that no replica has
begun go to another one.
"""

import argparse
import asyncio
import base64
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

import ray
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.config import HTTPOptions

GRACE = 60.0
"""Seconds that requests under way have when a replica is stopped."""
PATIENCE = 30.0
"""Seconds in which an engine must make a token to be healthy."""
QUEUED = 1024
"""Requests that may wait for a replica; more are refused."""

api = FastAPI(title="GritLM on Ray Serve")


class Embeddings(BaseModel):
    """A request for embeddings."""

    input: str | list[str]
    model: str | None = None
    instruction: str = ""
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"


class Turn(BaseModel):
    """A message of a conversation."""

    role: str
    content: str


class Chat(BaseModel):
    """A request for an answer."""

    messages: list[Turn]
    model: str | None = None
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0.0)
    top_p: float = 1.0
    seed: int = Field(0, ge=0)
    stop: str | list[str] = []
    stream: bool = False


@serve.ingress(api)
class Replica:
    """One engine and the requests that it has under way."""

    def __init__(self, model: str, device: str, threads: int) -> None:
        # The engine's threads are made when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        from gritlm_rs import Engine

        self.name = model
        self.engine = Engine(model, device=device)

    async def check_health(self) -> None:
        """Raises where the engine makes no token in time, before all that waits."""

        async def alive() -> None:
            start = self.engine.tokenize("")
            await self.engine.generate(start, max_tokens=1, priority=100).text_async()

        if self.engine.generates:
            await asyncio.wait_for(alive(), PATIENCE)

    @api.post("/v1/embeddings")
    async def embeddings(self, asked: Embeddings) -> dict[str, Any]:
        """Embeds texts."""
        texts = [asked.input] if isinstance(asked.input, str) else asked.input

        how = asked.model_dump(include={"instruction", "dimensions"})
        try:
            vectors = await self.engine.embed_async(texts, progress=False, **how)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        tokens = sum(len(self.engine.tokenize(text)) for text in texts)

        def written(vector: Any) -> Any:
            if asked.encoding_format == "float":
                return vector.tolist()
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()

        return {
            "object": "list",
            "model": self.name,
            "data": [
                {"object": "embedding", "index": index, "embedding": written(vector)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @api.post("/v1/chat/completions")
    async def chat(self, asked: Chat) -> Any:
        """Answers a conversation."""
        talk: Any = [turn.model_dump() for turn in asked.messages]
        sampling = asked.model_dump(include={"max_tokens", "temperature", "top_p", "seed", "stop"})
        try:
            answer = self.engine.generate(talk, **sampling)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.name,
        }

        async def events() -> AsyncIterator[str]:
            chunk = head | {"object": "chat.completion.chunk"}
            # A client that leaves ends this loop, and with it the answer.
            async for piece in answer:
                delta = {"role": "assistant", "content": piece.text}
                choice = {"index": 0, "delta": delta, "finish_reason": piece.finish_reason}
                yield f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"

        if asked.stream:
            return StreamingResponse(events(), media_type="text/event-stream")
        message = {"role": "assistant", "content": await answer.text_async()}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        made, given = len(answer.tokens), answer.prompt_tokens
        usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        return head | {"object": "chat.completion", "choices": [choice], "usage": usage}

    @api.get("/health")
    async def health(self) -> dict[str, str]:
        """Says that a replica takes requests."""
        return {"status": "ok"}


def app(
    model: str = "demo",
    device: str = "auto",
    least: int = 1,
    most: int = 1,
    target: int = 16,
    threads: int | None = None,
) -> serve.Application:
    """Returns the application, for `serve run ray_serve:app` as well."""
    gpu = device.startswith("cuda")
    threads = threads or max(1, (os.cpu_count() or 1) // most)
    deployment = serve.deployment(
        max_ongoing_requests=4 * target,
        max_queued_requests=QUEUED,
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": target,
        },
        health_check_timeout_s=PATIENCE,
        graceful_shutdown_timeout_s=GRACE,
        ray_actor_options={"num_cpus": 1 if gpu else threads, "num_gpus": 1 if gpu else 0},
    )(Replica)
    return deployment.bind(model, device, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo", help="as for gritlm (demo)")
    parser.add_argument("--device", default="auto", help="as for gritlm; cuda: a GPU per replica")
    parser.add_argument("--least", type=int, default=1, help="replicas at least (1)")
    parser.add_argument("--most", type=int, default=1, help="replicas at most (1)")
    parser.add_argument("--target", type=int, default=16, help="requests per replica (16)")
    parser.add_argument("--threads", type=int, help="CPU threads of a replica (cores / --most)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="of a Ray cluster; without it, one is made here")
    args = vars(parser.parse_args())
    address = args.pop("address")
    ray.init(address, include_dashboard=False if address is None else None)
    serve.start(http_options=HTTPOptions(host=args.pop("host"), port=args.pop("port")))
    serve.run(app(**args))
    # Ray's own handlers end the replicas at once.
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    # Lets the replicas finish while their answers can still be sent; `shutdown` alone cuts them.
    serve.delete("default")
    serve.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
