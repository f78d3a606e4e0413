"""lm-eval on a model in Python, beside the same model in a server.

Reads {url, model, folder} on stdin: a server's address and its model's name, and the folder of that
model. Prints what was checked. The server's side is held against transformers by lm_eval_client.py.
"""

import math
import os
import pathlib
import subprocess
import sys
import tempfile
from importlib.metadata import version

from checks import check, done, given

scratch = tempfile.TemporaryDirectory()
for name in ("HF_HOME", "XDG_CACHE_HOME"):
    os.environ[name] = scratch.name + "/cache"
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ[name] = "1"
# The tasks name their files relative to it.
tasks = pathlib.Path(__file__).resolve().parents[1] / "clients" / "tasks"
os.chdir(tasks)

import lm_eval  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import gritlm_rs  # noqa: E402
from gritlm_rs.evaluate.lm_eval import GritLMEval  # noqa: E402

manager = TaskManager(include_path=str(tasks), include_defaults=False)
NAMES = ["gritlm_choice", "gritlm_perplexity", "gritlm_continue"]


def run(model, names, **settings):
    """What lm-eval makes of tasks: their scores, and of each document its requests and answers."""
    results = lm_eval.simple_evaluate(
        model, tasks=names, task_manager=manager, bootstrap_iters=0, **settings
    )
    found = {}
    for name in names:
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        found[name] = [list(zip(s["arguments"], s["resps"], strict=True)) for s in samples]
    return found, results["results"]


def served(path, kind, names, **settings):
    how = {"model": given["model"], "base_url": given["url"] + path, "max_length": 512}
    return run(kind, names, model_args=how | {"max_retries": 1, "num_concurrent": 4}, **settings)


def numbers(answer):
    """A log-likelihood, with whether it is the greedy one or without."""
    return answer if isinstance(answer, (tuple, list)) else (answer, None)


def compare(what, here, there):
    (found, scores), (expected, their_scores) = here, there
    count, likelihoods = 0, 0
    for name, documents in expected.items():
        check(f"{what}, {name}: documents", len(found[name]), len(documents))
        for mine, theirs in zip(found[name], documents, strict=True):
            for (asked, [got]), (their_ask, [answer]) in zip(mine, theirs, strict=True):
                count += 1
                where = f"{what}, {name}: {asked!r}"
                if isinstance(answer, str):
                    check(where, got, answer)
                    continue
                check(where, asked, their_ask)
                likelihoods += 1
                (got, greedy), (value, is_greedy) = numbers(got), numbers(answer)
                check(f"{where}: {got} near {value}", abs(got - value) < 1e-4, True)
                check(f"{where}: greedy", greedy, is_greedy)
        for score, value in their_scores[name].items():
            got = scores[name][score]
            if isinstance(value, float) and not math.isnan(value):
                check(f"{what}, {name}: {score} {got} near {value}", abs(got / value - 1) < 1e-5
                      if value else got == 0, True)  # fmt: skip
            elif isinstance(value, str):
                check(f"{what}, {name}: {score}", got, value)
    print(f"{what}: {count} requests, {likelihoods} of them log-likelihoods")
    check(f"{what}: some", count >= 10, True)


heavy = "print([name for name in ('lm_eval', 'mteb', 'torch') if name in sys.modules])"
code = f"import sys; import gritlm_rs; import gritlm_rs.evaluate; {heavy}"
found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
check("what an import loads", found.stdout.strip(), "[]")

engine = gritlm_rs.Engine(given["folder"], device="cpu")
model = GritLMEval(engine)
there = served("/v1/completions", "local-completions", NAMES)
compare("texts", run(model, NAMES), there)
by_name = run("gritlm", NAMES, model_args={"model": given["folder"], "device": "cpu"})
compare("by name", by_name, there)

chats = ["gritlm_chat"]
there = served("/v1/chat/completions", "local-chat-completions", chats, apply_chat_template=True)
here = run(model, chats, apply_chat_template=True)
# A server's message leaves out the space that an answer may begin with.
for document in here[0]["gritlm_chat"]:
    for _, answers in document:
        answers[:] = [text.removeprefix(" ") for text in answers]
compare("chats", here, there)


def asked(kind, *requests):
    return [Instance(kind, {}, one, 0) for one in requests]


# What no task above has: texts that are longer than the model sees, in windows, one beside others.
words = " ".join(f"package {n} captures packets" for n in range(60))
short = GritLMEval(engine, max_length=64)
ids = engine.tokenize(words, special=False)
check("long enough", len(ids) > 200, True)
start, expected = model.prefix_token_id, 0.0
whole = [start, *ids]
for first in range(1, len(whole), 63):
    # The last window is filled up with context that is not scored again.
    last = min(first + 63, len(whole))
    answer = engine.generate(whole[max(last - 64, 0) : last], max_tokens=0, prompt_logprobs=0)
    answer.text()
    expected += sum(score for _, score, _ in answer.prompt_logprobs[first - last :])
rolling = asked("loglikelihood_rolling", (words,), ("x",), ("",))
[got, one, none] = short.loglikelihood_rolling(rolling)
check(f"windows: {got} near {expected}", abs(got - expected) < 1e-3, True)
check("beside others", [one, none], [model.loglikelihood_rolling(rolling)[1], 0.0])
# More requests than are under way at a time, in order.
cuts = [20 + n % 40 for n in range(700)]
many = asked("loglikelihood", *[(words[:cut], words[cut:][:9]) for cut in cuts])
found = model.loglikelihood(many)
check("many", found[:40] * 17, found[:680])
check("they differ", len(set(found[:40])) > 20, True)
context = words + " The context's beginning is lost"
cut = engine.detokenize(engine.tokenize(context, special=False)[-40:])
how = {"until": ["."], "max_gen_toks": 24, "do_sample": False}
answers = short.generate_until(asked("generate_until", (context, how), (cut, how)))
check("a long context", answers[0], answers[1])
drawn = {"until": [""], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
several = asked("generate_until", *[("A chess program", drawn)] * 8)
answers = model.generate_until(several)
check("repeats differ", len(set(answers)) > 4, True)
check("again", model.generate_until(several), answers)
begun = model.apply_chat_template(
    [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "It is"}], False
)
check("begun", begun, "<s><|user|>\nHi.\n<|assistant|>\nIt is")
bos = GritLMEval(engine, add_bos_token=True)
check("<s>", bos.tok_encode("x"), [start, *model.tok_encode("x")])
check("<s> once", bos.tok_encode(begun), model.tok_encode(begun))
check("<s> of a template", model.tok_encode(begun)[0], start)
for unknown in ({"num_beams": 4}, {"typical_p": 0.5}):
    try:
        model.generate_until(asked("generate_until", ("x", unknown)))
        check(f"{unknown}", "an error", "none")
    except ValueError as error:
        check(f"{unknown}", next(iter(unknown)) in str(error), True)
done(f"lm-eval {version('lm_eval')}")
