"""Hugging Face transformers end to end: GritLM-7B's config, random weights, bf16, SDPA.

    python3 benches/peers/torch/model.py [--device cpu] [--quick] [--output FILE]

Three figures of `gritlm bench model --batch-tokens 4096`: 8 texts of 512 tokens, a prompt of 4096,
and decoding one sequence with 1024 tokens before it. Embedding runs the body without its head, with the causal mask that Hugging
Face's Mistral has (GritLM's own code makes it bidirectional, which costs up to as much again in
attention). Decoding is `model(token, past_key_values)` step by step, its host time included, as
anyone who calls it has it.
"""

import torch

from common import Rows, arguments, walls, why
from shapes import Sizes

args = arguments("Hugging Face transformers end to end, random weights")
device, quick = args.device, args.quick
PEER = "transformers, SDPA"


def build():
    from transformers import MistralConfig, MistralForCausalLM

    at = Sizes(quick)
    sizes = dict(hidden_size=at.dim, num_hidden_layers=at.layers,
                 num_attention_heads=at.heads, num_key_value_heads=at.kv_heads,
                 intermediate_size=at.hidden, vocab_size=at.vocab)
    config = MistralConfig(**sizes, max_position_embeddings=32768, sliding_window=4096,
                           rms_norm_eps=1e-5, attn_implementation="sdpa")
    # Made and filled on the device: 7 billion weights take too long anywhere else.
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def main():
    rows = Rows(args.output, device)
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("not measured: PyTorch finds no CUDA device")
    at = Sizes(quick)
    (batch, context), (texts, each), (prompts, length), names = (
        at.decodes, at.texts, at.prompts, at.model())
    try:
        import transformers

        torch.manual_seed(0)
        model = build()
        print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}", flush=True)
    except Exception as problem:
        for op, shape in names:
            rows.put(op=op, shape=shape, peer=PEER, not_measured=why(problem))
        return
    vocab = model.config.vocab_size
    used = sum(p.numel() for p in model.parameters()) - vocab * model.config.hidden_size
    body = used - vocab * model.config.hidden_size

    def ids(*shape):
        return torch.randint(0, vocab, shape, device=device)

    def embed():
        tokens = ids(texts, each)
        return lambda: model.model(input_ids=tokens, use_cache=False).last_hidden_state.mean(1)

    def prefill():
        prompt = ids(prompts, length)
        return lambda: model.lm_head(
            model.model(input_ids=prompt, use_cache=True).last_hidden_state[:, -1]).argmax(1)

    def decode():
        state = model(input_ids=ids(batch, context), use_cache=True)
        last = {"token": state.logits[:, -1:].argmax(2), "past": state.past_key_values}

        def run():
            state = model(input_ids=last["token"], past_key_values=last["past"], use_cache=True)
            last["token"] = state.logits[:, -1:].argmax(2)
            # The token is looked at, as by whoever streams it.
            last["token"].item()

        return run

    with torch.inference_mode():
        clock, passes = walls(device, 5), [(prefill, prompts * length), (embed, texts * each)]
        rows.measure(*names[0], PEER, decode, walls(device, 5, 2 if quick else 16), 2 * used,
                     2 * used * batch, tokens=batch)
        for (op, shape), (make, tokens) in zip(names[1:], passes):
            rows.measure(op, shape, PEER, make, clock, 2 * body, 2 * body * tokens, tokens=tokens)



main()
