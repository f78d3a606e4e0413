"""llama-index's classes for servers like OpenAI's. Input and output as openai_client.py."""

import asyncio
from importlib.metadata import version

from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

from checks import check, done, given

base = {"api_base": given["url"] + "/v1", "api_key": given["key"]}


def near(what, got, expected):
    check(what, len(got), len(expected))
    check(what, max(abs(a - b) for a, b in zip(got, expected, strict=True)) < 1e-5, True)


texts, vectors = given["texts"], given["vectors"]
embedder = OpenAILikeEmbedding(model_name=given["model"], embed_batch_size=2, max_retries=1, **base)
for got, expected in zip(embedder.get_text_embedding_batch(texts), vectors, strict=True):
    near("batch", got, expected)
near("text", embedder.get_text_embedding(texts[0]), vectors[0])
near("query", embedder.get_query_embedding(texts[1]), vectors[1])
several = asyncio.run(embedder.aget_text_embedding_batch(texts))
for got, expected in zip(several, vectors, strict=True):
    near("async", got, expected)
# The server's own field, as anything that the class does not know.
instruction = {"extra_body": {"instruction": "Find the software package that fits."}}
queries = OpenAILikeEmbedding(model_name=given["model"], additional_kwargs=instruction, **base)
check("instruction", queries.get_query_embedding(texts[0]) != vectors[0], True)

how = {"model": given["model"], "temperature": 0, "max_tokens": given["tokens"], **base}
chat = OpenAILike(is_chat_model=True, context_window=2048, **how)
turn = [ChatMessage(role="user", content=given["prompt"])]
check("chat", chat.chat(turn).message.content, given["answer"])
check("chat, streamed", "".join(c.delta for c in chat.stream_chat(turn)), given["answer"])
check("complete, as a chat", chat.complete(given["prompt"]).text, given["answer"])
check("async", asyncio.run(chat.achat(turn)).message.content, given["answer"])
system = ChatMessage(role="system", content="Be brief.")
check("system", bool(chat.chat([system, *turn]).message.content), True)

text = OpenAILike(**how | {"max_tokens": 8})
check("complete", text.complete(given["raw"]).text, given["raw_answer"])
check("streamed", "".join(c.delta for c in text.stream_complete(given["raw"])), given["raw_answer"])

# From documents to an answer, as its first example has it.
Settings.embed_model, Settings.llm = embedder, chat
index = VectorStoreIndex.from_documents([Document(text=text) for text in texts])
found = index.as_retriever(similarity_top_k=1).retrieve(texts[1])
check("index", [node.text for node in found], [texts[1]])
question = "Which package captures packets?"
answer = index.as_query_engine(similarity_top_k=2).query(question)
check("sources", len(answer.source_nodes), 2)
check("answer", bool(answer.response), True)
streamed = index.as_query_engine(streaming=True, similarity_top_k=2).query(question)
check("answer, streamed", "".join(streamed.response_gen), answer.response)
versions = (f"{name} {version(name)}" for name in ("llama-index-core", "openai"))
done(f"{', '.join(versions)}")
