"""The LangChain and LlamaIndex classes of the package against the real packages, whichever of the
two this Python has. On stdin as clients/openai_client.py; of its values this wants `texts`,
`vectors`, `prompt`, `tokens`, `answer`, `schema` and `keys`, of `demo` on the CPU."""

import asyncio
import sys
from importlib.metadata import version
from importlib.util import find_spec

import gritlm_rs
from checks import check, done, given

loaded = {name.split(".")[0] for name in sys.modules}
check("imports", loaded & {"langchain_core", "llama_index", "torch", "ray"}, set())
engine = gritlm_rs.Engine("demo", device="cpu")
texts, vectors, prompt, tokens = (given[k] for k in ("texts", "vectors", "prompt", "tokens"))
instruction = "Find the software package that fits."
asked = engine.embed(texts, instruction=instruction).tolist()


def near(what, found, expected):
    check(what, [len(vector) for vector in found], [len(vector) for vector in expected])
    for got, wanted in zip(found, expected, strict=True):
        check(what, max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < 1e-5, True)


def refused(what, call, part):
    try:
        call()
    except ValueError as error:
        check(what, part in str(error), True)
    else:
        sys.exit(f"{what}: expected a ValueError")


def langchain():
    from langchain_core.documents import Document
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.vectorstores import InMemoryVectorStore
    from pydantic import BaseModel, Field

    from gritlm_rs.langchain import ChatGritLM, GritLMEmbeddings

    embeddings = GritLMEmbeddings(engine, query_instruction=instruction)
    near("documents", embeddings.embed_documents(texts), vectors)
    near("queries", [embeddings.embed_query(text) for text in texts], asked)
    near("documents, async", asyncio.run(embeddings.aembed_documents(texts)), vectors)
    near("query, async", [asyncio.run(embeddings.aembed_query(texts[0]))], asked[:1])
    check("dimensions", len(GritLMEmbeddings(engine, dimensions=8).embed_query(texts[0])), 8)
    store = InMemoryVectorStore(GritLMEmbeddings(engine))
    store.add_documents([Document(text, id=str(i)) for i, text in enumerate(texts)])
    check("store", store.similarity_search(texts[1], k=1)[0].id, "1")

    chat = ChatGritLM(engine=engine, max_tokens=tokens)
    whole = chat.invoke(prompt)
    check("invoke", whole.content, given["answer"])
    check("finish", whole.response_metadata["finish_reason"], "length")
    used = engine.generate(prompt, max_tokens=tokens)
    check("text", used.text(), given["answer"])
    usage = {"input_tokens": used.prompt_tokens, "output_tokens": tokens}
    usage["total_tokens"] = sum(usage.values())
    check("usage", {k: whole.usage_metadata[k] for k in usage}, usage)
    chunks = list(chat.stream(prompt))
    check("stream", "".join(chunk.content for chunk in chunks), given["answer"])
    check("streamed in pieces", len(chunks) >= tokens, True)
    check("usage, once", [c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata],
          [tokens])  # fmt: skip
    check("batch", [m.content for m in chat.batch([prompt] * 3)], [given["answer"]] * 3)

    async def all_async():
        check("ainvoke", (await chat.ainvoke(prompt)).content, given["answer"])
        streamed = [chunk.content async for chunk in chat.astream(prompt)]
        check("astream", "".join(streamed), given["answer"])
        several = await asyncio.gather(*(chat.ainvoke(prompt) for _ in range(8)))
        check("together", {message.content for message in several}, {given["answer"]})
        # A stream that is left takes its answer out of the batch.
        streaming = ChatGritLM(engine=engine, max_tokens=1900).astream("Go on.", ignore_eos=True)
        await anext(streaming)
        await streaming.aclose()

    asyncio.run(all_async())
    # The next step takes it out.
    engine.generate(prompt, max_tokens=1).text()
    check("left", [engine.stats()[name] for name in ("running", "cancelled")], [0, 1])
    end = given["answer"][6:9]
    check("stop", chat.invoke(prompt, stop=[end]).content, given["answer"].split(end)[0])
    check("bound", chat.bind(stop=[end]).invoke(prompt).content, given["answer"].split(end)[0])
    probable = chat.invoke(prompt, logprobs=2).response_metadata["logprobs"]["content"]
    check("logprobs", [len(one["top_logprobs"]) for one in probable], [2] * tokens)
    same = [one["token"] == one["top_logprobs"][0]["token"] for one in probable]
    check("greedy", same, [True] * tokens)
    check("logprob", [round(one["logprob"], 4) for one in probable],
          [round(value, 4) for value in used.logprobs])  # fmt: skip
    talk = [SystemMessage("Be brief."), HumanMessage("Hi."), AIMessage("Hello."),
            HumanMessage([{"type": "text", "text": "Who?"}])]  # fmt: skip
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Who?")]
    turns = [{"role": role, "content": content} for role, content in turns]
    expected = engine.generate(turns, max_tokens=tokens).text()
    check("turns", chat.invoke(talk).content, expected)
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])
    refused("picture", lambda: chat.invoke([picture]), "image_url")
    refused("tool", lambda: chat.invoke([ToolMessage("x", tool_call_id="1")]), "tool")
    refused("option", lambda: chat.invoke(prompt, temperature=-1.0), "temperature")
    chain = ChatPromptTemplate.from_messages([("user", "Describe the package {name}.")]) | chat
    name = prompt.removeprefix("Describe the package ").removesuffix(".")
    check("chain", chain.invoke({"name": name}).content, given["answer"])
    long = ChatGritLM(engine=engine, max_tokens=200)
    shaped = long.with_structured_output(given["schema"] | {"title": "answer", "description": ""})
    check("structured", sorted(shaped.invoke(prompt)), given["keys"])

    class Package(BaseModel):
        name: str = Field(max_length=20)
        size: int = Field(ge=0, le=99)

    made = long.with_structured_output(Package).invoke(prompt)
    check("structured, class", (type(made), 0 <= made.size <= 99), (Package, True))
    return f"langchain-core {version('langchain-core')}"


def llama_index():
    from llama_index.core import Document, Settings, VectorStoreIndex
    from llama_index.core.llms import ChatMessage

    from gritlm_rs.llama_index import GritLMChat, GritLMEmbedding

    embedder = GritLMEmbedding(engine, query_instruction=instruction)
    near("batch", embedder.get_text_embedding_batch(texts), vectors)
    near("text", [embedder.get_text_embedding(text) for text in texts], vectors)
    near("queries", [embedder.get_query_embedding(text) for text in texts], asked)
    near("async", asyncio.run(embedder.aget_text_embedding_batch(texts)), vectors)
    near("query, async", [asyncio.run(embedder.aget_query_embedding(texts[0]))], asked[:1])
    chat = GritLMChat(engine, max_tokens=tokens)
    turn = [ChatMessage(role="user", content=prompt)]
    check("chat", chat.chat(turn).message.content, given["answer"])
    check("stream", "".join(c.delta for c in chat.stream_chat(turn)), given["answer"])
    check("complete", chat.complete(prompt).text, given["answer"])
    check("completed", "".join(c.delta for c in chat.stream_complete(prompt)), given["answer"])
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Who?")]
    talk = [ChatMessage(role=role, content=content) for role, content in turns]
    turns = [{"role": role, "content": content} for role, content in turns]
    expected = engine.generate(turns, max_tokens=tokens).text()
    check("turns", chat.chat(talk).message.content, expected)
    check("stop", chat.chat(turn, stop=["-"]).message.content, given["answer"].split("-")[0])
    check("context", chat.metadata.context_window, engine.shape["max_positions"])

    async def all_async():
        check("achat", (await chat.achat(turn)).message.content, given["answer"])
        check("acomplete", (await chat.acomplete(prompt)).text, given["answer"])
        streams = (await chat.astream_chat(turn), await chat.astream_complete(prompt))
        for stream in streams:
            check("astream", "".join([c.delta async for c in stream]), given["answer"])

    asyncio.run(all_async())
    Settings.embed_model, Settings.llm = GritLMEmbedding(engine), chat
    index = VectorStoreIndex.from_documents([Document(text=text) for text in texts])
    found = index.as_retriever(similarity_top_k=1).retrieve(texts[1])
    check("index", [node.text for node in found], [texts[1]])
    answer = index.as_query_engine(similarity_top_k=2).query("Which package captures packets?")
    check("answer", (len(answer.source_nodes), bool(answer.response)), (2, True))
    return f"llama-index-core {version('llama-index-core')}"


adapters = {"langchain_core": langchain, "llama_index": llama_index}
said = [run() for package, run in adapters.items() if find_spec(package) is not None]
check("packages", bool(said), True)
done(f"adapters, {', '.join(said)}")
