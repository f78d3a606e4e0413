"""The shapes of benches/cuda.rs, and the names of its rows in their order."""


class Sizes:
    def __init__(self, quick):
        if quick:
            self.dim, self.heads, self.kv_heads, self.head_dim = 64, 4, 2, 16
            self.hidden, self.vocab, self.experts, self.top_k = 96, 300, 4, 2
            self.rows, self.expert_rows, self.prefill = [1, 16], [1, 16], [128]
            self.batches, self.contexts = [2], [256]
            self.documents, self.copied, self.square, self.tokens = 500, 1 << 16, 128, 64
        else:
            self.dim, self.heads, self.kv_heads, self.head_dim = 4096, 32, 8, 128
            self.hidden, self.vocab, self.experts, self.top_k = 14336, 32000, 8, 2
            self.rows, self.expert_rows = [1, 4, 16, 64, 512, 4096], [1, 16, 512, 4096]
            self.prefill, self.batches = [512, 4096, 8192], [1, 8, 32]
            self.contexts = [1024, 4096, 16384]
            self.documents, self.copied, self.square, self.tokens = 100_000, 1 << 30, 8192, 4096
        self.attention = f"{self.heads}:{self.kv_heads} x {self.head_dim}"
        self.products = [
            ("qkv", self.dim, (self.heads + 2 * self.kv_heads) * self.head_dim),
            ("linear_add o", self.heads * self.head_dim, self.dim),
            ("gate_up", self.dim, 2 * self.hidden),
            ("linear_add down", self.hidden, self.dim),
            ("logits", self.dim, self.vocab),
        ]
        self.halves = [
            ("expert_gate_up", self.dim, 2 * self.hidden),
            ("expert_down_add", self.hidden, self.dim),
        ]

    def half(self, rows, inner, outer):
        return f"{rows} x {inner} -> {self.experts} x {outer}, top {self.top_k}"

    def norms(self):
        return [1, self.rows[-1] // 8, self.rows[-1]]

    def search(self, queries):
        return f"{queries} x {self.documents} x {self.dim}, top 10"

    def model(self):
        return [
            ("model decode", "batch 1"),
            ("model prefill", f"{self.tokens} tokens"),
            ("model embed", f"8 x {self.tokens // 8} tokens"),
        ]

    def all(self):
        names = [
            (op, f"{rows} x {inner} -> {outer}")
            for op, inner, outer in self.products
            for rows in self.rows
        ]
        for tokens in self.prefill:
            for op in ["attention causal", "attention bidirectional"]:
                names.append((op, f"T {tokens}, {self.attention}"))
        for batch in self.batches:
            for context in self.contexts:
                shape = f"batch {batch}, context {context}, {self.attention}"
                names.append(("attention decode", shape))
        for rows in self.expert_rows:
            names.append(("route", f"{rows} x {self.dim} -> {self.experts}"))
            for op, inner, outer in self.halves:
                names.append((op, self.half(rows, inner, outer)))
        most = self.rows[-1]
        names += [("rmsnorm", f"{rows} x {self.dim}") for rows in self.norms()]
        names += [("embed", f"{most} x {self.dim}"), ("pool", f"8 x {most // 8} x {self.dim}")]
        for op in ["sample greedy", "sample top-k top-p"]:
            names += [(op, f"{rows} x {self.vocab}") for rows in [1, 32]]
        names += [("search", self.search(queries)) for queries in [1, 16]]
        return names + [("model load", None), ("model start to first token", None)] + self.model()
