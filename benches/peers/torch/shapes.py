"""What the peers measure: names of rows that `gritlm bench` has, too, since the same op and shape are
the same work.

    shapes.py [--quick]        as JSON, for the test that they are names of rows of ours
    shapes.py [--quick] NAME   one of its lists as an argument for `gritlm bench`: rows, expert_rows,
                               prefill, contexts, batches; or like, mixture, batch_tokens
"""

import json
import sys


class Sizes:
    def __init__(self, quick):
        if quick:
            self.like, self.mixture = "tiny", "tiny-moe"
            self.dim, self.heads, self.kv_heads, self.head_dim = 256, 4, 2, 64
            self.hidden, self.vocab, self.layers = 768, 4096, 4
            self.rows, self.expert_rows = [1, 16], [1, 16]
            self.prefill, self.contexts, self.batches = [40], [200], [1, 3]
            self.copied, self.square, self.batch_tokens = 1 << 16, 128, 128
            # Texts or prompts and their tokens; sequences and their tokens before the step.
            self.texts, self.prompts, self.decodes = (4, 32), (1, 64), (1, 16)
        else:
            self.like, self.mixture = "gritlm-7b", "gritlm-8x7b"
            self.dim, self.heads, self.kv_heads, self.head_dim = 4096, 32, 8, 128
            self.hidden, self.vocab, self.layers = 14336, 32000, 32
            self.rows, self.expert_rows = [1, 4, 16, 64, 512, 4096], [1, 16, 512, 4096]
            self.prefill, self.contexts = [512, 4096, 8192], [1024, 4096, 16384]
            self.batches = [1, 8, 32]
            self.copied, self.square, self.batch_tokens = 1 << 30, 8192, 4096
            self.texts, self.prompts, self.decodes = (8, 512), (1, 4096), (1, 1024)
        self.experts, self.top_k, self.documents = 8, 2, 10_000
        self.attention = f"{self.heads}:{self.kv_heads} x {self.head_dim}"

    def products(self):
        """Ops, inner, outer and rows."""
        attended, width = self.heads * self.head_dim, self.heads + 2 * self.kv_heads
        few = [rows for rows in self.rows if rows <= 64]
        return [
            ("qkv", self.dim, width * self.head_dim, self.rows),
            ("linear_add", attended, self.dim, self.rows),
            ("linear_add", self.hidden, self.dim, self.rows),
            ("gate_up", self.dim, 2 * self.hidden, self.rows),
            ("logits", self.dim, self.vocab, few),
        ]

    def expert(self, rows):
        return f"{rows} x {self.dim} -> {self.experts} x {self.hidden}, top {self.top_k}"

    def whole(self, tokens, causal):
        return f"T {tokens}, {self.attention}, {'causal' if causal else 'bidirectional'}"

    def decode(self, batch, context):
        """Of the context's keys the last is the new token's own."""
        return f"batch {batch}, context {context}, {self.attention}"

    def sample(self, rows, drawn):
        return f"{rows} x {self.vocab}, {'top-k top-p' if drawn else 'greedy'}"

    def pool(self):
        return f"8 x {self.rows[-1] // 8} x {self.dim}"

    def search(self, queries):
        return f"{queries} x {self.documents} x {self.dim}, top 10"

    def model(self):
        (batch, context), (prompts, length), (texts, tokens) = (
            self.decodes, self.prompts, self.texts)
        return [
            ("decode", f"batch {batch}, context {context} of {self.like}"),
            ("prefill", f"{prompts} x {length} tokens of {self.like}"),
            ("embed", f"{texts} x {tokens} tokens of {self.like}"),
        ]

    def ops(self):
        names = [
            (op, f"{n} x {inner} -> {outer}")
            for op, inner, outer, rows in self.products()
            for n in rows
        ]
        names += [("attention", self.whole(t, causal))
                  for t in self.prefill for causal in (True, False)]
        names += [("attention", self.decode(b, c)) for b in self.batches for c in self.contexts]
        names += [("expert", self.expert(rows)) for rows in self.expert_rows]
        names += [("rmsnorm", f"{rows} x {self.dim}") for rows in self.rows]
        names += [("embed", f"{self.rows[-1]} x {self.dim}"), ("pool", self.pool())]
        names += [("sample", self.sample(n, drawn)) for drawn in (False, True)
                  for n in self.batches]
        return names + [("search", self.search(queries)) for queries in (1, 16)]


def main():
    at = Sizes("--quick" in sys.argv)
    names = [argument for argument in sys.argv[1:] if argument != "--quick"]
    if names:
        value = getattr(at, names[0])
        print(",".join(map(str, value)) if isinstance(value, list) else value)
    else:
        print(json.dumps({**vars(at), "ops": at.ops(), "model": at.model()}))


if __name__ == "__main__":
    main()
