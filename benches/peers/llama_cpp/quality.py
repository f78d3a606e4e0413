"""What llama.cpp computes on GGUF files of `benches/quality.rs`: loss, and greedy tokens.

    pip install llama-cpp-python
    cargo bench --bench quality -- --keep DIR
    python benches/peers/llama_cpp/quality.py --texts DIR/texts.json DIR/*.gguf

For each file: nats per token of the same token ids, and the greedy tokens that follow the first
half of some texts, with the least gap of the two best logits up to each. llama.cpp rounds
activations to 8 bits for quantised weights, so tokens may differ where the gap is small.
"""

import argparse
import json
import math

import llama_cpp
import numpy as np

PROMPTS, TOKENS = 20, 24


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", help="a file for the greedy tokens, as JSON")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    texts = [text for text in json.load(open(args.texts)) if len(text) > 1]
    answers = {}
    for file in args.files:
        model = llama_cpp.Llama(
            file, n_ctx=512, n_threads=args.threads, logits_all=True, verbose=False
        )
        total, count = 0.0, 0
        for text in texts:
            logits = run(model, text)
            top = logits.max(axis=1, keepdims=True)
            log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
            for row, token in enumerate(text[1:]):
                total += log_sum[row] - logits[row, token]
                count += 1
        answers[file] = [greedy(model, text[: max(2, len(text) // 2)]) for text in texts[:PROMPTS]]
        print(f"{file}: loss {total / count:.4f}", flush=True)
    if args.output:
        json.dump(answers, open(args.output, "w"))


def run(model, tokens):
    """Returns the logits of all tokens in f64, `(tokens, vocab)`."""
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)], dtype=np.float64)


def greedy(model, prompt):
    """Returns the prompt, the most likely tokens one after the other, and each one's lead."""
    tokens, leads = list(prompt), []
    logits = run(model, tokens)[-1]
    for _ in range(TOKENS):
        second, first = np.partition(logits, -2)[-2:]
        leads.append(float(first - second))
        tokens.append(int(logits.argmax()))
        model.eval(tokens[-1:])
        logits = np.array(model.scores[len(tokens) - 1], dtype=np.float64)
    assert math.isfinite(leads[0])
    return {"prompt": prompt, "tokens": tokens[len(prompt) :], "leads": leads}


if __name__ == "__main__":
    main()
