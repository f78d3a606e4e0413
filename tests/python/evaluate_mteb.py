"""mteb on a model in Python, beside the same model in a server and in the original package.

Reads {url, model, folder, corpus} on stdin: a server's address and its model's name, the folder of
that model, with GritLM's attention, and a JSONL file of packages, each a `text`. Prints what was
checked.
"""

import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import warnings
from importlib.metadata import version

from checks import check, done, given

scratch = tempfile.TemporaryDirectory()
for name in ("HF_HOME", "MTEB_CACHE", "XDG_CACHE_HOME"):
    os.environ[name] = scratch.name
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ[name] = "1"

import gritlm as original  # noqa: E402
import mteb  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import ModelMeta, OpenAIAPIEncodeWrapper  # noqa: E402
from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.types import PromptType  # noqa: E402

import gritlm_rs  # noqa: E402
from gritlm_rs.evaluate import instruction_of, published  # noqa: E402
from gritlm_rs.evaluate.mteb import GritLMEncoder  # noqa: E402

torch.set_num_threads(1)
disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.disable(logging.WARNING)
OWN = "Find the software package that fits the description."
SIMILAR = "Retrieve semantically similar text."
DISTANCES = ("manhattan", "euclidean")
DUPLICATES = "Retrieve duplicate questions from AskUbuntu forum"


def packages():
    """Of some packages the name, the summary, and the text without them."""
    with open(given["corpus"]) as file:
        texts = [json.loads(line)["text"] for line in file]
    found = [re.match(r"(\S+): ([^.]+)\. (\S.*)", text, re.DOTALL) for text in texts]
    return [match.groups() for match in found if match][:60]


rows = packages()


def described(name, kind, score, prompt=None):
    return TaskMetadata(
        name=name,
        type=kind,
        main_score=score,
        prompt=prompt,
        description="Packages by their summaries.",
        dataset={"path": "local", "revision": "1"},
        reference=None,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        modalities=["text"],
        category="t2t",
    )


class Packages(AbsTaskRetrieval):
    """A task that the paper does not know, with a prompt of its own."""

    metadata = described("Packages", "Retrieval", "ndcg_at_10", {"query": OWN})
    candidates = None

    def load_data(self, num_proc=None, **kwargs):
        queries = [{"id": f"q-{name}", "text": summary} for name, summary, _ in rows[:24]]
        corpus = [{"id": name, "title": name, "text": text} for name, _, text in rows]
        ids = [name for name, _, _ in rows]
        ranked = {query["id"]: ids[i // 2 : i // 2 + 30] for i, query in enumerate(queries)}
        split = {
            "queries": Dataset.from_list(queries),
            "corpus": Dataset.from_list(corpus),
            "relevant_docs": {f"q-{name}": {name: 1} for name, _, _ in rows[:24]},
            "top_ranked": ranked if "Reranking" in self.metadata.type else None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class Duplicates(Packages):
    """A task of the paper's by its name: both sides have an instruction."""

    metadata = described("AskUbuntuDupQuestions", "Reranking", "map_at_1000")


class Summaries(AbsTaskSTS):
    """Likewise, and a later version of it."""

    metadata = described("STS12.v2", "STS", "cosine_spearman")

    def load_data(self, num_proc=None, **kwargs):
        pairs = []
        for i, (_, summary, _) in enumerate(rows[:20]):
            # The package's own text, and another's.
            pairs += [(summary, rows[i][2], 5.0), (summary, rows[i + 20][2], i % 3)]
        columns = zip(*pairs, strict=True)
        names = ("sentence1", "sentence2", "score")
        self.dataset = {"test": Dataset.from_dict(dict(zip(names, columns, strict=True)))}
        self.data_loaded = True


class Empty(Summaries):
    """Texts that are empty or blank."""

    def load_data(self, num_proc=None, **kwargs):
        super().load_data()
        columns = self.dataset["test"].to_dict()
        columns["sentence1"][3] = ""
        columns["sentence2"][7] = " \n"
        self.dataset = {"test": Dataset.from_dict(columns)}


TASKS = (Packages, Summaries, Duplicates)


class Original(AbsEncoder):
    """The original package as its evaluation called it; the tasks' instructions are by hand."""

    def __init__(self, folder, attn):
        how = {"torch_dtype": torch.float64, "device": "cpu", "normalized": False}
        self.model = original.GritLM(folder, attn=attn, **how)
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "gritlm/original"})

    def encode(self, inputs, *, task_metadata, prompt_type=None, **kwargs):
        query = {"Packages": OWN, "STS12.v2": SIMILAR, "AskUbuntuDupQuestions": DUPLICATES}
        instruction = query[task_metadata.name]
        if task_metadata.name == "Packages" and prompt_type == PromptType.document:
            instruction = ""
        texts = [text for batch in inputs for text in batch["text"]]
        front = f"<|user|>\n{instruction}\n<|embed|>\n" if instruction else "<|embed|>\n"
        return self.model.encode(texts, instruction=front, batch_size=16)


def scores(model, tasks=TASKS):
    tasks = [task() for task in tasks]
    found = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False)
    of = {result.task_name: result.scores["test"][0] for result in found.task_results}
    keep = lambda scores: {k: v for k, v in scores.items() if isinstance(v, float)}  # noqa: E731
    return {name: keep(scores) for name, scores in of.items()}


def compare(what, found, expected, bound):
    """Every number that mteb reports of a task."""
    check(f"{what}: tasks", sorted(found), sorted(expected))
    for task, numbers in expected.items():
        check(f"{what}, {task}: numbers", sorted(found[task]), sorted(numbers))
        check(f"{what}, {task}: some", len(numbers) >= 4, True)
        for name, value in numbers.items():
            got = found[task][name]
            near = abs(got - value) < bound or got != got and value != value
            check(f"{what}, {task}: {name} {got} {value}", near, True)


def main_scores(found):
    names = {task.metadata.name: task.metadata.main_score for task in TASKS}
    return {task: found[task][names[task]] for task in found}


def check_table():
    """The paper's instructions, as its table and its evaluation have them."""
    check("tasks", len(published()), 56)
    for task, side, expected in (
        ("NQ", "query", "Given a question, retrieve Wikipedia passages that answer the question"),
        ("NQ", "corpus", ""),
        ("STS22.v2", "query", SIMILAR),
        ("AskUbuntuDupQuestions", "corpus", DUPLICATES),
        (
            "CQADupstackAndroidRetrieval",
            "query",
            "Given a question, retrieve detailed question descriptions from Stackexchange that are "
            "duplicates to the given question",
        ),
        ("Packages", "query", None),
    ):
        check(f"{task}, {side}", instruction_of(task, side), expected)
    # Where mteb has a prompt for one of these tasks, it has the same words.
    known = 0
    for name, text in published().items():
        try:
            prompt = mteb.get_task(name).metadata.prompt
        except KeyError:
            continue
        query, theirs = (p["query"] if isinstance(p, dict) else p for p in (text, prompt))
        if theirs:
            check(f"{name}: words", query, theirs)
            known += 1
    check(f"tasks that mteb has words for: {known}", known > 30, True)


def check_sides(model):
    """Which side of which task has an instruction."""
    query, document = PromptType.query, PromptType.document
    both = {"query": OWN, "document": "Find: "}
    for name, kind, prompt, side, expected in (
        ("SciFact", "Retrieval", OWN, query, published()["SciFact"]["query"]),
        ("SciFact", "Retrieval", OWN, document, ""),
        ("SciDocsRR", "Reranking", None, document, published()["SciDocsRR"]["corpus"]),
        ("STS12", "STS", None, None, SIMILAR),
        ("Other", "Retrieval", OWN, query, OWN),
        ("Other", "Retrieval", OWN, document, ""),
        ("Other", "Retrieval", both, document, "Find"),
        ("Other", "Reranking", OWN, document, OWN),
        ("Other", "Classification", OWN, None, OWN),
    ):
        found = model.instruction(described(name, kind, "score", prompt), side)
        check(f"{name}, {kind}, {side}", found, expected)


def published_folder():
    """The folder as published ones are: with a config of its tokenizer."""
    copy = pathlib.Path(scratch.name, "model")
    shutil.copytree(given["folder"], copy)
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return str(copy)


check_table()
engine = gritlm_rs.Engine(given["folder"], device="cpu")
model = GritLMEncoder(engine)
check_sides(model)
found = scores(model)
print("here:", {task: round(score, 4) for task, score in main_scores(found).items()})
least = {"Packages": 0.3, "STS12.v2": 0.3, "AskUbuntuDupQuestions": 0.3}
above = {task: score > least[task] for task, score in main_scores(found).items()}
check("better than chance", above, dict.fromkeys(least, True))

by_name = GritLMEncoder(given["folder"], device="cpu")
check("by name", scores(by_name), found)
name = f"gritlm_rs/{pathlib.Path(given['folder']).name}"
check("its name", by_name.mteb_model_meta.name, name)
bare = scores(GritLMEncoder(engine, instructions={task: "" for task in found}))
check("instructions matter", [bare[task] != found[task] for task in found], [True] * 3)

served = OpenAIAPIEncodeWrapper(
    endpoint_url=given["url"],
    model_name=given["model"],
    use_instructions=True,
    instruction_template=lambda text, _: f"<|user|>\n{text}\n<|embed|>\n" if text else "",
    # mteb finds the other task's in its description.
    prompt_dict={"STS": SIMILAR, "Reranking": DUPLICATES},
)
# The server's vectors are normalised; distances, unlike the cosine, tell.
angles = [
    {
        task: {name: score for name, score in numbers.items() if not name.startswith(DISTANCES)}
        for task, numbers in side.items()
    }
    for side in (scores(served), found)
]
compare("server", *angles, 1e-6)

folder = published_folder()
causal = scores(GritLMEncoder(gritlm_rs.GritLM(engine, attn="cccc")))
check("attention matters", causal != found, True)
compare("original", scores(Original(folder, "cccc")), causal, 1e-6)

with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    empty = scores(GritLMEncoder(engine), [Empty])["STS12.v2"]
    said = [str(one.message) for one in warned if "empty" in str(one.message)]
expected = "STS12.v2: 1 of 40 texts are empty; their vectors are pooled over the whole prompt"
check("empty texts", said, [expected] * 2)
check("empty texts' scores", all(np.isfinite([*empty.values()])), True)
moved = abs(empty["cosine_spearman"] - found["STS12.v2"]["cosine_spearman"])
check("the other texts", moved < 0.2, True)
done(f"mteb {version('mteb')}")
