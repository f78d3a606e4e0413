"""Adapters and the PEFT library, both ways.

Given as JSON on stdin: `base`, a checkpoint in f32; `adapter`, one that gritlm has written; `tokens`; and `output`, a new
folder. Writes adapters of PEFT's own to it, and to `logits.json` the logits of the base with each adapter: `ours` and
the names of the new ones.
"""

import json
import pathlib
import sys
import warnings

import peft
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.simplefilter("ignore")
given = json.load(sys.stdin)
output = pathlib.Path(given["output"])
ids = torch.tensor([given["tokens"]])
CONFIGS = dict(
    some=dict(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"]),
    all_linear=dict(r=2, target_modules="all-linear", use_rslora=True),
    one_layer=dict(r=4, target_modules=["v_proj", "o_proj"], layers_to_transform=[1], lora_dropout=0.1),
)


@torch.no_grad()
def logits(model):
    return model.eval()(ids).logits[0].flatten().tolist()


def base():
    return AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32)


found = dict(ours=logits(peft.PeftModel.from_pretrained(base(), given["adapter"])))
for name, config in CONFIGS.items():
    torch.manual_seed(0)
    model = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for parameter, values in model.named_parameters():
        if "lora_B" in parameter:  # zero at the start
            torch.nn.init.normal_(values, std=0.1)
    model.save_pretrained(output / name)
    found[name] = logits(model)
json.dump(found, open(output / "logits.json", "w"))
print(f"PEFT {peft.__version__}: {len(found)} adapters")
