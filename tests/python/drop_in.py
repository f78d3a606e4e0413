"""`gritlm_rs.GritLM` with the calls of the original package, without PyTorch.

Reads what engine.py reads. Prints what was checked.
"""

import sys

import numpy as np
from checks import check, done, given
from gritlm_rs import Cache, Engine, GritLM, Sequence, gritlm_instruction

model = GritLM(given["model"], device="cpu", torch_dtype="auto")
texts, tokenizer = given["texts"], model.tokenizer
engine = model.engine


def near(what, found, expected, bound=1e-5):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    check(f"{what}: shape", found.shape, expected.shape)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    check(f"{what}: error {error:.1e} at most {bound}", error <= bound, True)


check("no PyTorch", "torch" in sys.modules, False)
query = gritlm_instruction(given["instruction"])
documents = model.encode(texts, instruction=gritlm_instruction(""))
near("documents", documents, given["documents"])
near("queries", model.encode_queries(texts, instruction=query), given["queries"])
near("one text", model.encode(texts[0], instruction=query), given["queries"][0])
near("prompt", model.encode(texts, prompt=query), given["queries"])
titled = [{"title": text[:5], "text": text[6:]} for text in texts]
near("titles", model.encode_corpus(titled), model.encode([f"{t[:5]} {t[6:]}" for t in texts]))
near("no titles", model.encode_corpus([{"text": text} for text in texts]), model.encode(texts))
causal = GritLM(engine, attn="cccc", mode="embedding")
near("causal", causal.encode(texts, instruction=gritlm_instruction("")), given["causal"])
plain = GritLM(engine, normalized=False).encode(texts, instruction=gritlm_instruction(""))
near("not normalised", plain / np.linalg.norm(plain, axis=1)[:, None], documents)

# What is pooled, against hidden states of one pass.
for method in ("mean", "weightedmean", "cls", "lasttoken"):
    for pooled in (False, True):
        for special in (True, False):
            for end in ("", "</s>"):
                other = GritLM(engine, pooling_method=method, normalized=False, embed_eos=end)
                how = {
                    "instruction": query,
                    "embed_instruction": pooled,
                    "max_length": 32 if end == "" else 64,
                }
                found = other.encode(texts[0] * 3, add_special_tokens=special, **how)
                row = engine.tokenize(query + texts[0] * 3 + end, special=special)[
                    : how["max_length"]
                ]
                ((hidden, _),) = engine.run([Sequence(row, mask="bidirectional", want="hidden")])
                skip = (
                    0
                    if pooled or "mean" not in method
                    else len(engine.tokenize(query, special=special))
                )
                span = hidden[skip:].astype(np.float64)
                weights = (
                    np.arange(1, len(span) + 1) if method == "weightedmean" else np.ones(len(span))
                )
                expected = {"cls": hidden[0], "lasttoken": hidden[-1]}.get(
                    method, (span * weights[:, None]).sum(0) / weights.sum()
                )
                near(f"{method} {pooled} {special} {end!r}", found, expected)

# Tokens as transformers' calls return them.
one = tokenizer("Package: gnuplot")
check("one text", one["input_ids"], engine.tokenize("Package: gnuplot"))
check("as an attribute", one.attention_mask, [1] * len(one.input_ids))
rows = tokenizer(["a", "Package: gnuplot"], padding=True, return_tensors="np")
check(
    "padded",
    (rows.input_ids.shape, rows.attention_mask.sum()),
    ((2, len(one.input_ids)), rows.attention_mask[0].sum() + len(one.input_ids)),
)
check("padding", rows.input_ids[0, -1], tokenizer.pad_token_id)
cut = tokenizer("Package: gnuplot", truncation=True, max_length=3, add_special_tokens=False)
check("cut", cut.input_ids, one.input_ids[1:4])
check("spelled", tokenizer.decode(one.input_ids), "<s> Package: gnuplot")
check(
    "left out",
    tokenizer.batch_decode([one.input_ids], skip_special_tokens=True),
    ["Package: gnuplot"],
)
check("moved", (one.to("cpu") == one, tokenizer.pad_token), (True, "</s>"))
talk = [{"role": "user", "content": given["prompt"]}]
text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
check(
    "text of a conversation", text.endswith(f"<|user|>\n{given['prompt']}\n<|assistant|>\n"), True
)
told = talk + [{"role": "assistant", "content": "It."}]
over = tokenizer.apply_chat_template(told, tokenize=False)
check("an answer is over", over.removeprefix(text).rstrip(), "It.</s>")
check(
    "its ids", tokenizer.apply_chat_template(told), tokenizer.encode(over, add_special_tokens=False)
)

# Generation.
encoded = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="np")
encoded = encoded if model.device == "cpu" else None
found = model.generate(encoded, max_new_tokens=24, do_sample=False)
check("greedy", found[0].tolist(), encoded[0].tolist() + given["tokens"])
check("kind", (type(found), found.dtype), (np.ndarray, np.dtype(np.int64)))
check("lists", model.generate(encoded.tolist(), max_new_tokens=24), found.tolist())
check(
    "in all",
    model.generate(encoded, max_length=encoded.shape[1] + 3).shape[1],
    encoded.shape[1] + 3,
)
short = tokenizer("Package:", return_tensors="np").input_ids
batch = tokenizer([text, "Package:"], padding=True, add_special_tokens=False, return_tensors="np")
batch["input_ids"][1] = np.roll(batch["input_ids"][1], 1)
batch["attention_mask"][1] = np.roll(batch["attention_mask"][1], 1)
both = model.generate(**batch, max_new_tokens=8)
for row, ids, mask in zip(both, batch["input_ids"], batch["attention_mask"], strict=True):
    alone = model.generate([ids[mask == 1].tolist()], max_new_tokens=8)[0]
    made = alone[mask.sum() :]
    check("in a batch", row[len(ids) :].tolist()[: len(made)], made)
    check(
        "then padding", set(row[len(ids) + len(made) :].tolist()) <= {tokenizer.pad_token_id}, True
    )
sample = {"do_sample": True, "max_new_tokens": 8, "temperature": 1.5, "top_k": 0}
drawn = [model.generate(encoded, seed=seed, **sample).tolist() for seed in (1, 1, 2)]
check("seeds", (drawn[0] == drawn[1], drawn[0] == drawn[2]), (True, False))
many = model.generate(encoded, num_return_sequences=3, seed=1, **sample)
check("several", (len(many), len({tuple(row) for row in many.tolist()}) > 1), (3, True))

# The original's README: a document's cache, a query's, both.
rest = "\n<|user|>\n{}\n\nAnswer the prior query while optionally using the context prior to it\n<|assistant|>\n"
for attn in ("bbcc", "cccc"):
    grit = GritLM(engine, attn=attn)
    vectors, cache = grit.encode(texts, instruction=gritlm_instruction(""), get_cache=True)
    near("with a cache", vectors, given["documents" if attn == "bbcc" else "causal"])
    layers, keys = len(cache), cache[0][0]
    lengths = [len(engine.tokenize(gritlm_instruction("") + text)) for text in texts]
    check("layers", layers, engine.shape["layers"])
    check("keys", keys.shape, (3, engine.shape["kv_heads"], max(lengths), engine.shape["head_dim"]))
    inputs = tokenizer(rest.format(given["prompt"]), return_tensors="np", add_special_tokens=False)
    for row in range(3):
        past = tuple((k[row : row + 1], v[row : row + 1]) for k, v in cache)
        ones = np.ones((1, keys.shape[2]), np.int64)
        mask = np.concatenate([ones, inputs["attention_mask"]], axis=1)
        with_past = {"past_key_values": past, "max_new_tokens": 12, "do_sample": False}
        found = model.generate(
            inputs["input_ids"], attention_mask=mask, use_cache=True, **with_past
        )
        _, caches = engine.embed_with_caches([texts[row]], attn=attn)
        prompt = inputs["input_ids"][0].tolist()
        answer = engine.generate(prompt, past=caches[0], max_tokens=12)
        answer.text()
        check(f"{attn}, document {row}", found[0].tolist(), prompt + answer.tokens)
        kept = model.generate(inputs["input_ids"], past=caches[0], max_new_tokens=12)
        check("a cache of the engine", kept.tolist(), found.tolist())
        if attn == "cccc":
            read = engine.tokenize(gritlm_instruction("") + texts[row]) + prompt
            check("as if read", model.generate([read], max_new_tokens=12)[0], read + answer.tokens)
    # Two caches, one after the other.
    first = [(k[:1], v[:1]) for k, v in cache]
    second = [(k[1:2], v[1:2]) for k, v in cache]
    joined = [
        (np.concatenate([a, c], axis=2), np.concatenate([b, d], axis=2))
        for (a, b), (c, d) in zip(first, second, strict=True)
    ]
    _, caches = engine.embed_with_caches(texts[:2], attn=attn)
    answer = engine.generate(prompt, past=Cache.concat(caches), max_tokens=12)
    answer.text()
    found = model.generate([prompt], past_key_values=joined, max_new_tokens=12)
    check(f"{attn}, joined", found[0], prompt + answer.tokens)
    # A row of the mask that leaves cached tokens out is a shorter cache.
    some = [(k[:1, :, : lengths[0]], v[:1, :, : lengths[0]]) for k, v in cache]
    mask = [[0, 0] + [1] * (lengths[0] - 2) + [1] * len(prompt)]
    found = model.generate([prompt], past_key_values=some, attention_mask=mask, max_new_tokens=12)
    shorter = Cache.from_numpy(np.ascontiguousarray(caches[0].numpy()[:, :, :, 2:]))
    answer = engine.generate(prompt, past=shorter, max_tokens=12)
    answer.text()
    check(f"{attn}, masked", found[0], prompt + answer.tokens)


def refused(what, call, *words):
    try:
        call()
    except (ValueError, NotImplementedError) as error:
        text = str(error)
        check(f"{what}: one line", "\n" in text, False)
        for word in words:
            check(f"{what}: {text}", word in text, True)
    else:
        sys.exit(f"{what}: not refused")


name = given["model"]
refused("beams", lambda: model.generate(encoded, num_beams=4), "num_beams", "4")
refused("mode", lambda: GritLM(name, mode="both"), "mode", "unified")
refused("pooling", lambda: GritLM(name, pooling_method="weighted_mean"), "weightedmean")
refused("mixed attention", lambda: GritLM(name, attn="bccb"), "attn", "bccb")
refused("projection", lambda: GritLM(name, projection=32), "projection")
refused("4 bits", lambda: GritLM(name, load_in_4bit=True), "weights='q4_k_m'")
refused("map", lambda: GritLM(name, device_map={"": 0}), "device_map")
refused("dtype", lambda: GritLM(name, torch_dtype="int4"), "int4", "bfloat16")
refused("end", lambda: GritLM(engine, embed_eos="</e>"), "</e>")
refused("no prompt", lambda: model.generate([[]]), "token")
refused("only embeds", lambda: causal.generate(encoded), "embedding")
refused("only generates", lambda: GritLM(engine, mode="generative").encode("a"), "generative")
refused("shape", lambda: model.generate([prompt], past_key_values=cache), "1 rows", "3")
refused(
    "other model",
    lambda: engine.generate("a", past=Cache.from_numpy(np.zeros((1, 2, 1, 3, 4), np.float32))),
    "cache",
)
for attention in ("attn_implementation", "trust_remote_code"):
    try:
        GritLM(name, **{attention: "sdpa"})
    except TypeError as error:
        check("by name", attention in str(error), True)
    else:
        sys.exit(f"{attention}: not refused")
half = GritLM(name, device="cpu", torch_dtype="float16")
near("half the weights", half.encode(texts, instruction=gritlm_instruction("")), documents, 2e-3)
check("an engine", isinstance(half.engine, Engine), True)
check("config", half.model.config.hidden_size, engine.shape["dim"])
done("the calls of gritlm")
