"""The steps of `cargo bench --bench train` in PyTorch: same start, same batches, f32, on the CPU.

    python3 train.py DIR [--steps N] [--output FILE] [--reverse] [--threads N]

DIR has `model` and `steps.jsonl`. With --reverse each batch comes in the opposite order, so that sums have other
orders; what two such runs are apart is what rounding does. Queries, passages and conversations are padded batches
of their own; scaled_dot_product_attention gets a mask of both directions. Prints tokens/s and the largest resident
memory, and writes losses and norms a line a step.
"""

import argparse
import json
import pathlib
import resource
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--steps", type=int)
parser.add_argument("--output", type=pathlib.Path)
parser.add_argument("--reverse", action="store_true")
parser.add_argument("--threads", type=int)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)

model = AutoModelForCausalLM.from_pretrained(args.folder / "model", dtype=torch.float32, attn_implementation="sdpa")
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)


def padded(rows):
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    there = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        there[i, : len(row)] = True
    return ids, there


def embed(texts):
    ids, there = padded([text["tokens"] for text in texts])
    both = torch.zeros(len(texts), 1, ids.shape[1], ids.shape[1])
    both.masked_fill_(~there[:, None, None, :], torch.finfo(torch.float32).min)
    hidden = model.model(input_ids=ids, attention_mask=both).last_hidden_state
    for i, text in enumerate(texts):
        there[i, : text["skip"]] = False
    pooled = (hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    return F.normalize(pooled, dim=-1)


def generative(answers):
    ids, there = padded([answer["tokens"] for answer in answers])
    labels = torch.full_like(ids, -100)
    for i, answer in enumerate(answers):
        target = torch.tensor(answer["targets"])
        labels[i, : len(target)][target] = ids[i, : len(target)][target]
    logits = model(input_ids=ids, attention_mask=there.long()).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


output = args.output and open(args.output, "w")
tokens, seconds = 0, 0.0
with open(args.folder / "steps.jsonl") as lines:
    for line in lines:
        batch = json.loads(line)
        if args.steps and batch["step"] > args.steps:
            break
        start = time.perf_counter()
        queries, passages, answers = batch["queries"], batch["passages"], batch["answers"]
        targets = torch.arange(len(queries)) * (len(passages) // max(len(queries), 1))
        if args.reverse:
            queries, passages, answers = queries[::-1], passages[::-1], answers[::-1]
            targets = len(passages) - 1 - targets.flip(0)
        optimizer.zero_grad(set_to_none=True)
        losses = {}
        if answers:
            loss = generative(answers)
            loss.backward()
            losses["loss_gen"] = loss.item()
        if queries:
            scores = embed(queries) @ embed(passages).T / 0.02
            loss = F.cross_entropy(scores, targets)
            loss.backward()
            losses["loss_rep"] = loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        for group in optimizer.param_groups:
            group["lr"] = batch["learning_rate"]
        optimizer.step()
        took = time.perf_counter() - start
        if batch["step"] > 1:
            tokens, seconds = tokens + batch["tokens"], seconds + took
        if output:
            print(json.dumps({"step": batch["step"], **losses, "gradient_norm": norm, "seconds": took}), file=output, flush=True)

peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: {tokens / seconds:.0f} tokens/s, {peak:.2f} GB resident at most")
