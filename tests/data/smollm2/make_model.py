"""Makes model.json: what transformers computes, in f32, on the dequantised weights of SmolLM2.

python make_model.py FOLDER_OF_THE_GGUF NAME.gguf, with transformers 5.24, torch 2.15, gguf 0.19
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

folder, name = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
cases = json.loads((Path(__file__).parent / "cases.json").read_text())
# Twenty texts of at least eight tokens, from all over the list.
rows = [row for row in cases["smollm"] if 8 <= len(row) <= 40]
rows = rows[:: len(rows) // 20][:20]
made = []
with torch.no_grad():
    for ids in rows:
        out = model.model(torch.tensor([ids])).last_hidden_state[0]
        tokens, gap, logits = list(ids), [], None
        for _ in range(24):
            logits = model(torch.tensor([tokens])).logits[0, -1]
            best = logits.topk(2)
            # Where the two best are as close as rounding, either may come first.
            gap.append(float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
        pooled = torch.nn.functional.normalize(out.mean(0), dim=0)
        made.append({
            "prompt": ids,
            "tokens": tokens[len(ids) :],
            "least_gap": min(gap),
            "embedding": [round(v, 7) for v in pooled[:48].tolist()],
            "logits": [round(v, 5) for v in model(torch.tensor([ids])).logits[0, -1, :48].tolist()],
        })
text = ",\n".join(json.dumps(case) for case in made)
(Path(__file__).parent / "model.json").write_text(f"[\n{text}\n]\n")
