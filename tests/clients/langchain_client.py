"""`langchain-openai` against a server. Input and output as openai_client.py."""

import asyncio
from importlib.metadata import version

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from checks import check, done, given

base = {"base_url": given["url"] + "/v1", "api_key": given["key"], "model": given["model"]}


def check_vectors(what, found):
    check(what, len(found), len(given["vectors"]))
    for got, expected in zip(found, given["vectors"]):
        check(what, max(abs(a - b) for a, b in zip(got, expected)) < 1e-5, True)


texts = given["texts"]
# Texts as they are: what it would cut them into are another model's tokens.
embeddings = OpenAIEmbeddings(**base, check_embedding_ctx_length=False)
check_vectors("texts", embeddings.embed_documents(texts))
check_vectors("queries", [embeddings.embed_query(text) for text in texts])
check_vectors("async", asyncio.run(embeddings.aembed_documents(texts)))
check_vectors("one a request", embeddings.embed_documents(texts, chunk_size=1))
# Long texts in parts that it counts with the model's own tokenizer.
counted = {"tiktoken_enabled": False, "tiktoken_model_name": given["tokenizer"]}
check_vectors("counted", OpenAIEmbeddings(**base, **counted).embed_documents(texts))
parts = OpenAIEmbeddings(**base, **counted, embedding_ctx_length=8)
check("in parts", len(parts.embed_query(" ".join(texts))), len(given["vectors"][0]))
short = OpenAIEmbeddings(**base, check_embedding_ctx_length=False, dimensions=8)
check("dimensions", len(short.embed_query(texts[0])), 8)
instruction = {"extra_body": {"instruction": "Find the package."}}
queries = OpenAIEmbeddings(**base, check_embedding_ctx_length=False, model_kwargs=instruction)
check("instruction", queries.embed_query(texts[0]) != embeddings.embed_query(texts[0]), True)

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
chain = ChatPromptTemplate.from_messages([("user", "Describe the package {name}.")]) | chat
filled = given["prompt"].removeprefix("Describe the package ").removesuffix(".")
check("chain", chain.invoke({"name": filled}).content, given["answer"])
check("async", asyncio.run(chat.ainvoke(given["prompt"])).content, given["answer"])
probable = chat.bind(logprobs=True, top_logprobs=2).invoke(given["prompt"])
check("logprobs", len(probable.response_metadata["logprobs"]["content"][0]["top_logprobs"]), 2)
counting = ChatOpenAI(**base, temperature=0, max_tokens=4, stream_usage=True)
usages = [c.usage_metadata for c in counting.stream("Hi.") if c.usage_metadata]
check("streamed usage", [usage["output_tokens"] > 0 for usage in usages], [True])
completion = OpenAI(**base, temperature=0, max_tokens=8)
check("completion", completion.invoke(given["raw"]), given["raw_answer"])
check("streamed", "".join(completion.stream(given["raw"])), given["raw_answer"])
check("several", completion.batch([given["raw"]] * 3), [given["raw_answer"]] * 3)
schema = given["schema"] | {"title": "answer"}
shaped = ChatOpenAI(**base, temperature=0, max_tokens=200).with_structured_output(
    schema, method="json_schema"
)
check("structured", sorted(shaped.invoke(given["prompt"])), given["keys"])
done(f"langchain-openai {version('langchain-openai')}")
