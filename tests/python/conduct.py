"""How `gritlm_rs` behaves: exceptions, Ctrl-C, threads and tasks at once, what Python costs.

Reads what engine.py reads. Prints what was checked.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time

import numpy as np
from checks import check, done, given
from gritlm_rs import Engine, GritLM, GritLMError, Store, gritlm_instruction, train

engine = Engine(given["model"], device="cpu")
texts, prompt = given["texts"], given["prompt"]
with open(given["corpus"]) as file:
    rows = [json.loads(line)["text"] for line in file]
# Short texts, as many as are asked for, no two alike.
short = lambda count: [f"{rows[i % len(rows)][:60]} {i}" for i in range(count)]  # noqa: E731


def raises(what, kind, call, *words):
    try:
        call()
    except kind as error:
        text = str(error)
        check(f"{what}: one line", "\n" in text, False)
        for word in words:
            check(f"{what}: {text}: {word}", word in text, True)
    else:
        sys.exit(f"{what}: no exception")


raises("no model", GritLMError, lambda: Engine("/nowhere"), "/nowhere")
raises("no device", ValueError, lambda: Engine("demo", device="tpu"), "device", "tpu")
raises("no such option", TypeError, lambda: Engine("demo", devise="cpu"), "devise")
raises("format", ValueError, lambda: Engine("demo", weights="q9"), "weights", "q8_0", "q9")
raises("no pooling", ValueError, lambda: engine.embed(texts, pooling="max"), "pooling", "max")
raises("empty text", ValueError, lambda: engine.embed(["a", ""]), "text 1")
many = [*short(5000), "", "a"]
raises("empty, far on", ValueError, lambda: engine.embed(many), "text 5000")
raises("one text", TypeError, lambda: engine.embed("a"), "list")
raises("no text", TypeError, lambda: engine.embed(["a", 7]), "str")
raises("long", ValueError, lambda: engine.embed(["a"], max_length=2), "max_length")
raises("temperature", ValueError, lambda: engine.generate("a", temperature=-1), "temperature")
raises("schema", ValueError, lambda: engine.generate("a", schema="{"), "schema")
raises("token", ValueError, lambda: engine.generate([1, 1 << 20]), "1048576")
raises("positions", ValueError, lambda: engine.generate("chess " * 3000), "positions")
raises("role", ValueError, lambda: engine.generate([{"role": "x", "content": "a"}]), "role")
raises("deadline", GritLMError, lambda: engine.generate("a", timeout=0).text(), "deadline")
raises("no store", GritLMError, lambda: Store(engine, "/nowhere").search("a"), "/nowhere")
raises(
    "no data",
    GritLMError,
    lambda: train("demo", "/nowhere", "/tmp/none", progress=False),
    "/nowhere",
)

# A fork has no threads to compute with; it says so, and does not wait for ever.
for call in (lambda: engine.embed(texts), lambda: Engine(given["model"], device="cpu")):
    child = os.fork()
    if child == 0:
        try:
            call()
        except GritLMError as error:
            os._exit(0 if "spawn" in str(error) and "\n" not in str(error) else 1)
        os._exit(2)
    check("fork", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)

# Cancelling: an answer that is dropped leaves the batch.
answer = engine.generate(prompt, max_tokens=1500, ignore_eos=True)
next(answer)
answer.cancel()
del answer
until = time.monotonic() + 20
while engine.stats()["running"] and time.monotonic() < until:
    time.sleep(0.01)
check("dropped", engine.stats()["running"], 0)


# Ctrl-C ends a call, and the engine goes on.
def interrupted(what, call):
    pressed = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    pressed.start()
    try:
        call()
    except KeyboardInterrupt:
        check(
            f"{what}: the engine goes on",
            engine.generate(prompt, max_tokens=24).text(),
            given["answer"],
        )
    else:
        sys.exit(f"{what}: not interrupted")


interrupted("embedding", lambda: engine.embed(short(50_000), progress=False))
forever = lambda: [
    engine.generate(prompt, max_tokens=1800, ignore_eos=True).text() for _ in range(99)
]  # noqa: E731
interrupted("generating", forever)

# Threads at once: right answers, each its own, while another thread computes in Python.
alone = engine.embed(short(64))
wrong, ticks, over = [], [0], threading.Event()


def work(number):
    mine = short(64)[number * 4 : number * 4 + 4]
    for _ in range(10):
        found = engine.embed(mine)
        if not (found == alone[number * 4 : number * 4 + 4]).all():
            wrong.append(f"{number}: vectors")
        if engine.generate(prompt, max_tokens=8 + number).text() == "":
            wrong.append(f"{number}: nothing")
        made = engine.generate(prompt, max_tokens=4 + number)
        if [piece.token for piece in made] != given["tokens"][: 4 + number]:
            wrong.append(f"{number}: tokens")


def count():
    while not over.is_set():
        ticks[0] += 1
        time.sleep(0.001)


threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
counter = threading.Thread(target=count)
for thread in [*threads, counter]:
    thread.start()
for thread in threads:
    thread.join()
over.set()
counter.join()
check("threads", wrong, [])
check("the GIL is given up", ticks[0] > 50, True)


# Hundreds of tasks, more than any pool has threads.
async def tasks():
    async def one(number):
        answer = engine.generate(prompt, max_tokens=1 + number % 24)
        return await answer.text_async(), answer.tokens

    return await asyncio.gather(*(one(number) for number in range(300)))


for number, (_, tokens) in enumerate(asyncio.run(tasks())):
    check("task", tokens, given["tokens"][: 1 + number % 24])

# What Python costs, and memory: the calling thread's time beside that of all threads.
model = GritLM(engine)
many = short(given.get("many", 2000))
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
sizes, whole, own = [], 0.0, 0.0
for _ in range(4):
    all, caller = time.process_time(), time.thread_time()
    model.encode(many, instruction=gritlm_instruction(""), show_progress_bar=False)
    whole, own = whole + time.process_time() - all, own + time.thread_time() - caller
    sizes.append(resident() / 1e6)
share = own / whole
check(f"Python's share {share:.2%} below 3 %", share < 0.03, True)
grown = sizes[-1] - sizes[1]
check(f"memory grew by {grown:.1f} MB, at most 16", grown <= 16, True)
check("dtype", np.asarray(alone).dtype, np.dtype(np.float32))
print(
    f"{len(many)} texts four times: Python's share {share:.2%}, memory {sizes[1]:.0f} to {sizes[-1]:.0f} MB"
)
done("conduct")
