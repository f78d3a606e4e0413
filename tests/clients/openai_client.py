"""The `openai` package against a server: sync, async, streaming, embeddings in base64.

Reads {url, key, model, texts, vectors, prompt, answer, tokens, schema} on stdin; the values are the
library's own. Prints what was checked.
"""

import asyncio
import json
import sys

import openai

from checks import check, done, given

base = {"base_url": given["url"] + "/v1", "api_key": given["key"], "max_retries": 0}
client = openai.OpenAI(**base)
turn = [{"role": "user", "content": given["prompt"]}]
greedy = {"model": given["model"], "messages": turn, "temperature": 0, "max_tokens": given["tokens"]}


def check_vectors(what, data):
    check(what + ", order", [d.index for d in data], list(range(len(given["texts"]))))
    for d, expected in zip(data, given["vectors"]):
        worst = max(abs(a - b) for a, b in zip(d.embedding, expected))
        check(what + ", dim", len(d.embedding), len(expected))
        check(what + ", near", worst < 1e-5, True)


def refused(what, error, call):
    try:
        call()
    except error as e:
        # The package gives `error` of the body.
        check(what, bool(e.body["message"] and e.body["code"]), True)
    else:
        sys.exit(f"{what}: nothing was raised")


check("models", [m.id for m in client.models.list()], [given["model"]])

# The package asks for base64 unless told otherwise.
embed = {"model": given["model"], "input": given["texts"]}
found = client.embeddings.create(**embed)
check_vectors("embeddings in base64", found.data)
check("usage", found.usage.total_tokens > 0, True)
check_vectors("embeddings as numbers", client.embeddings.create(**embed, encoding_format="float").data)
short = client.embeddings.create(**embed, dimensions=8).data[0].embedding
check("dimensions", len(short), 8)
instructed = client.embeddings.create(**embed, extra_body={"instruction": "Find the package."})
check("instruction", instructed.data[0].embedding != found.data[0].embedding, True)

whole = client.chat.completions.create(**greedy)
check("chat", whole.choices[0].message.content, given["answer"])
check("finish", whole.choices[0].finish_reason in ("stop", "length"), True)
check("usage", whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)

pieces, usage = [], None
for chunk in client.chat.completions.create(
    **greedy, stream=True, stream_options={"include_usage": True}
):
    pieces += [c.delta.content or "" for c in chunk.choices]
    usage = chunk.usage or usage
check("streamed", "".join(pieces), given["answer"])
check("streamed usage", usage, whole.usage)

several = client.chat.completions.create(**greedy | {"temperature": 1, "n": 3, "seed": 1})
again = client.chat.completions.create(**greedy | {"temperature": 1, "n": 3, "seed": 1})
texts = [c.message.content for c in several.choices]
check("n", len(texts), 3)
check("seed", [c.message.content for c in again.choices], texts)
probable = client.chat.completions.create(**greedy, logprobs=True, top_logprobs=2)
first = probable.choices[0].logprobs.content[0]
check("logprobs", [first.token, len(first.top_logprobs)], [first.top_logprobs[0].token, 2])

schema = {"name": "answer", "schema": given["schema"], "strict": True}
shape = {"type": "json_schema", "json_schema": schema}
shaped = client.chat.completions.create(**greedy | {"max_tokens": 200}, response_format=shape)
check("schema", sorted(json.loads(shaped.choices[0].message.content)), given["keys"])

raw = client.completions.create(model=given["model"], prompt=given["raw"], temperature=0, max_tokens=8)
check("completion", raw.choices[0].text, given["raw_answer"])

refused("model", openai.NotFoundError, lambda: client.embeddings.create(model="x", input="a"))
refused("key", openai.AuthenticationError, lambda: openai.OpenAI(**base | {"api_key": "x"}).models.list())
refused("value", openai.BadRequestError, lambda: client.chat.completions.create(**greedy | {"n": 0}))
long = "word " * 100_000
refused("length", openai.BadRequestError, lambda: client.embeddings.create(**embed | {"input": long}))
check("model", client.models.retrieve(given["model"]).id, given["model"])
cut = client.embeddings.create(**embed | {"input": long}, extra_body={"truncate": True})
check("truncate", len(cut.data), 1)

# A stream that is left in the middle.
with client.chat.completions.create(**greedy | {"max_tokens": 1000}, stream=True) as stream:
    next(iter(stream))


async def both():
    """Embeddings and answers at once."""
    async with openai.AsyncOpenAI(**base) as client:

        async def answer():
            stream = await client.chat.completions.create(**greedy, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        calls = [answer() for _ in range(8)]
        calls += [client.embeddings.create(**embed) for _ in range(8)]
        return await asyncio.gather(*calls)


results = asyncio.run(both())
for text in results[:8]:
    check("async chat", text, given["answer"])
for result in results[8:]:
    check_vectors("async embeddings", result.data)
done(f"openai {openai.__version__}")
