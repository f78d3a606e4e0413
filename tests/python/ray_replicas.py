"""examples/ray_serve.py: two replicas, of which one is killed under load; no answer may be wrong.
On stdin: `long`, whether the load is ten times as much."""

import base64
import http.client
import json
import os
import signal
import socket
import threading
import time
from importlib.metadata import version

import numpy as np

import gritlm_rs
from checks import check, done, given
from cluster import Program, folder, texts

REQUESTS = 4000 if given["long"] else 400
CLIENTS = 16
INSTRUCTION = "Find the passage."

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def call(path, body=None):
    """Returns status and body of an answer; a connection that is lost has the status 0."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"content-type": "application/json"}
        method = "GET" if body is None else "POST"
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


class Load:
    """Clients that ask the same questions over and over and compare the answers."""

    def __init__(self, engine):
        self.texts = texts(40)
        self.vectors = engine.embed(self.texts, instruction=INSTRUCTION)
        self.prompts = [f"Describe the package {text.split()[1]}." for text in self.texts[:10]]
        self.answers = [engine.generate(p, max_tokens=16).text() for p in self.prompts]
        self.lock = threading.Lock()
        self.left, self.right, self.wrong = REQUESTS, 0, []
        self.failed = {}

    def client(self):
        while True:
            with self.lock:
                if self.left == 0:
                    return
                self.left -= 1
                number = self.left
            begin = time.monotonic()
            while not self.asked(number) and time.monotonic() < begin + 60:
                time.sleep(0.1)

    def asked(self, number):
        """Asks one question; returns whether there was an answer, right or wrong."""
        if number % 4:
            chosen = [number % 40, (number * 7) % 40]
            body = {"input": [self.texts[i] for i in chosen], "instruction": INSTRUCTION}
            status, answer = call("/v1/embeddings", body | {"encoding_format": "base64"})
        else:
            messages = [{"role": "user", "content": self.prompts[number % 10]}]
            status, answer = call("/v1/chat/completions", {"messages": messages, "max_tokens": 16})
        if status != 200:
            with self.lock:
                self.failed[status] = self.failed.get(status, 0) + 1
            return False
        found = json.loads(answer)
        if number % 4:
            vectors = [base64.b64decode(one["embedding"]) for one in found["data"]]
            array = np.array([np.frombuffer(vector, "<f4") for vector in vectors])
            right = array.shape == (2, self.vectors.shape[1])
            right = right and np.abs(array - self.vectors[chosen]).max() <= 1e-6
        else:
            right = found["choices"][0]["message"]["content"] == self.answers[number % 10]
        with self.lock:
            self.right += bool(right)
            if not right:
                self.wrong.append(number)
        return True


def forms(engine):
    """The other forms of requests and answers, and what is refused."""
    status, answer = call("/v1/embeddings", {"input": "a text", "dimensions": 8})
    check("dimensions", (status, len(json.loads(answer)["data"][0]["embedding"])), (200, 8))
    status, answer = call("/v1/embeddings", {"input": ["a text", ""]})
    check("empty", (status, b"text 1" in answer), (400, True))
    check("no input", call("/v1/embeddings", {"model": "demo"})[0], 422)
    messages = [{"role": "user", "content": "Describe the package gnuplot."}]
    status, answer = call(
        "/v1/chat/completions", {"messages": messages, "max_tokens": 12, "stream": True}
    )
    lines = [line.removeprefix("data: ") for line in answer.decode().split("\n\n") if line]
    check("streamed", (status, lines[-1]), (200, "[DONE]"))
    pieces = [json.loads(line)["choices"][0] for line in lines[:-1]]
    text = engine.generate(messages, max_tokens=12).text()
    check("pieces", "".join(piece["delta"]["content"] for piece in pieces), text)
    check("finish", pieces[-1]["finish_reason"], "length")


def drained(program):
    """After SIGTERM an answer that is under way is still given."""
    messages = [{"role": "user", "content": "Go on."}]
    body = {"messages": messages, "max_tokens": 1000, "temperature": 2.0, "seed": 1}
    found = []
    client = threading.Thread(target=lambda: found.append(call("/v1/chat/completions", body)))
    client.start()
    time.sleep(0.3)
    program.child.terminate()
    check("still under way", client.is_alive(), True)
    begin = time.monotonic()
    client.join()
    check("under way", found[0][0], 200)
    check("stopped", program.wait(60), 0)
    return time.monotonic() - begin


with folder() as place:
    engine = gritlm_rs.Engine("demo", device="cpu")
    options = ["--least", 2, "--most", 2, "--threads", 1, "--device", "cpu", "--port", port]
    program = Program("ray_serve.py", *options, log=place / "serve.log")
    replicas = lambda: program.below("ray::ServeReplica")
    program.until("two replicas", lambda: len(replicas()) == 2 and call("/health")[0] == 200)
    forms(engine)
    load = Load(engine)
    clients = [threading.Thread(target=load.client) for _ in range(CLIENTS)]
    begin = time.monotonic()
    for client in clients:
        client.start()
    program.until("a third", lambda: load.right + len(load.wrong) >= REQUESTS // 3, 300)
    before = replicas()
    os.kill(before[0], signal.SIGKILL)
    killed = time.monotonic()
    program.until("another replica", lambda: len(set(replicas()) - set(before[:1])) == 2)
    again = time.monotonic() - killed
    for client in clients:
        client.join()
    seconds = time.monotonic() - begin
    check("wrong", load.wrong, [])
    check("right", load.right, REQUESTS)
    drain = drained(program)
    failed = ", ".join(f"{count} with status {status}" for status, count in load.failed.items())
    print(f"{REQUESTS} requests of {CLIENTS} clients in {seconds:.1f} s, a replica killed after a "
          f"third: all right; asked again: {failed or 'none'}; another replica's process after "
          f"{again:.1f} s; stopped within {drain:.1f} s")  # fmt: skip
done(f"ray serve {version('ray')}")
