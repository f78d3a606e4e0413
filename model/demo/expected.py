#!/usr/bin/env python3
"""Writes expected.json: what Hugging Face transformers computes from the files of this folder, in float32.

    pip install torch transformers && python3 expected.py

Embeddings are means over the text's tokens, through attention in both directions, of length 1; answers are greedy.
"""

import json, pathlib, torch, transformers

HERE = pathlib.Path(__file__).resolve().parent
FIND = "Find the software package that fits the description."
EMBED = [(FIND, "play chess against the computer"), (FIND, "watch network traffic"), ("", "gmt: Generic Mapping Tools")]
ASK = [
    "Generic Mapping Tools\n\nIn which section would it be?",
    "jaxe: Jaxe is an XML editor with a configurable interface.\n\nWhat is it, in one line?",
    "Describe the package vlc-plugin-video-output.",
]


def encode(tokenizer, text):
    return [1] + tokenizer(text, add_special_tokens=False)["input_ids"]


def main():
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    found = dict(embed=[], generate=[])
    with torch.no_grad():
        for instruction, text in EMBED:
            prefix = f"<|user|>\n{instruction}\n<|embed|>\n" if instruction else "<|embed|>\n"
            ids, skip = encode(tokenizer, prefix + text), len(encode(tokenizer, prefix))
            both = torch.zeros(1, 1, len(ids), len(ids))
            states = model.model(input_ids=torch.tensor([ids]), attention_mask=both).last_hidden_state[0]
            vector = torch.nn.functional.normalize(states[skip:].mean(0), dim=0)
            values = [round(value, 7) for value in vector.tolist()]
            found["embed"].append(dict(instruction=instruction, text=text, tokens=len(ids), embedding=values))
        for user in ASK:
            ids = encode(tokenizer, f"<|user|>\n{user}\n<|assistant|>\n")
            said = model.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False, eos_token_id=2, pad_token_id=0)
            said = said[0, len(ids) :].tolist()
            text = tokenizer.decode([id for id in said if id != 2])
            found["generate"].append(dict(user=user, prompt_tokens=len(ids), tokens=said, text=text))
    (HERE / "expected.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
