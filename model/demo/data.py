#!/usr/bin/env python3
"""Makes the texts that the demo model is trained on from descriptions of software packages.

    python3 data.py OUTPUT                                        from this machine's package index
    python3 data.py OUTPUT --records FILE.gz --heldout FILE.gz    from JSONL: name, short, long, section, homepage

Where the records come from and which are held out is decided as in `examples/train/packages.py`. OUTPUT/train and
OUTPUT/heldout get, each for two rounds of training (`first`, `second`),

* pairs.jsonl and pairs-SECTION.jsonl, half of the packages each: a package is found by its one-line summary, which its
  passage does not contain. The pairs of a batch come from one file, so those of a section are hard negatives;
* talks.jsonl: a question about a description that is read, in the words of `gritlm ask` or without them;
* documents.jsonl: a question about a description whose keys and values are cached;
* short.jsonl: the section by the summary, and a description by the name;
* texts.jsonl: half of the packages as a whole, every token of which is learned.

Half of the questions of the first round ask for the section, and three quarters of the second: it is what a text
implies and does not say. Only Python's standard library is needed, and the same records give the same bytes.
"""

import json, pathlib, random, sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples/train"))
import packages

FIND = packages.FIND
SECTION = "In which section would it be?"
SUMMARY = "What is it, in one line?"
# Behind text and question in a prompt of `gritlm ask`, by which of them comes first.
TEXT_FIRST = "Answer the prior query while optionally using the context prior to it"
QUESTION_FIRST = "Optionally using the prior context answer the query prior to it"


# Up to where a question asks for the section, and up to where for the summary, in each round.
ROUNDS = {"first": (0.5, 0.75), "second": (0.75, 0.88)}


def passage(r):
    return f"{r['name']}: {r['long']}"


def whole(r):
    homepage = f"\nHomepage: {r['homepage']}" if r["homepage"] else ""
    return f"{r['name']}: {r['short']}. {r['long']}\nSection: {packages.section(r)}{homepage}"


def describe(r):
    """The first sentence of the description and the section."""
    end = r["long"].find(". ")
    return f"{r['long'][:end + 1] if 0 < end < 240 else r['long'][:240]}\nSection: {packages.section(r)}"


def question(r, rng, shares):
    """A question about a package with its answer."""
    kind = rng.random()
    if kind < shares[0]:
        return SECTION, packages.section(r)
    if kind < shares[1]:
        return SUMMARY, f"{r['short']}."
    return f"Describe the package {r['name']}.", describe(r)


def read(r, asked, rng):
    """The user's turn that shows a package's description and asks about it."""
    return rng.choice([
        f"{passage(r)}\n\n{asked}",
        f"{passage(r)}\n\n{asked}\n\n{TEXT_FIRST}",
        f"{asked}\n\n{passage(r)}\n\n{QUESTION_FIRST}",
    ])


def write(folder, records, seed):
    for name, shares in ROUNDS.items():
        write_round(folder / name, records, seed, shares)


def write_round(folder, records, seed, shares):
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = random.Random(seed), {}

    def line(name, **keys):
        if name not in files:
            files[name] = open(folder / f"{name}.jsonl", "w")
        print(json.dumps(keys, ensure_ascii=False), file=files[name])

    for r in records:
        alone = rng.random() < 0.5
        line(f"pairs-{packages.section(r)}" if alone else "pairs", query=[FIND, r["short"]], pos=[passage(r)])
        asked, answer = question(r, rng, shares)
        line("talks", text=[read(r, asked, rng), answer])
        line("documents", document=passage(r), text=list(question(r, rng, shares)))
        if rng.random() < 0.5:
            line("texts", text=whole(r))
        elif rng.random() < 0.5:
            line("short", text=[f"{r['short']}\n\n{SECTION}", packages.section(r)])
        else:
            line("short", text=[f"Describe the package {r['name']}.", whole(r)])
    for file in files.values():
        file.close()


if __name__ == "__main__":
    packages.main(__doc__, write)
