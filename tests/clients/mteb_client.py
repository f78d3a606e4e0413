"""mteb's wrapper of OpenAI's endpoints against a server, beside `gritlm embed` in the same tasks.

Reads {url, model, program, corpus} on stdin; `corpus` is a JSONL file of packages, each a
`text`. Prints what was checked.
"""

import json
import logging
import os
import re
import subprocess
import tempfile
from importlib.metadata import version

from checks import check, done, given

scratch = tempfile.TemporaryDirectory()
for name in ("HF_HOME", "MTEB_CACHE", "XDG_CACHE_HOME"):
    os.environ[name] = scratch.name
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ["TQDM_DISABLE"] = "1"

import mteb  # noqa: E402
import numpy as np  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import ModelMeta, OpenAIAPIEncodeWrapper  # noqa: E402
from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.types import PromptType  # noqa: E402

disable_progress_bars()
logging.disable(logging.WARNING)
INSTRUCTION = "Find the software package that fits the description."
# GritLM's prompt as users of a server without fields for instructions write it.
TEMPLATE = "<|user|>\n{instruction}\n<|embed|>\n"


def packages(count):
    """Of some packages the name, the summary, and the text without them."""
    with open(given["corpus"]) as file:
        texts = [json.loads(line)["text"] for line in file]
    found = [re.match(r"(\S+): ([^.]+)\. (.+)", text, re.DOTALL) for text in texts]
    return [match.groups() for match in found if match][:count]


rows = packages(60)
metadata = {
    "dataset": {"path": "local", "revision": "1"},
    "reference": None,
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "modalities": ["text"],
    "category": "t2t",
}


class Packages(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Packages",
        description="Finds packages by their summaries.",
        type="Retrieval",
        main_score="ndcg_at_10",
        prompt={"query": INSTRUCTION},
        **metadata,
    )

    def load_data(self, num_proc=None, **kwargs):
        queries = [{"id": f"q-{name}", "text": summary} for name, summary, _ in rows[:24]]
        corpus = [{"id": name, "title": "", "text": text} for name, _, text in rows]
        split = {
            "queries": Dataset.from_list(queries),
            "corpus": Dataset.from_list(corpus),
            "relevant_docs": {f"q-{name}": {name: 1} for name, _, _ in rows[:24]},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class Summaries(AbsTaskSTS):
    metadata = TaskMetadata(
        name="Summaries",
        description="Whether a summary and a text are of one package.",
        type="STS",
        main_score="cosine_spearman",
        prompt=INSTRUCTION,
        **metadata,
    )

    def load_data(self, num_proc=None, **kwargs):
        pairs = []
        for i, (_, summary, _) in enumerate(rows[:20]):
            # The package's own text, and another's.
            pairs += [(summary, rows[i][2], 5.0), (summary, rows[i + 20][2], i % 3)]
        columns = zip(*pairs, strict=True)
        names = ("sentence1", "sentence2", "score")
        columns = dict(zip(names, map(list, columns), strict=True))
        self.dataset = {"test": Dataset.from_dict(columns)}
        self.data_loaded = True


class Program(AbsEncoder):
    """`gritlm embed`, in a process for each call."""

    def __init__(self, instructions, apart):
        self.instructions, self.apart = instructions, apart
        name = "gritlm/embed"
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": name})

    def encode(self, inputs, *, task_metadata, prompt_type=None, **kwargs):
        texts = [text for batch in inputs for text in batch["text"]]
        command = [given["program"], "embed", "--model", given["model"], "--device", "cpu"]
        command += ["--format", "json"]
        if self.instructions and not (self.apart and prompt_type == PromptType.document):
            command += ["--instruction", INSTRUCTION]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        out = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
        vectors = [json.loads(line)["embedding"] for line in out.stdout.splitlines()]
        return np.array(vectors, dtype=np.float32)


def scores(model):
    found = mteb.evaluate(model, [Packages(), Summaries()], cache=None, show_progress_bar=False)
    of = {result.task_name: result.scores["test"][0] for result in found.task_results}
    keep = lambda scores: {k: v for k, v in scores.items() if isinstance(v, float)}  # noqa: E731
    return {name: keep(scores) for name, scores in of.items()}


def compare(what, served, embedded):
    """Every number that mteb reports of a task."""
    check(f"{what}: tasks", sorted(served), ["Packages", "Summaries"])
    for task, expected in embedded.items():
        got = served[task]
        check(f"{what}, {task}: numbers", sorted(got), sorted(expected))
        check(f"{what}, {task}: some", len(got) >= 8, True)
        for name, value in expected.items():
            near = abs(got[name] - value) < 1e-6 or got[name] != got[name] and value != value
            check(f"{what}, {task}: {name} {got[name]} {value}", near, True)
    ndcg, rank = served["Packages"]["ndcg_at_10"], served["Summaries"]["cosine_spearman"]
    print(f"{what}: retrieval {ndcg:.4f}, STS {rank:.4f}")
    return ndcg, rank


def served(**settings):
    where = {"endpoint_url": given["url"], "model_name": given["model"]}
    return scores(OpenAIAPIEncodeWrapper(**where, **settings))


plain = scores(Program(False, True))
found = compare("messages", served(), plain)
check("better than chance", found[0] > 0.3 and found[1] > 0.3, True)
compare("input", served(use_chat_template=False), plain)
apart = {
    "use_instructions": True,
    "instruction_template": TEMPLATE,
    "prompt_dict": {"query": INSTRUCTION, "STS": INSTRUCTION},
    "apply_instruction_to_documents": False,
}
program = scores(Program(True, True))
check("instructions matter", program != plain, True)
compare("messages, instructions", served(**apart), program)
compare("input, instructions", served(use_chat_template=False, **apart), program)
done(f"mteb {version('mteb')}")
