"""`gritlm_rs.Engine`, `Store` and `train` beside what the library computes.

Reads {model, corpus, toy, texts, instruction, documents, queries, causal, prompt, answer, tokens, raw,
raw_answer, judge: {model, ranked}} on stdin. Prints what was checked.
"""

import asyncio
import json
import pathlib
import tempfile

import gritlm_rs
import numpy as np
from checks import check, done, given
from gritlm_rs import Cache, Engine, Sequence, Store

engine = Engine(given["model"], device="cpu", kv_tokens=8192)
texts, instruction, prompt = given["texts"], given["instruction"], given["prompt"]
folder = pathlib.Path(tempfile.mkdtemp())


def near(what, found, expected, bound=1e-5):
    """The relative error of the whole, as the library's tests measure it."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    check(f"{what}: shape", found.shape, expected.shape)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    check(f"{what}: error {error:.1e} at most {bound}", error <= bound, True)


# Embedding.
dim = engine.shape["dim"]
documents = engine.embed(texts)
check("numbers", (documents.shape, documents.dtype), ((len(texts), dim), np.dtype(np.float32)))
near("documents", documents, given["documents"])
near("queries", engine.embed(texts, instruction=instruction), given["queries"])
near("causal", engine.embed(texts, attn="cccc"), given["causal"])
near("async", asyncio.run(engine.embed_async(texts)), documents)
check("no texts", engine.embed([]).shape, (0, dim))
cut = engine.embed(texts, dimensions=64)
near("dimensions", cut, documents[:, :64] / np.linalg.norm(documents[:, :64], axis=1)[:, None])
longer = engine.embed(texts, normalize=False)
near("normalised later", longer / np.linalg.norm(longer, axis=1)[:, None], documents)
# In any order and number, a text has the same bits.
with open(given["corpus"]) as file:
    corpus = [json.loads(line)["text"] for line in file][:200]
all = engine.embed(corpus, progress=False)
alone = engine.embed(corpus[17:18])
check("same bits", (all[17] == alone[0]).all(), True)

# Generation.
answer = engine.generate(prompt, max_tokens=24)
pieces = list(answer)
check("answer", "".join(piece.text for piece in pieces), given["answer"])
check("tokens", answer.tokens, given["tokens"])
check("token of each piece", [piece.token for piece in pieces], given["tokens"])
check("ended", answer.finish_reason, pieces[-1].finish_reason)
check("counted", answer.summary["output_tokens"], len(given["tokens"]))
check("raw", engine.generate(given["raw"], raw=True, max_tokens=24).text(), given["raw_answer"])
talk = [{"role": "user", "content": prompt}]
check("conversation", engine.generate(talk, max_tokens=24).text(), given["answer"])
scored = engine.generate(given["raw"], raw=True, max_tokens=0, prompt_logprobs=1)
check("nothing made", (scored.text(), scored.finish_reason), ("", "length"))
ids = engine.tokenize(given["raw"])
check("scored tokens", [token for token, *_ in scored.prompt_logprobs], ids[1:])
(logits, _), *_ = engine.run([Sequence(ids, want="all_logits")])
likely = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1)[:, None]
expected = [likely[at, token] for at, token in enumerate(ids[1:])]
near("scores", [logprob for _, logprob, _ in scored.prompt_logprobs], expected)
section = engine.generate("Where?", schema={"enum": ["science", "games"]}, max_tokens=20).text()
check("schema", json.loads(section) in ("science", "games"), True)
check(
    "round trip",
    engine.detokenize(engine.tokenize("größer als π"), skip_special=True),
    "größer als π",
)


async def at_once():
    async def one(tokens):
        answer = engine.generate(prompt, max_tokens=tokens)
        return [piece.token async for piece in answer]

    vectors, *answers = await asyncio.gather(
        engine.embed_async(corpus), *(one(tokens) for tokens in range(1, 25))
    )
    near("embedded beside answers", vectors, all)
    for tokens, found in enumerate(answers, 1):
        check(f"{tokens} tokens at once", found, given["tokens"][:tokens])


asyncio.run(at_once())
check("steps shared", engine.stats()["steps"] < 24 * 25 / 2, True)


# More calls than an event loop has threads of its own.
async def texts_at_once():
    found = await asyncio.gather(*(engine.embed_async([text]) for text in corpus))
    near("each text alone", np.concatenate(found), all)


asyncio.run(texts_at_once())

# Caches.
vectors, caches = engine.embed_with_caches(texts, attn="cccc")
near("with caches", vectors, given["causal"])
layers, heads, width = (engine.shape[name] for name in ("layers", "kv_heads", "head_dim"))
check("shape", caches[0].shape, (layers, 2, heads, len(caches[0]), width))
array = caches[0].numpy()
again = Cache.from_numpy(array)
check("same values", (again.numpy() == array).all(), True)
rest = "\n<|user|>\nWhat is it?\n<|assistant|>\n"
embedded = engine.tokenize("<|embed|>\n" + texts[0])
check("tokens of the cache", len(caches[0]), len(embedded))
# With causal attention a cache is what reading would have computed.
read = engine.generate(embedded + engine.tokenize(rest, special=False), max_tokens=16)
read.text()
for past in (caches[0], again):
    found = engine.generate(rest, raw=True, past=past, max_tokens=16)
    found.text()
    check("from a cache", found.tokens, read.tokens)
    near("log-probabilities from a cache", found.logprobs, read.logprobs, 1e-4)
both = Cache.concat(caches[:2])
check("joined", len(both), len(caches[0]) + len(caches[1]))
near("joined, second half", both.numpy()[:, :, :, len(caches[0]) :], caches[1].numpy(), 0)
near("rounded", caches[0].rounded().numpy(), array, 4e-3)
check("half the bytes", 2 * caches[0].rounded().nbytes, caches[0].nbytes)
check("array is checked", array.shape[1], 2)

# One pass, four masks and wishes.
ids = engine.tokenize("<|embed|>\n" + texts[0])
skip = len(engine.tokenize("<|embed|>\n"))
found = engine.run(
    [
        Sequence(ids, mask="bidirectional", want="embedding", skip=skip),
        Sequence(ids, mask="causal", want="logits", keep_cache=True),
        Sequence(ids, mask="bidirectional", window=4, want="hidden"),
        Sequence(ids[4:], past=None, want="nothing"),
    ]
)
near("in one pass", found[0][0][0], given["documents"][0])
check("logits", found[1][0].shape, (1, engine.shape["vocab"]))
near("kept", found[1][1].numpy(), array)
check("hidden states", found[2][0].shape, (len(ids), dim))
check("nothing", found[3], (None, None))
(later, _), *_ = engine.run(
    [
        Sequence(
            ids[-1:],
            want="logits",
            past=engine.run([Sequence(ids[:-1], want="nothing", keep_cache=True)])[0][1],
        )
    ]
)
near("from a past", later, found[1][0])

# Ranking and searching.
judge = Engine(given["judge"]["model"], device="cpu")
ranked = [(one.index, one.score) for one in judge.rerank("chess", texts)]
check("order", [index for index, _ in ranked], [index for index, _ in given["judge"]["ranked"]])
near("scores", [score for _, score in ranked], [s for _, s in given["judge"]["ranked"]])
hits = engine.search(all[:3], all, 5)
expected = np.argsort(-(all[:3] @ all.T), axis=1, kind="stable")[:, :5]
check("nearest", [[index for index, _ in row] for row in hits], expected.tolist())

# A store.
(folder / "notes").mkdir()
(folder / "notes/chess.html").write_text("<title>Chess</title><p>gnuchess plays a game of chess.")
(folder / "notes/pdf.txt").write_text("pdfgrep searches in PDF files.")
(folder / "notes/bad.jsonl").write_text('{"text": 1}\n')
problems = []
store = Store(engine, folder / "store")
counts = store.index(folder / "notes", on_problem=lambda path, why: problems.append((path, why)))
check("indexed", (counts["added"], counts["failed"]), (2, 1))
check("problem", (len(problems), "bad.jsonl" in problems[0][0]), (1, True))
check("again", store.index([folder / "notes"])["unchanged"], 2)
new = [{"id": "vim", "title": "vim", "text": "an editor of texts", "metadata": {"year": 1991}}]
check("put", store.put(new)["added"], 1)
check("put again", store.put(new)["unchanged"], 1)
hit = store.search("an editor", filters=["year=1991"])[0]
check("found", (hit.document, hit.title, hit.metadata), ("vim", "vim", {"year": 1991}))
check("parsed in a child", store.search("chess", top_k=3)[0].title, "Chess")
check("status", (store.status()["documents"], store.status()["cached"]), (3, 3))
for mode in ("none", "query", "doc", "query-doc", "doc-query"):
    answer = store.ask("What plays chess?", mode=mode, max_tokens=8)
    check(f"{mode}: reused", answer.usage["tokens_reused"] > 0, mode != "none")
    check(f"{mode}: document", answer.hits[0].title, "Chess")
    check(f"{mode}: tokens", (answer.text() != "", len(answer.tokens) <= 8), (True, True))
check("a chunk's cache", store.cache(hit.id).shape[0], layers)
check("sound", store.verify(), [])
check("removed", (store.remove("vim"), store.remove("vim")), (True, False))

# Training, stopped and gone on with.
(folder / "data").mkdir()
for name in ("pairs.jsonl", "conversations.jsonl"):
    (folder / "data" / name).write_bytes((pathlib.Path(given["toy"]) / name).read_bytes())


class Enough(Exception):
    pass


def train(output, **options):
    events = []

    def told(event):
        events.append(event)
        if options.get("stop") and event["event"] == "step":
            raise Enough

    small = {"batch": 4, "generative_batch": 2, "learning_rate": 1e-3, "progress": False}
    how = small | {"steps": 3, "device": "cpu", "on_event": told}
    how |= {name: value for name, value in options.items() if name != "stop"}
    try:
        gritlm_rs.train(given["model"], folder / "data", folder / output, **how)
    except Enough:
        pass
    return [event for event in events if event["event"] == "step"]


whole = train("whole")
check("steps", [event["step"] for event in whole], [1, 2, 3])
check(
    "losses",
    [sorted(event.keys() & {"loss_rep", "loss_gen"}) for event in whole][0],
    ["loss_gen", "loss_rep"],
)
first = train("parts", stop=True)
check("stopped", [event["step"] for event in first], [1])
rest = train("parts")
check("gone on", [event["step"] for event in rest], [2, 3])
check("same losses", [e["loss_rep"] for e in first + rest], [e["loss_rep"] for e in whole])
trained = Engine(folder / "whole", device="cpu")
check("learned", (trained.embed(texts) != documents).any(), True)
train("adapter", lora=2)
merged = gritlm_rs.merge("demo", folder / "adapter/adapter", folder / "merged")
check("merged", merged[1] > 0, True)
near(
    "merged as trained",
    Engine(folder / "merged", device="cpu").embed(texts),
    Engine(folder / "adapter", device="cpu").embed(texts),
    1e-2,
)
check("devices", ("cpu", True) in [one[:2] for one in gritlm_rs.devices()], True)
done("gritlm_rs")
