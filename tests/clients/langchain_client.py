"""`langchain-openai` against a server. Input and output as openai_client.py."""

import json
import sys
from importlib.metadata import version

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

given = json.load(sys.stdin)
base = {"base_url": given["url"] + "/v1", "api_key": given["key"], "model": given["model"]}
checked = 0


def check(what, got, expected):
    global checked
    if got != expected:
        sys.exit(f"{what}: expected {expected!r}, found {got!r}")
    checked += 1


# Texts as they are: what it would cut them into are another model's tokens.
embeddings = OpenAIEmbeddings(**base, check_embedding_ctx_length=False)
for got, expected in zip(embeddings.embed_documents(given["texts"]), given["vectors"]):
    check("vector", max(abs(a - b) for a, b in zip(got, expected)) < 1e-5, True)
check("query", len(embeddings.embed_query(given["texts"][0])), len(given["vectors"][0]))

chat = ChatOpenAI(**base, temperature=0, max_tokens=given["tokens"])
check("invoke", chat.invoke(given["prompt"]).content, given["answer"])
check("stream", "".join(c.content for c in chat.stream(given["prompt"])), given["answer"])
check("batch", [m.content for m in chat.batch([given["prompt"]] * 3)], [given["answer"]] * 3)
talk = chat.invoke([("system", "Be brief."), ("user", "Hi."), ("ai", "Hello."), ("user", "Who?")])
check("turns", talk.usage_metadata["output_tokens"] > 0, True)
for turns in [
    [("system", "Be brief.")],
    [("ai", "Hello."), ("user", "Who?")],
    [("system", "Be brief."), ("ai", "Hello."), ("user", "Who?")],
    [("user", "Who?"), ("ai", "It is")],
]:
    check("begun", chat.invoke(turns).usage_metadata["output_tokens"] > 0, True)
schema = given["schema"] | {"title": "answer"}
shaped = ChatOpenAI(**base, temperature=0, max_tokens=200).with_structured_output(
    schema, method="json_schema"
)
check("structured", sorted(shaped.invoke(given["prompt"])), given["keys"])
print(f"langchain-openai {version('langchain-openai')}: {checked} checks")
