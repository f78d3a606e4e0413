"""The original package `gritlm` beside ours: the same calls on the same weights. Ours computes in
float32 and the original in float64, since in float32 it is itself up to 1.3e-5 off on SmolLM2.

Reads {folders, gguf} on stdin: folders of checkpoints with a tokenizer.json, and a GGUF file or
null. Prints what was checked.

The original wants transformers 4.37 and the remote code of GritLM's checkpoints. With a newer
transformers its own code runs as it is; around it three things differ:
- stock models know no `is_causal`, so `bbcc` gives them an explicit mask of four dimensions;
- what it returns as a cache is an object, not a tuple, and is made a tuple of its tensors;
- `generate` wants the ids of cached tokens in front, which it then cuts off.
"""

import json
import os
import pathlib
import shutil
import tempfile
from importlib.metadata import version

from checks import check, done, given

scratch = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = scratch.name + "/cache"
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ[name] = "1"

import gritlm as original  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import gritlm_rs as ours  # noqa: E402
from gritlm_rs import gritlm_instruction  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
POOLING = ("mean", "weightedmean", "cls", "lasttoken")
# GritLM's own, which the reference folders are without.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TASK = gritlm_instruction("Given a question, retrieve passages that answer the question")
DOCUMENTS = [
    "A purely peer-to-peer version of electronic cash would allow online payments to be sent "
    "directly from one party to another without going through a financial institution.",
    "Größer als π ☃: all text-based language problems can be reduced to either generation or "
    "embedding. Current models only perform well at one or the other.",
    "A short one.",
]
QUERIES = ["Please explain to me how Bitcoin works.", 'What is "GRIT"?']
FORMATS = {
    "doc": "\n<|user|>\n{}\n\nAnswer the prior query while optionally using the context prior to "
    "it\n<|assistant|>\n",
    "query": "\n<|user|>\n{}\n\nOptionally using the prior context answer the query prior to "
    "it\n<|assistant|>\n",
    "both": "\n<|user|>\nAnswer the prior query while optionally using the context prior to "
    "it\n<|assistant|>\n",
}
worst = {}


def near(what, got, expected, bound=1e-5):
    """Checks the error of an array relative to its norm."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    check(f"{what}: shape", got.shape, expected.shape)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    kind = what.split(":")[0]
    worst[kind] = max(worst.get(kind, 0.0), float(error))
    check(f"{what}: {error:.1e} off", bool(error < bound), True)


def published(folder):
    """A reference folder as published ones are: with a config of its tokenizer."""
    copy = pathlib.Path(tempfile.mkdtemp(dir=scratch.name)) / pathlib.Path(folder).name
    copy.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(pathlib.Path(folder, name), copy / name)
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return str(copy)


def dequantized(gguf):
    """The weights of a GGUF file as a folder in float32, as transformers reads them."""
    path, copy = pathlib.Path(gguf), tempfile.mkdtemp(dir=scratch.name)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # It takes itself for quantised, and would not be saved.
    model.hf_quantizer, model.config.quantization_config = None, None
    del model.config.quantization_config
    model.save_pretrained(copy)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(copy)
    return copy


def bidirectional(model):
    """Gives a stock model the `is_causal` of GritLM's own: a mask of the padding alone."""
    inner = getattr(model.model, model.embedding_attr) if model.embedding_attr else model.model
    plain = inner.forward

    def forward(input_ids=None, attention_mask=None, is_causal=True, **rest):
        if not is_causal:
            seen = attention_mask[:, None, None, :].bool()
            attention_mask = seen.expand(-1, 1, attention_mask.shape[1], -1)
        return plain(input_ids=input_ids, attention_mask=attention_mask, **rest)

    inner.forward = forward


def legacy(cache):
    """A cache of transformers as the tuple that the original's users know."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)


class Pair:
    """A model in the original and in ours."""

    def __init__(self, folder, attn, pooling="mean", **settings):
        how = {"attn": attn, "pooling_method": pooling, **settings}
        plain = {"torch_dtype": torch.float64, "experts_implementation": "eager"}
        self.theirs = original.GritLM(folder, device="cpu", **plain, **how)
        bidirectional(self.theirs)
        self.ours = ours.GritLM(folder, torch_dtype=torch.float32, device="cpu", **how)

    def set(self, pooling, normalized=True):
        for model in (self.theirs, self.ours):
            model.pooling_method, model.normalized = pooling, normalized

    def encode(self, what, texts, **settings):
        near(what, self.ours.encode(texts, **settings), self.theirs.encode(texts, **settings))

    def encode_cached(self, what, texts, **settings):
        """Compares vectors and caches; returns both sides' caches and the lengths."""
        vectors, theirs = self.theirs.encode(texts, get_cache=True, **settings)
        found, cache = self.ours.encode(texts, get_cache=True, **settings)
        near(f"vectors: {what}, cached", found, vectors)
        theirs = legacy(theirs)
        special = settings.get("add_special_tokens", True)
        tokens = self.theirs.tokenizer(
            [settings.get("instruction", "") + text for text in texts],
            add_special_tokens=special,
            truncation=True,
            max_length=settings.get("max_length", 512),
        )["input_ids"]
        check(f"{what}: layers", len(cache), len(theirs))
        for layer, (got, expected) in enumerate(zip(cache, theirs, strict=True)):
            for part in (0, 1):
                check(f"{what}: layer {layer}", got[part].shape, expected[part].shape)
                for row, ids in enumerate(tokens):
                    real = [kv[part][row, :, : len(ids)] for kv in (got, expected)]
                    near(f"caches: {what}, layer {layer}", *real)
        return cache, theirs, [len(ids) for ids in tokens]

    def answer(self, what, prompt, pasts=None, lengths=None, tokens=24):
        """Compares greedy tokens after a prompt, behind caches if there are any."""
        inputs = [m.tokenizer(prompt, return_tensors="pt", add_special_tokens=not pasts)
                  for m in (self.theirs, self.ours)]  # fmt: skip
        ids = inputs[0]["input_ids"]
        check(f"{what}: ids", inputs[1]["input_ids"].tolist(), ids.tolist())
        greedy = {"max_new_tokens": tokens, "do_sample": False}
        if pasts is None:
            expected = self.theirs.generate(**inputs[0], **greedy)
            check(what, self.ours.generate(**inputs[1], **greedy).tolist(), expected.tolist())
            return expected[0, ids.shape[1] :].tolist()
        mine, theirs = pasts
        columns = theirs[0][0].shape[2]
        # Columns of padding, where there are any, are left out.
        mask = torch.zeros(1, columns, dtype=torch.long)
        start = 0
        for width, length in lengths:
            mask[0, start : start + length] = 1
            start += width
        mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
        past = transformers.DynamicCache()
        for layer, kv in enumerate(theirs):
            past.update(*kv, layer)
        whole = torch.cat((torch.zeros(1, columns, dtype=torch.long), ids), dim=1)
        expected = self.theirs.generate(
            input_ids=whole, attention_mask=mask, past_key_values=past, **greedy
        )[:, columns:]
        # Padding is left out where the mask says so, as in the original, or where it holds zeros.
        for how, given_mask, past in (
            ("mask", mask, mine),
            ("zeros", torch.ones_like(mask), mine),
            ("the original's cache", mask, theirs),
        ):
            settings = {"attention_mask": given_mask, "past_key_values": past, "use_cache": True}
            found = self.ours.generate(input_ids=inputs[1]["input_ids"], **settings, **greedy)
            check(f"{what}, {how}", found.tolist(), expected.tolist())
        return expected[0, ids.shape[1] :].tolist()


def row(cache, at):
    return tuple((keys[at : at + 1], values[at : at + 1]) for keys, values in cache)


def joined(*caches):
    """Caches one after the other, as the README has it."""
    return tuple(
        tuple(torch.cat([layer[part] for layer in layers], dim=2) for part in (0, 1))
        for layers in zip(*caches, strict=True)
    )


def check_encode(what, pair):
    """Every method of pooling with and without what `encode` takes."""
    texts = [*DOCUMENTS, *QUERIES]
    for pooling in POOLING:
        pair.set(pooling)
        name = f"vectors: {what}, {pooling}"
        pair.encode(f"{name}, bare", texts)
        for instruction in (gritlm_instruction(""), TASK):
            for pooled in (False, True):
                how = {"instruction": instruction, "embed_instruction": pooled}
                pair.encode(f"{name}, {how}", texts, **how)
        pair.encode(f"{name}, no <s>", texts, instruction=TASK, add_special_tokens=False)
        pair.encode(f"{name}, cut", texts, instruction=gritlm_instruction(""), max_length=24)
        pair.set(pooling, normalized=False)
        pair.encode(f"{name}, not normalised", texts, instruction=TASK)
    pair.set("mean")
    pair.encode(f"vectors: {what}, one text", texts[0], instruction=TASK)
    pair.encode(f"vectors: {what}, small batches", texts, instruction=TASK, batch_size=2)
    pair.encode(f"vectors: {what}, recast", texts, instruction=TASK, recast=True)
    tensors = [m.encode(texts, convert_to_tensor=True) for m in (pair.ours, pair.theirs)]
    check(f"{what}: kind", type(tensors[0]), type(tensors[1]))
    near(f"vectors: {what}, tensor", *tensors)
    titled = [{"title": "Title", "text": text} for text in texts] + [{"text": "Without."}]
    for corpus in (titled, titled[:1], texts):
        vectors = [m.encode_corpus(corpus, instruction=TASK) for m in (pair.ours, pair.theirs)]
        near(f"vectors: {what}, corpus", *vectors)
    near(f"vectors: {what}, queries", *[m.encode_queries(texts) for m in (pair.ours, pair.theirs)])


def check_briefly(what, pair):
    """As `check_encode`, for a model on which each call takes a second."""
    pair.set("mean")
    pair.encode(f"vectors: {what}, documents", DOCUMENTS, instruction=gritlm_instruction(""))
    for pooling in POOLING:
        pair.set(pooling)
        pair.encode(f"vectors: {what}, {pooling}", QUERIES, instruction=TASK)


def check_answers(what, pair, places=range(len(DOCUMENTS)), tokens=24):
    """Answers of a chat, and those of the README behind caches."""
    talk = [{"role": "user", "content": "Please write me a poem about my nose."}]
    prompts = [m.tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
               for m in (pair.theirs, pair.ours)]  # fmt: skip
    check(f"{what}: chat", prompts[1], prompts[0])
    ids = [m.tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, return_tensors="pt", return_dict=False
    ) for m in (pair.theirs, pair.ours)]  # fmt: skip
    check(f"{what}: chat's ids", ids[1].tolist(), ids[0].tolist())
    said = [m.generate(i, max_new_tokens=tokens, do_sample=False)
            for m, i in zip((pair.theirs, pair.ours), ids, strict=True)]  # fmt: skip
    check(f"{what}: chat's answer", said[1].tolist(), said[0].tolist())
    texts = [m.tokenizer.batch_decode(t)
             for m, t in zip((pair.theirs, pair.ours), said, strict=True)]  # fmt: skip
    check(f"{what}: chat's text", texts[1], texts[0])
    answers = [pair.answer(f"{what}: text", DOCUMENTS[d], tokens=tokens) for d in places]

    pair.set("mean")
    bare = {"instruction": gritlm_instruction("")}
    documents = pair.encode_cached(f"{what}, documents", DOCUMENTS, **bare)
    queries = pair.encode_cached(f"{what}, queries", QUERIES, **bare)
    continued = pair.encode_cached(f"{what}, no <s>", DOCUMENTS, add_special_tokens=False, **bare)
    pair.encode_cached(f"{what}, cut", DOCUMENTS, max_length=16, **bare)

    def behind(how, prompt, *parts):
        pasts = [joined(*(row(side[which], at) for side, at in parts)) for which in (0, 1)]
        lengths = [(side[1][0][0].shape[2], side[2][at]) for side, at in parts]
        return pair.answer(f"{what}: {how}", prompt, pasts, lengths, tokens)

    for d in places:
        q = d % len(QUERIES)
        answers += [
            behind("doc caching", FORMATS["doc"].format(QUERIES[q]), (documents, d)),
            behind("query caching", FORMATS["query"].format(DOCUMENTS[d]), (queries, q)),
            behind("query-doc caching", FORMATS["both"], (queries, q), (continued, d)),
            behind("doc-query caching", FORMATS["both"], (documents, d), (queries, q)),
        ]
    check(f"{what}: answers differ", len(set(map(tuple, answers))) > len(answers) // 2, True)


def check_reference(folder):
    """A tiny model, thoroughly."""
    folder = published(folder)
    for attn in ("cccc", "bbcc"):
        what, pair = f"{pathlib.Path(folder).name} {attn}", Pair(folder, attn)
        check_encode(what, pair)
        check_answers(what, pair)
    ended = Pair(folder, "cccc", "lasttoken", mode="embedding", embed_eos="</s>")
    ended.encode(f"vectors: {what}, end", [*DOCUMENTS, *QUERIES], instruction=TASK)


def check_gguf(path):
    """A real model: its weights dequantised, and the file itself, whose weights stay quantised."""
    what, folder = pathlib.Path(path).stem, dequantized(path)
    pair = Pair(folder, "cccc")
    check_briefly(f"{what} dequantised", pair)
    check_answers(f"{what} dequantised", pair, places=[1], tokens=12)
    pair = Pair(folder, "bbcc")
    pair.ours = ours.GritLM(path, attn="bbcc", device="cpu")
    check_briefly(what, pair)
    check_answers(what, pair, places=[1], tokens=12)


for folder in given["folders"]:
    check_reference(folder)
if given["gguf"] is not None:
    check_gguf(given["gguf"])
print(", ".join(f"{kind} at most {error:.1e} off" for kind, error in sorted(worst.items())))
done(f"gritlm {version('gritlm')}, transformers {transformers.__version__}")
