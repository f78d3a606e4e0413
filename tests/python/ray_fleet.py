"""examples/ray_embed.py: rows embedded by two workers; the driver is killed, and a worker of the
run that does the rest. On stdin: `long`, whether all is done at full size and timed."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gritlm_rs
from checks import check, done, given
from cluster import EXAMPLES, Program, folder, texts

ROWS, SIZE = (20000, 500) if given["long"] else (600, 30)
TIMED = 5000
INSTRUCTION = "Find the passage."
# Without a text: null, empty, and nothing else.
BAD = {7: None, SIZE + 1: "", ROWS - 1: None}


def write(place):
    """Writes the rows as two files whose groups and parts do not coincide."""
    rows = [BAD.get(number, text) for number, text in enumerate(texts(ROWS))]
    cut = ROWS // 2 + 3
    for name, part in (("a", range(cut)), ("b", range(cut, ROWS))):
        table = pa.table({"id": list(part), "text": [rows[i] for i in part]})
        pq.write_table(table, place / f"{name}.parquet", row_group_size=SIZE * 2 // 3)
    return rows, [place / "a.parquet", place / "b.parquet"]


def command(files, output, workers=2, **options):
    more = {"instruction": INSTRUCTION, "rows-per-part": SIZE, "device": "cpu"} | options
    named = [part for name, value in more.items() for part in (f"--{name}", value)]
    return [*files, "--output", output, "--workers", workers, "--threads", 1, *named]


def parts(output):
    return sorted(output.glob("part-*.parquet"))


def check_rows(output, rows, expected):
    """Every row once, in order, and equal to the engine's own; returns the largest difference."""
    table = pa.concat_tables([pq.read_table(part) for part in parts(output)])
    check("rows", table.column("id").to_pylist(), list(range(ROWS)))
    check("texts", table.column("text").to_pylist(), rows)
    errors = {n: e for n, e in enumerate(table.column("error").to_pylist()) if e}
    check("errors", errors, {n: "an empty text" if t == "" else "no text" for n, t in BAD.items()})
    vectors = table.column("embedding").combine_chunks()
    check("null", {n for n in BAD if not vectors[n].is_valid}, set(BAD))
    check("nulls", (vectors.null_count, table.column("tokens").null_count), (len(BAD), len(BAD)))
    good = np.array([n for n in range(ROWS) if n not in BAD])
    found = np.array(vectors.take(pa.array(good)).flatten()).reshape(len(good), -1)
    check("shape", found.shape, expected.shape)
    difference = float(np.abs(found - expected).max())
    check("vectors", difference <= 1e-6, True)
    return difference


def killed(place, files):
    """The driver is killed, and in the second run, which does what is missing, a worker. Returns
    the folder, and how many parts there were each time, and in the end."""
    output = place / "out"
    total = len(range(0, ROWS // 2 + 3, SIZE)) + len(range(ROWS // 2 + 3, ROWS, SIZE))
    first = Program("ray_embed.py", *command(files, output), log=place / "first.log")
    first.until("parts", lambda: len(parts(output)) >= total // 4)
    first.kill()
    there = {part.name: part.stat().st_mtime_ns for part in parts(output)}
    check("not all done", len(there) < total // 2, True)
    second = Program("ray_embed.py", *command(files, output), log=place / "second.log")
    second.until("half", lambda: len(parts(output)) >= total // 2)
    half = len(parts(output))
    workers = second.below("ray::MapWorker")
    check("workers", len(workers), 2)
    os.kill(workers[0], signal.SIGKILL)
    check("second run", second.wait(600), 0)
    said = f"{total} parts, {total - len(there)} to do"
    check("to do", said in second.log.read_text(), True)
    now = {part.name: part.stat().st_mtime_ns for part in parts(output)}
    check("kept", {name: now[name] for name in there}, there)
    check("parts", len(now), total)
    check("nothing else", sorted(p.name for p in output.glob(".*")), [])
    return output, len(there), half, total


def refused(files, output):
    """What is another run, or none."""
    for options, said in (({"instruction": "x"}, "instruction"), ({"column": "id"}, "column")):
        program = [sys.executable, EXAMPLES / "ray_embed.py", *command(files, output, **options)]
        ended = subprocess.run(map(str, program), capture_output=True, text=True, check=False)
        check("refused", (ended.returncode, f"differs in {said}" in ended.stderr), (1, True))


def jsonl(place):
    """Lines of all kinds, through a worker's own code."""
    sys.path.append(str(EXAMPLES))
    import ray_embed

    lines = [
        '{"text": "a library", "n": 1, "x": {"k": "ö"}}',
        "",
        '{"text": "", "n": 2.5, "y": true}',
        "no json",
        '{"text": "half a pair: \\ud800"}',
        '{"text": 5, "x": "s", "z": null}',
        '["a list"]',
        '{"n": 3}',
        '{"text": "the last", "n": null}',
    ]
    file, output = place / "lines.jsonl", place / "lines"
    file.write_text("\n".join(lines))
    output.mkdir()
    options = {"model": "demo", "instruction": "", "max_length": 512, "column": "text"}
    plan = ray_embed.plan([[str(file), 0, 0]], options | {"rows_per_part": 3})
    check("cut", [(p["first"], p["rows"]) for p in plan["parts"]], [(0, 3), (3, 3), (6, 2)])
    worker = ray_embed.Worker(plan, output, "cpu", 1)
    for part in plan["parts"]:
        worker({"part": [json.dumps(part)]})
    table = pa.concat_tables([pq.read_table(part) for part in parts(output)])
    rows = table.to_pylist()
    check("n", [row["n"] for row in rows], [1.0, 2.5, None, None, None, None, 3.0, None])
    check("x", [row["x"] for row in rows if row["x"]], ['{"k": "ö"}', '"s"'])
    check("y, z", [(row["y"], row["z"]) for row in rows if row["y"]], [(True, None)])
    check("texts", [row["text"] for row in rows if row["embedding"]], ["a library", "the last"])
    errors = ["an empty text", "cannot be read", "cannot be read", "found 5", "no JSON object",
              "no text"]  # fmt: skip
    for row, error in zip(rows[1:7], errors, strict=True):
        check(error, error in row["error"], True)
    # A part that always kills its worker ends the run in the end.
    part = plan["parts"][0]
    (output / f".{part['name']}.tries").write_text("." * ray_embed.TRIES)
    try:
        worker({"part": [json.dumps(part)]})
    except RuntimeError as error:
        check("poison", "workers have died of it" in str(error), True)
    else:
        sys.exit("poison: expected a RuntimeError")


def timed(place, rows):
    """Prints rows per second, the best of three rounds: of whole runs, from a run's first part to
    its last, and of an engine without Ray."""
    rows, file = [text for text in rows if text][:TIMED], place / "timed.parquet"
    pq.write_table(pa.table({"text": rows}), file)
    best = {}

    def took(what, rate):
        best[what] = max(rate, best.get(what, 0))

    direct = (
        "import gritlm_rs, json, sys, time; texts = json.load(sys.stdin)\n"
        "engine = gritlm_rs.Engine('demo', device='cpu'); begin = time.monotonic()\n"
        f"engine.embed(texts, instruction={INSTRUCTION!r}, progress=False)\n"
        "print(len(texts) / (time.monotonic() - begin))"
    )
    for turn, count in [(turn, count) for turn in range(3) for count in (1, 2)]:
        output, log = place / f"timed-{count}-{turn}", place / "timed.log"
        begin = time.monotonic()
        what = command([file], output, count) + ["--rows-per-part", SIZE // 2]
        check("timed", Program("ray_embed.py", *what, log=log).wait(600), 0)
        took(f"{count} workers of a thread, with their start", TIMED / (time.monotonic() - begin))
        ends = sorted(part.stat().st_mtime for part in parts(output))
        # The clock begins with the first parts of all workers.
        steady = SIZE // 2 * (len(ends) - count) / (ends[-1] - ends[count - 1])
        took(f"{count} workers of a thread, from the first part to the last", steady)
        environment = os.environ | {"RAYON_NUM_THREADS": str(count)}
        ended = subprocess.run(
            [sys.executable, "-c", direct], input=json.dumps(rows), capture_output=True,
            text=True, check=True, env=environment,
        )  # fmt: skip
        took(f"an engine of {count} threads without Ray", float(ended.stdout))
    tokens = sum(len(engine.tokenize(text)) for text in rows) / TIMED
    print(f"{TIMED} rows of {tokens:.1f} tokens and the instruction's 10, best of three, rows/s")
    for what, rate in sorted(best.items()):
        print(f"  {what}: {rate:.0f}")


with folder() as place:
    rows, files = write(place)
    engine = gritlm_rs.Engine("demo", device="cpu")
    good = [text for text in rows if text]
    expected = engine.embed(good, instruction=INSTRUCTION, progress=False)
    jsonl(place)
    output, there, half, total = killed(place, files)
    difference = check_rows(output, rows, expected)
    refused(files, output)
    print(f"{ROWS} rows in {total} parts: the driver killed after {there}, a worker of the second "
          f"run after {half}; largest difference {difference:.1e}")  # fmt: skip
    if given["long"]:
        timed(place, rows)
done(f"ray {version('ray')}")
