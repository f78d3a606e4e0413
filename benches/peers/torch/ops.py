"""PyTorch's ops at the shapes of `gritlm bench ops`, random inputs, L2 cold.

    python3 benches/peers/torch/ops.py [--device cpu] [--quick] [--output FILE]

Products are torch.matmul alone (cuBLAS): without the rotation, addition or activation that gritlm's
ops also do. Attention is F.scaled_dot_product_attention by backend, on keys and values in one piece
(gritlm reads them from pages); 8 heads of keys for 32 of queries by enable_gqa, and where a backend
refuses that, repeated beforehand ("repeated" in the peer's name: four times the bytes). Experts are
two grouped products over rows sorted by expert, without routing, sorting or activation.
"""

import math

import torch
import torch.nn.functional as F

from common import Rows, arguments, cold, walls, why
from shapes import Sizes

args = arguments("PyTorch's ops at the shapes of gritlm bench ops")
device, quick = args.device, args.quick
bf16 = torch.bfloat16

at = Sizes(quick)
DIM, HIDDEN, HEADS, KV_HEADS, HEAD = at.dim, at.hidden, at.heads, at.kv_heads, at.head_dim
VOCAB, EXPERTS, TOP, DOCUMENTS = at.vocab, at.experts, at.top_k, at.documents
COPIED, SQUARE = at.copied, at.square


def uniform(*shape, dtype=bf16, scale=1.0):
    return torch.empty(*shape, device=device, dtype=dtype).uniform_(-scale, scale)


def weight(rows, cols):
    return uniform(rows, cols, scale=math.sqrt(3 / cols))


def limits(rows):
    clock = walls(device, 5, 8)
    mib = COPIED / (1 << 20)

    def copy():
        from_, to = (torch.randint(0, 256, (COPIED,), dtype=torch.uint8, device=device)
                     for _ in range(2))
        return lambda: to.copy_(from_)

    def pinned():
        from_ = torch.randint(0, 256, (COPIED // 4,), dtype=torch.uint8)
        from_ = from_.pin_memory() if device == "cuda" else from_
        to = torch.empty(COPIED // 4, dtype=torch.uint8, device=device)
        return lambda: to.copy_(from_, non_blocking=True)

    def square():
        a, b = (uniform(SQUARE, SQUARE) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.matmul(a, b, out=out)

    rows.measure("copy", f"{2 * mib:g} MiB", "torch copy_", copy, clock, bytes=2 * COPIED)
    rows.measure("pinned", f"{mib / 4:g} MiB", "torch copy_", pinned, clock, bytes=COPIED // 4)
    shape = f"{SQUARE} x {SQUARE} x {SQUARE}"
    rows.measure("matmul", shape, "torch.matmul", square, clock, flops=2 * SQUARE**3)


def products(rows, clock):
    for op, inner, outer, counts in at.products():
        w = weight(outer, inner)
        for n in counts:
            def make(n=n):
                a = uniform(n, inner)
                return lambda: torch.matmul(a, w.t())

            rows.measure(op, f"{n} x {inner} -> {outer}", "torch.matmul", make, clock,
                         bytes=2 * (n * inner + outer * inner + n * outer),
                         flops=2 * n * inner * outer)


def attention(rows, clock):
    backends = [("flash", "FLASH_ATTENTION"), ("cuDNN", "CUDNN_ATTENTION")]
    if device != "cuda":
        backends = [("math", "MATH")]

    def all_backends(shape, batch, queries, keys, causal, bytes, flops):
        for name, backend in backends:
            def make(repeated=False):
                q = uniform(batch, HEADS, queries, HEAD, scale=math.sqrt(3))
                k, v = (uniform(batch, KV_HEADS, keys, HEAD, scale=math.sqrt(3))
                        for _ in range(2))
                if repeated:
                    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))

                from torch.nn.attention import SDPBackend, sdpa_kernel

                def run():
                    with sdpa_kernel(getattr(SDPBackend, backend)):
                        return F.scaled_dot_product_attention(
                            q, k, v, is_causal=causal, enable_gqa=not repeated)

                run()
                return run

            peer, how = f"SDPA {name}", make
            try:
                make()
            except Exception:
                peer, how = f"SDPA {name}, repeated", lambda: make(True)
            rows.measure("attention", shape, peer, how, clock, bytes=bytes, flops=flops)

    for tokens in at.prefill:
        for causal in [True, False]:
            pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
            bytes = 4 * tokens * HEAD * (HEADS + KV_HEADS)
            all_backends(at.whole(tokens, causal), 1, tokens, tokens, causal, bytes,
                         4 * pairs * HEADS * HEAD)
    for batch in at.batches:
        for context in at.contexts:
            bytes = 4 * batch * HEAD * (KV_HEADS * context + HEADS)
            all_backends(at.decode(batch, context), batch, 1, context, False, bytes,
                         4 * batch * context * HEADS * HEAD)


def experts(rows, clock):
    def grouped():
        if hasattr(torch, "_grouped_mm"):
            return torch._grouped_mm
        if hasattr(F, "grouped_mm"):
            return F.grouped_mm
        raise NotImplementedError("this PyTorch has no torch._grouped_mm")

    halves = [(DIM, 2 * HIDDEN), (HIDDEN, DIM)]
    try:
        weights = [torch.stack([weight(outer, inner) for _ in range(EXPERTS)])
                   for inner, outer in halves]
    except Exception:
        weights = []  # the rows below say that there is no room
    for n in at.expert_rows:
        def make(n=n):
            run = grouped()
            chosen = torch.rand(n, EXPERTS).topk(TOP, 1).indices.flatten()
            offsets = torch.bincount(chosen, minlength=EXPERTS).cumsum(0)
            offsets = offsets.to(device=device, dtype=torch.int32)
            gate_up, down = (w.transpose(1, 2) for w in weights)
            h, inner = uniform(n * TOP, DIM), uniform(n * TOP, HIDDEN)
            return lambda: (run(h, gate_up, offs=offsets), run(inner, down, offs=offsets))

        used = min(EXPERTS, n * TOP)
        rows.measure("expert", at.expert(n), "torch._grouped_mm, both", make, clock,
                     bytes=2 * (used * 3 * DIM * HIDDEN + n * TOP * (2 * DIM + 3 * HIDDEN)),
                     flops=2 * n * TOP * 3 * DIM * HIDDEN)


def small(rows, clock):
    most = at.rows[-1]

    for n in at.rows:
        def norm(n=n):
            x, w = uniform(n, DIM, dtype=torch.float32), torch.ones(DIM, device=device)
            return lambda: F.rms_norm(x, (DIM,), w, 1e-5)

        rows.measure("rmsnorm", f"{n} x {DIM}", "F.rms_norm, f32", norm, clock, bytes=8 * n * DIM)

    def embed():
        table = weight(VOCAB, DIM)
        ids = torch.randint(0, VOCAB, (most,), device=device)
        return lambda: F.embedding(ids, table)

    rows.measure("embed", f"{most} x {DIM}", "F.embedding, bf16", embed, clock,
                 bytes=4 * most * DIM)

    def pool():
        h = uniform(8, most // 8, DIM)
        return lambda: F.normalize(h.mean(1), dim=1)

    rows.measure("pool", at.pool(), "mean, F.normalize", pool, clock,
                 bytes=2 * most * DIM)

    for n in at.batches:
        def greedy(n=n):
            logits = uniform(n, VOCAB, dtype=torch.float32, scale=8)
            return lambda: logits.argmax(1)

        def drawn(n=n):
            logits = uniform(n, VOCAB, dtype=torch.float32, scale=8)

            def run():
                values, ids = (logits / 0.7).topk(50, 1)
                p = values.softmax(1)
                p = p * (p.cumsum(1) - p < 0.9)
                return ids.gather(1, torch.multinomial(p, 1))

            return run

        bytes = 4 * n * VOCAB
        rows.measure("sample", at.sample(n, False), "argmax", greedy, clock, bytes=bytes)
        rows.measure("sample", at.sample(n, True), "topk, multinomial", drawn, clock, bytes=bytes)

    for n in [1, 16]:
        def search(n=n):
            queries, corpus = (uniform(k, DIM, dtype=torch.float32) for k in (n, DOCUMENTS))
            return lambda: torch.matmul(queries, corpus.t()).topk(10, 1)

        rows.measure("search", at.search(n), "torch.matmul f32, topk", search, clock,
                     bytes=4 * DIM * (n + DOCUMENTS), flops=2 * n * DIM * DOCUMENTS)


def main():
    rows = Rows(args.output, device)
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("not measured: PyTorch finds no CUDA device")
    torch.manual_seed(0)
    with torch.inference_mode():
        limits(rows)
        clock = cold(device, args.repeats, 1 << 16 if quick else 256 << 20)
        for part in [products, attention, experts, small]:
            try:
                part(rows, clock)
            except Exception as problem:
                print(f"{part.__name__}: not measured: {why(problem)}", flush=True)


main()
