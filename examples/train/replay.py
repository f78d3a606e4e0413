#!/usr/bin/env python3
"""Asks a model the questions of a list and keeps its answers as training data.

    gritlm serve --model BASE --port 8080 &
    python3 replay.py http://127.0.0.1:8080 RECORDS.jsonl conversations.jsonl --count 3000

A model that learns to embed forgets how it answered; its own answers, learned along, keep it from that. RECORDS are
those of packages.py: name, short, long. Greedy answers of at most 96 tokens; those that are cut off are left out.
Only Python's standard library is needed.
"""

import argparse, concurrent.futures, gzip, json, pathlib, random, urllib.request

QUESTIONS = [
    "Explain in two sentences what this software is for.\n\n{text}",
    "Who would use this program, and for what?\n\n{text}",
    "Summarize this description in one sentence.\n\n{text}",
    "Name three words that describe this software.\n\n{text}",
    "Is this a library, a program or data? Answer in one sentence.\n\n{text}",
    "What could somebody do with {name}, {short}?",
    "Write one friendly sentence that recommends {name}: {short}.",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("records", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    file = gzip.open(args.records, "rt") if args.records.suffix == ".gz" else open(args.records)
    rng = random.Random(args.seed)
    model = json.load(urllib.request.urlopen(args.server + "/v1/models"))["data"][0]["id"]
    records = rng.sample([json.loads(line) for line in file], args.count)

    def ask(record):
        question = QUESTIONS[record["n"] % len(QUESTIONS)].format(text=record["long"][:240], **record)
        body = dict(model=model, temperature=0, max_tokens=96, messages=[dict(role="user", content=question)])
        request = urllib.request.Request(args.server + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
        choice = json.load(urllib.request.urlopen(request))["choices"][0]
        answer = choice["message"]["content"].strip()
        return dict(text=[question, answer]) if choice["finish_reason"] == "stop" and answer else None

    kept = 0
    with concurrent.futures.ThreadPoolExecutor(16) as pool, open(args.output, "w") as output:
        for line in pool.map(ask, [dict(record, n=n) for n, record in enumerate(records)]):
            if line:
                kept += 1
                print(json.dumps(line, ensure_ascii=False), file=output, flush=True)
    print(f"{args.output}: {kept} of {args.count} answers")


if __name__ == "__main__":
    main()
