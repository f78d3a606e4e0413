"""lm-eval's `local-completions` and `local-chat-completions` against servers, beside transformers
on the same folders.

Reads {servers: [{url, model, folder, writes}]} on stdin; `folder` is the model's, `writes` says
that what it generates is text and not any bytes. Prints what was checked.
"""

import json
import os
import pathlib
import shutil
import tempfile
from importlib.metadata import version

from checks import check, done, given

scratch = tempfile.TemporaryDirectory()
for name in ("HF_HOME", "XDG_CACHE_HOME"):
    os.environ[name] = scratch.name + "/cache"
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ[name] = "1"
# The tasks name their files relative to it.
tasks = pathlib.Path(__file__).resolve().parent / "tasks"
os.chdir(tasks)

import jinja2  # noqa: E402
import lm_eval  # noqa: E402
import requests  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
BOS, EOS = 1, 2
manager = TaskManager(include_path=str(tasks), include_defaults=False)


def documents(name):
    return [json.loads(line) for line in (tasks / name).read_text().splitlines()]


choices, texts = documents("choice.jsonl"), [doc["text"] for doc in documents("texts.jsonl")]
# Those of the task.
stops, tokens = ["\nSection", ".org"], 24


class Reference:
    """transformers on a folder, in f64: in f32 it is itself up to 2e-4 off on the demo model."""

    def __init__(self, folder):
        self.folder = folder
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.float64)
        self.tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")

    def published(self):
        """The tokenizer in a folder with the file that published ones have beside it."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=scratch.name))
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(pathlib.Path(self.folder, name), folder)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        names["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        return str(folder)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits[0]

    def likelihood(self, context, continuation):
        """The log-probability of the continuation, and whether greedy decoding gives it."""
        if context == "":
            ids, start = [BOS] + self.encode(continuation), 1
        else:
            # Spaces at the end of the context belong to what comes.
            ids, start = self.encode(context + continuation), len(self.encode(context.rstrip()))
        all = self.logits(ids)[start - 1 : -1]
        chosen = torch.tensor(ids[start:])[:, None]
        found = torch.log_softmax(all, -1).gather(-1, chosen).sum().item()
        return found, bool((all.argmax(-1) == chosen[:, 0]).all())

    def greedy(self, ids):
        """What the model goes on with, up to a stop."""
        before, text = self.tokenizer.decode(ids), ""
        for _ in range(tokens):
            following = int(self.logits(ids)[-1].argmax())
            if following == EOS:
                break
            ids = ids + [following]
            text = self.tokenizer.decode(ids).removeprefix(before)
            if any(stop in text for stop in stops):
                return text[: min(text.find(stop) for stop in stops if stop in text)]
        return text


def run(server, model, path, names, **settings):
    """What lm-eval makes of these tasks: for each task and document its requests and answers."""
    base = {"model": server["model"], "base_url": server["url"] + path, "max_length": 512}
    results = lm_eval.simple_evaluate(
        model=model,
        # A failure is the server's, and is no better the second time.
        model_args=base | {"max_retries": 1} | settings,
        tasks=names,
        task_manager=manager,
        bootstrap_iters=0,
        apply_chat_template=path.endswith("chat/completions"),
    )
    found = {}
    for name in names:
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        found[name] = [list(zip(s["arguments"], s["resps"], strict=True)) for s in samples]
    return found, results["results"]


def check_likelihoods(what, reference, found, results):
    """Every log-likelihood within 1e-4 of transformers', and the score that follows from them."""
    worst, right = 0.0, []
    for sample, doc in zip(found["gritlm_choice"], choices, strict=True):
        likely = []
        check(f"{what}: choices", len(sample), len(doc["choices"]))
        for ((context, continuation), [(got, is_greedy)]), choice in zip(sample, doc["choices"]):
            where = f"{what}: {context!r} {continuation!r}"
            check(where, (context, continuation), (doc["context"], choice))
            expected, greedily = reference.likelihood(context, continuation)
            worst = max(worst, abs(got - expected))
            check(f"{where}: {got} near {expected}", abs(got - expected) < 1e-4, True)
            check(f"{where}: greedy", is_greedy, greedily)
            likely.append(expected)
        right.append(likely.index(max(likely)) == doc["answer"])
    check(f"{what}: acc", results["gritlm_choice"]["acc,none"], sum(right) / len(right))
    for sample, text in zip(found["gritlm_perplexity"], texts, strict=True):
        [((asked,), [got])] = sample
        expected, _ = reference.likelihood("", text)
        worst = max(worst, abs(got - expected))
        check(f"{what}: {text!r}", asked, text)
        check(f"{what}: {text!r}: {got} near {expected}", abs(got - expected) < 1e-4, True)
    print(f"{what}: log-likelihoods at most {worst:.1e} off")


def check_answers(what, found, answers):
    for text, expected, [(_, [got])] in zip(texts, answers, found, strict=True):
        check(f"{what}: {text!r}", got, expected)


def evaluate(server):
    reference = Reference(server["folder"])
    likelihoods = ["gritlm_choice", "gritlm_perplexity"]
    all = likelihoods + ["gritlm_continue"] * server["writes"]
    answers = [reference.greedy(reference.encode(text)) for text in texts * server["writes"]]
    completions = ("local-completions", "/v1/completions")

    def compare(how, names, **settings):
        what = f"{server['model']}, {how}"
        found, results = run(server, *completions, names, **settings)
        check_likelihoods(what, reference, found, results)
        if "gritlm_continue" in names:
            check_answers(what, found["gritlm_continue"], answers)

    # What it finds by itself: the server's.
    compare("remote tokenizer", all)
    # The folder's, as users name it; several prompts in a request, then several requests at once.
    local = {"tokenizer_backend": "huggingface", "tokenizer": reference.published()}
    compare("Hugging Face's tokenizer, batches", all, batch_size=4, **local)
    compare("Hugging Face's tokenizer, at once", likelihoods, num_concurrent=4, **local)
    if server["writes"]:
        found, _ = run(server, "local-chat-completions", "/v1/chat/completions", ["gritlm_chat"])
        prompts = (f"<|user|>\n{text}\n<|assistant|>\n" for text in texts)
        answers = [reference.greedy([BOS] + reference.encode(prompt)).strip() for prompt in prompts]
        check_answers(f"{server['model']}, chat", found["gritlm_chat"], answers)
        check("some end at a stop, some at the limit", len(set(map(len, answers))) > 2, True)


def check_template(server):
    """The template of `/tokenizer_info` makes the prompts of chats."""

    def post(path, **body):
        answer = requests.post(server["url"] + path, json=body)
        answer.raise_for_status()
        return answer.json()

    info = requests.get(server["url"] + "/tokenizer_info").json()
    template = jinja2.Environment().from_string(info["chat_template"])
    system, user, other = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Describe the package pdfgrep."},
        {"role": "user", "content": "In which section is it?"},
    )
    answer = {"role": "assistant", "content": "It searches PDFs."}
    for talk in ([user], [system, user], [user, answer, other], [user, answer, system, other, user]):
        prompt = template.render(messages=talk, add_generation_prompt=True, **info)
        ids = post("/tokenize", prompt=prompt, add_special_tokens=False)["tokens"]
        greedy = {"temperature": 0, "max_tokens": 8}
        chat = post("/v1/chat/completions", messages=talk, **greedy)
        text = post("/v1/completions", prompt=ids, **greedy)
        what = f"template, {len(talk)} messages"
        check(f"{what}, tokens", len(ids), chat["usage"]["prompt_tokens"])
        expected = chat["choices"][0]["message"]["content"]
        check(what, text["choices"][0]["text"].removeprefix(" "), expected)


for server in given["servers"]:
    evaluate(server)
    check_template(server)
done(f"lm-eval {version('lm-eval')}, transformers {transformers.__version__}")
