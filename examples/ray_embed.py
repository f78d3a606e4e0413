"""Embeds the rows of Parquet or JSONL files on many devices: Ray Data, one engine per worker.

    python examples/ray_embed.py articles/*.parquet --output vectors --model GritLM/GritLM-7B \
        --device cuda --workers 8 --column text

The output folder gets one row per row of the input, in its order: all columns of the input, then
`embedding` (a list of float32 of fixed size), `tokens` (of the text, before it is cut) and `error`.
A row that cannot be embedded (no text, an empty one, a line that is no JSON) is kept; its
`embedding` is null and its `error` says why. The end of the run counts these rows and names some.
Nested values of JSONL, and columns of mixed types, are kept as JSON; blank lines are no rows.

The input is cut into numbered parts. A worker reads a part, embeds it, writes it under a temporary
name and renames it, so that a part that is there is whole. When a worker dies, Ray starts another
and gives it the part again; when the driver dies, running the same command again does the parts
that are missing. `_run.json` in the output folder says which run it is: the input files with their
sizes and times of change, and the options that values depend on. Another run is refused. Workers
and device are no part of that; mind that a GPU's values differ a little from a CPU's.

On a cluster (`--address`), the model and all files must have the same paths on every machine. One
driver at a time may write to an output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

OWN = ("embedding", "tokens", "error")
NAMED = 5  # rows without an embedding that the end of the run names
TRIES = 5  # workers that may die of a part before the run ends


class Part(TypedDict):
    """Consecutive rows of one file, the first by number and (JSONL) byte, and their new file."""

    name: str
    file: str
    first: int
    rows: int
    offset: int


class Plan(TypedDict):
    """What identifies a run, its parts, and the columns of JSONL files with their types."""

    files: list[list[Any]]
    options: dict[str, Any]
    parts: list[Part]
    columns: dict[str, str]


def parsed(line: bytes) -> dict[str, Any] | str:
    """Returns the fields of a line of JSONL, or what is wrong with it."""
    try:
        row = json.loads(line)
        # JSON allows half a surrogate pair, and Arrow does not.
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return f"the line cannot be read: {error}"
    return row if isinstance(row, dict) else "the line is no JSON object"


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Returns the lines that are not blank, each with its offset."""
    offset = file.tell()
    for line in file:
        if line.strip():
            yield offset, line
        offset += len(line)


def widened(known: str | None, value: Any) -> str | None:
    """Returns the type of a JSONL column in which one more value has been seen."""
    names = {bool: "bool", int: "int64", float: "float64", str: "string"}
    found = names.get(type(value), "json")
    if found == "int64" and not -(1 << 63) <= value < 1 << 63:
        found = "json"
    if value is None or known in (None, found):
        return known if value is None else found
    return "float64" if {known, found} == {"int64", "float64"} else "json"


def plan(files: list[list[Any]], options: dict[str, Any]) -> Plan:
    """Cuts the input into parts. Reads JSONL once, and of Parquet only the footers."""
    column, size = options["column"], options["rows_per_part"]
    parts: list[Part] = []
    types: dict[str, str | None] = {}
    schemas: list[Any] = []
    for path, *_ in files:
        starts: list[int] = []
        if path.endswith(".parquet"):
            footer = pq.ParquetFile(path)
            rows, schema = footer.metadata.num_rows, footer.schema_arrow
            starts, names = [0] * len(range(0, rows, size)), schema.names
            if column in names and "string" not in str(kind := schema.field(column).type):
                sys.exit(f"{path}: expected texts in {column!r}, found {kind}")
            schemas.append(schema.remove_metadata())
        else:
            rows = 0
            with open(path, "rb") as file:
                for offset, line in lines(file):
                    starts += [offset] if rows % size == 0 else []
                    rows += 1
                    row = parsed(line)
                    for name, value in row.items() if isinstance(row, dict) else ():
                        types[name] = widened(types.get(name), value)
            names = list(types)
            schemas.append(None)
        if column not in names or not set(OWN).isdisjoint(names):
            expected = f"a column {column!r} and none of {', '.join(OWN)}"
            sys.exit(f"{path}: expected {expected}, found {', '.join(names)}")
        for first, offset in zip(range(0, rows, size), starts, strict=True):
            name, count = f"part-{len(parts):06}.parquet", min(size, rows - first)
            parts.append(Part(name=name, file=path, first=first, rows=count, offset=offset))
    if any(schema != schemas[0] for schema in schemas):
        sys.exit("input: the files' columns differ")
    # A column of nulls becomes one of strings. What is no text in the text's is its row's error.
    columns = {name: "text" if name == column else k or "string" for name, k in types.items()}
    return Plan(files=files, options=options, parts=parts, columns=columns)


def begun(output: Path, files: list[list[Any]], options: dict[str, Any]) -> Plan:
    """Returns the plan in the output folder, made now where the folder is new."""
    place = output / "_run.json"
    if not place.exists():
        output.mkdir(parents=True, exist_ok=True)
        if any(not path.name.startswith(".") for path in output.iterdir()):
            sys.exit(f"{output}: expected an empty folder or one with {place.name}")
        made = plan(files, options)
        temporary = output / ".run.json"
        temporary.write_text(json.dumps(made))
        temporary.replace(place)
        return made
    found: Plan = json.loads(place.read_text())
    changed = [name for name, value in options.items() if found["options"].get(name) != value]
    if changed or found["files"] != files:
        what = f"differs in {', '.join(changed)}" if changed else "the input has changed"
        sys.exit(f"{output}: holds another run: {what}")
    for left in output.glob(".part-*"):  # of dead workers
        left.unlink(missing_ok=True)
    return found


def read(part: Part, columns: dict[str, str]) -> tuple[pa.Table, list[str | None]]:
    """Returns the rows of a part, and what is wrong with each."""
    if not columns:
        file, end, before, groups = pq.ParquetFile(part["file"]), 0, 0, []
        for group in range(file.metadata.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            if end <= part["first"]:
                before = end
            elif start < part["first"] + part["rows"]:
                groups.append(group)
        table = file.read_row_groups(groups).slice(part["first"] - before, part["rows"])
        return table, [None] * part["rows"]
    with open(part["file"], "rb") as lined:
        lined.seek(part["offset"])
        found = [parsed(line) for (_, line), _ in zip(lines(lined), range(part["rows"]))]
    errors = [row if isinstance(row, str) else None for row in found]
    arrays = {}
    for name, kind in columns.items():
        values = [row.get(name) if isinstance(row, dict) else None for row in found]
        if kind in ("json", "text"):
            for row, value in enumerate(values):
                if value is not None and not (kind == "text" and isinstance(value, str)):
                    values[row] = told = json.dumps(value, ensure_ascii=False)
                    if kind == "text":
                        errors[row] = f"expected a text, found {told[:40]}"
        kind = "string" if kind in ("json", "text") else kind
        arrays[name] = pa.array(values, pa.type_for_alias(kind))
    return pa.table(arrays), errors


class Worker:
    """One engine, which embeds a part at a time."""

    def __init__(self, plan: Plan, output: Path, device: str, threads: int) -> None:
        # The engine's threads are made when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        from gritlm_rs import Engine

        options, self.columns, self.output = plan["options"], plan["columns"], output
        self.column = options["column"]
        self.how = {name: options[name] for name in ("instruction", "max_length")}
        self.engine = Engine(options["model"], device=device)
        # An option that is wrong for every text ends the run here.
        self.dim = self.engine.embed(["a"], **self.how).shape[1]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does the part of a batch; returns counts, and the first rows without an embedding."""
        part: Part = json.loads(batch["part"][0])
        tries = self.output / f".{part['name']}.tries"
        with open(tries, "a") as counted:
            if counted.tell() == TRIES:
                raise RuntimeError(f"{part['name']}: {TRIES} workers have died of it")
            counted.write(".")
        table, errors = read(part, self.columns)
        texts = table.column(self.column).to_pylist()
        for row, text in enumerate(texts):
            if not text and errors[row] is None:
                errors[row] = "no text" if text is None else "an empty text"
        vectors = np.zeros((len(texts), self.dim), np.float32)
        self.embed(texts, [row for row, error in enumerate(errors) if not error], vectors, errors)
        tokens = [
            None if error else len(self.engine.tokenize(text, special=False))
            for text, error in zip(texts, errors, strict=True)
        ]
        lists = pa.FixedSizeListArray.from_arrays(
            vectors.reshape(-1), self.dim, mask=pa.array([error is not None for error in errors])
        )
        table = table.append_column(OWN[0], lists)
        table = table.append_column(OWN[1], pa.array(tokens, pa.int32()))
        table = table.append_column(OWN[2], pa.array(errors, pa.string()))
        temporary = self.output / f".{part['name']}.{uuid.uuid4().hex}"
        with open(temporary, "wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.output / part["name"])
        tries.unlink(missing_ok=True)
        numbered = enumerate(errors, part["first"])
        bad = [f"{part['file']}, row {row}: {error}" for row, error in numbered if error]
        return {"rows": [len(texts)], "bad": [len(bad)], "named": [json.dumps(bad[:NAMED])]}

    def embed(self, texts: Any, rows: list[int], vectors: Any, errors: list[str | None]) -> None:
        """Embeds rows together, and each alone where one of them is refused."""
        try:
            if rows:
                chosen = [texts[row] for row in rows]
                vectors[rows] = self.engine.embed(chosen, progress=False, **self.how)
        except ValueError as error:
            if len(rows) == 1:
                errors[rows[0]] = str(error)
                return
            for row in rows:
                self.embed(texts, [row], vectors, errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("input", nargs="+", type=Path, help="files ending in .parquet or .jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder for the parts")
    parser.add_argument("--column", default="text", help="the column to embed (text)")
    parser.add_argument("--model", default="demo", help="as for gritlm (demo)")
    parser.add_argument("--device", default="auto", help="as for gritlm; cuda: a GPU per worker")
    parser.add_argument("--instruction", default="", help="what the vectors are for")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a sequence (512)")
    parser.add_argument("--workers", type=int, default=1, help="engines (1)")
    parser.add_argument("--threads", type=int, help="CPU threads of a worker (cores / workers)")
    parser.add_argument("--rows-per-part", type=int, default=4096, help="(4096)")
    parser.add_argument("--address", help="of a Ray cluster; without it, one is made here")
    args = parser.parse_args()
    files = []
    for path in map(Path.resolve, args.input):
        if path.suffix not in (".parquet", ".jsonl") or not path.is_file():
            sys.exit(f"{path}: expected a file ending in .parquet or .jsonl")
        files.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
    names = ("model", "instruction", "max_length", "column", "rows_per_part")
    output = args.output.resolve()
    made = begun(output, files, {name: getattr(args, name) for name in names})
    missing = [part for part in made["parts"] if not (output / part["name"]).exists()]
    print(f"{len(made['parts'])} parts, {len(missing)} to do", flush=True)
    if not missing:
        return
    ray.init(args.address, log_to_driver=False, include_dashboard=None if args.address else False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpu, cores = args.device.startswith("cuda"), os.cpu_count() or 1
    threads = args.threads or max(1, cores // args.workers)
    items = [{"part": json.dumps(part)} for part in missing]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        fn_constructor_args=(made | {"parts": []}, output, args.device, threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=1 if gpu else threads,
        num_gpus=1 if gpu else 0,
    )
    bad, named = 0, [""]
    with tqdm(total=sum(part["rows"] for part in missing), unit="rows") as bar:
        for row in done.iter_rows():
            bar.update(row["rows"])
            bad, named = bad + row["bad"], named + json.loads(row["named"])
    print(*named[: NAMED + 1], sep="\n")
    print(f"{bar.n} rows, {bad} without an embedding (`error` says why)")


if __name__ == "__main__":
    main()
