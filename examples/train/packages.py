#!/usr/bin/env python3
"""Makes training data from descriptions of software packages.

    python3 packages.py OUTPUT                      from this machine's index (`apt-cache dumpavail`)
    python3 packages.py OUTPUT --records FILE.gz    from JSONL: name, short, long, section

A record of 29 is held out. OUTPUT/train and OUTPUT/heldout get

* pairs.jsonl: a package is found by its one-line summary, which its passage does not contain; the
  negative passage is the package of the same section that shares most words with it;
* conversations.jsonl: the summary or the section of a package, from its description;
* documents.jsonl: the same, but the description is a document that is embedded first.

Only Python's standard library is needed. The same records give the same bytes.
"""

import argparse, gzip, json, pathlib, random, re, subprocess
from collections import Counter, defaultdict

FIND = "Find the software package that fits the description."
SECTION = "In which section would it be?"
SUMMARY = "Say in one line what it is."


def dumpavail():
    """Records of this machine's package index with English descriptions."""
    text = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    for block in text.split("\n\n"):
        fields, key = {}, None
        for line in block.splitlines():
            if line.startswith(" ") and key:
                fields[key] += "\n" + line[1:]
            elif ":" in line:
                key, value = line.split(":", 1)
                fields[key] = value.strip()
        description = fields.get("Description-en") or fields.get("Description", "")
        short, _, long = description.partition("\n")
        long = re.sub(r"\s+", " ", long.replace("\n.\n", " ")).strip()
        if len(long) >= 80 and short:
            section, homepage = fields.get("Section", ""), fields.get("Homepage", "")
            yield dict(name=fields["Package"], short=short, long=cut(long), section=section, homepage=homepage)


def read(path):
    """Records of a JSONL file, compressed or not."""
    return [json.loads(line) for line in (gzip.open(path, "rt") if path.suffix == ".gz" else open(path))]


def records_of(args):
    """The records to train on and those that are held out, as the arguments say."""
    records = read(args.records) if args.records else list(dumpavail())
    if args.heldout:
        heldout = read(args.heldout)
        names = {record["name"] for record in heldout}
        return [record for record in records if record["name"] not in names], heldout
    random.Random(args.seed).shuffle(records)
    return records[len(records) // 29 :], records[: len(records) // 29]


def section(record):
    """The last part of a section: net for contrib/net."""
    return record["section"].rsplit("/", 1)[-1]


def cut(text, limit=420):
    """The first sentences within `limit` characters."""
    if len(text) <= limit:
        return text
    end = text.rfind(". ", 0, limit)
    return text[: end + 1] if end > 80 else text[:limit]


def words(record):
    return sorted(set(re.findall(r"[a-z]{3,}", (record["name"] + " " + record["long"]).lower())))


def neighbours(records, rng, others=40):
    """For each record another one of its section: of some, the one with most words in common."""
    own = {record["name"]: words(record) for record in records}
    sections = defaultdict(list)
    for record in records:
        sections[record["section"]].append(record)
    weight = {word: 1 / count for word, count in Counter(word for all in own.values() for word in all).items()}
    for record in records:
        known = set(own[record["name"]])
        # Added in the words' order: the same records give the same sums.
        common = lambda r: sum(weight[word] for word in own[r["name"]] if word in known)
        pool = [r for r in rng.sample(sections[record["section"]], min(others, len(sections[record["section"]])))
                if r["name"] != record["name"] and r["short"] != record["short"]] or [rng.choice(records)]
        yield record, max(pool, key=common)


def write(folder, records, seed):
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    passage = lambda r: f"{r['name']}: {r['long']}"
    with open(folder / "pairs.jsonl", "w") as pairs, open(folder / "conversations.jsonl", "w") as talks, \
            open(folder / "documents.jsonl", "w") as documents:
        for record, other in neighbours(records, rng):
            line = dict(query=[FIND, record["short"]], pos=[passage(record)], neg=[passage(other)])
            print(json.dumps(line, ensure_ascii=False), file=pairs)
            question, answer = (SECTION, section(record)) if rng.random() < 0.5 else (SUMMARY, record["short"])
            text = [f"{passage(record)}\n\n{question}", answer]
            print(json.dumps(dict(text=text), ensure_ascii=False), file=talks)
            line = dict(document=passage(record), text=[question, answer])
            print(json.dumps(line, ensure_ascii=False), file=documents)


def main(description=__doc__, write=write):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--records", type=pathlib.Path, help="JSONL, compressed or not, instead of the index")
    parser.add_argument("--heldout", type=pathlib.Path, help="JSONL of records that are held out, instead of one of 29")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, heldout = records_of(args)
    write(args.output / "train", train, args.seed)
    write(args.output / "heldout", heldout, args.seed + 1)
    print(f"{args.output}: {len(train)} packages to train on, {len(heldout)} held out")


if __name__ == "__main__":
    main()
