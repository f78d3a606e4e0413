"""One table of all that benches/device.sh has measured: merge.py WORK OUT [--quick].

WORK has the rows (*.jsonl: a JSON object a line), env.txt (name=value), and gpu-*.json of the WGSL
bench; OUT has parts.csv, and gets table.md, all.csv and all.json. What is missing is "not
measured".
"""

import csv
import json
import pathlib
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "peers" / "torch"))
from shapes import Sizes  # noqa: E402

MATMUL = "torch.matmul"
GROUPED = "torch._grouped_mm"
# Op names begin with; what is compared; at least.
TARGETS = [
    ("qkv", MATMUL, 0.6),
    ("linear_add", MATMUL, 0.6),
    ("gate_up", MATMUL, 0.6),
    ("logits", MATMUL, 0.6),
    ("expert_", GROUPED, 0.6),
    ("attention", "SDPA cuDNN", 0.6),
    ("model decode", "share", 0.8),
    ("model load", "share", 0.6),
]


def read_rows(work):
    rows = []
    for file in sorted(work.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                # A line that a time limit has cut counts for nothing.
                rows.append({"part": file.stem, **json.loads(line)})
            except ValueError:
                pass
    return rows


def limits(rows):
    """Measured GB/s of a copy and of one from pinned memory, TFLOP/s of a matrix product: gritlm's
    own copies, where both have measured them."""
    found = {}
    for row in sorted(rows, key=lambda row: "peer" not in row):
        if row["op"] in ("copy", "pinned", "matmul") and "us" in row:
            found[row["op"]] = row["tflop_s" if row["op"] == "matmul" else "gb_s"]
    return found


def share(row, limits):
    """What bounds a row, and the share of it that is reached."""
    copy, matmul = limits.get("copy"), limits.get("matmul")
    bytes, flops = row.get("bytes", 0), row.get("flops", 0)
    limit = row.get("limit")
    if limit == "pinned" or not limit:
        pass
    elif copy and matmul:
        limit = "matmul" if flops / matmul / 1e12 > bytes / copy / 1e9 else "copy"
    rate = row["tflop_s" if limit == "matmul" else "gb_s"]
    return limit, rate / limits[limit] if limit in limits else None


def number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def merge(rows, quick):
    at = limits(rows)
    ours = {(row["op"], row["shape"]): row for row in rows if "peer" not in row}
    loads = {op: key for key in ours for op in [key[0]] if op.startswith("model ")}
    merged = []
    for op, shape in Sizes(quick).all():
        key = (op, shape) if shape else loads.get(op, (op, ""))
        row = ours.get(key, {"op": op, "shape": shape or "", "not_measured": "no result"})
        peers = [r for r in rows if "peer" in r and (r["op"], r["shape"]) == key]
        row = {**row, "peers": peers, "target": "", "ratio": None}
        measured = "us" in row
        if measured:
            # Those of its own process, where they are known.
            own = limits(r for r in rows if r["part"] == row["part"])
            row["limit"], row["share"] = share(row, {**at, **own})
        for begin, what, least in TARGETS:
            if not op.startswith(begin):
                continue
            those = [r for r in peers if r["peer"].startswith(what) and "us" in r]
            if what == "share":
                row["ratio"] = row.get("share")
            elif those and measured:
                row["ratio"] = min(r["us"] for r in those) / row["us"]
            met = row["ratio"] is not None and ("met" if row["ratio"] >= least else "MISSED")
            what = f"{least} of {row.get('limit') or 'its limit' if what == 'share' else what}"
            row["target"] = f"{what}: {met or 'not measured'}"
        merged.append(row)
    return merged, at


def peer_words(row):
    words = []
    for peer in row["peers"]:
        if "us" not in peer:
            words.append(f"{peer['peer']}: not measured")
        elif "us" in row:
            words.append(f"{peer['us'] / row['us']:.2f} of {peer['peer']}")
        else:
            words.append(f"{peer['peer']}: {peer['us']:.1f} us")
    return "; ".join(words) or "-"


def table(merged, at, env, parts, wgsl):
    lines = ["# gritlm on an NVIDIA GPU", ""]
    for name, value in env.items():
        lines.append(f"* {name}: {value}")
    units = {"copy": "GB/s, read and written", "pinned": "GB/s", "matmul": "TFLOP/s (torch.matmul)"}
    for name, unit in units.items():
        value = f"{at[name]:.1f} {unit}" if name in at else "not measured"
        lines.append(f"* limit {name}: {value}")
    lines += [
        "",
        "Ratios are the peer's time ÷ gritlm's: above 1 gritlm is faster.",
        "",
        "| op | shape | µs | ± % | GB/s | TFLOP/s | share of limit | beside peers | target |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in merged:
        name = f"| {row['op']} | {row['shape']} "
        end = f"| {peer_words(row)} | {row['target']} |"
        if "us" not in row:
            lines.append(f"{name}| not measured: {row['not_measured']} | | | | {end}")
            continue
        part = "" if row["share"] is None else f"{row['share']:.2f} of {row['limit']}"
        if row["limit"] and not part:
            part = "not measured"
        if row.get("tokens_s"):
            part += f"; {row['tokens_s']:.1f} tokens/s"
        numbers = [(row["us"], 1), (50 * row["spread"], 0), (row["gb_s"], 1), (row["tflop_s"], 1)]
        cells = " | ".join(number(*n) for n in numbers)
        lines.append(f"{name}| {cells} | {part} {end}")
    lines += ["", "## The WGSL backend on the same GPU, through Vulkan", ""]
    for bench in wgsl:
        lines += [bench["device"], ""]
        lines.append("| op | ms | GB/s | share of the adapter's copy | GFLOP/s |")
        lines.append("|---|---|---|---|---|")
        for row in bench["rows"]:
            time = row.get("median_s")
            cells = [
                number(time and time * 1e3, 3),
                number(row.get("gb_per_s"), 1),
                number(row.get("share_of_copy"), 2),
                number(row.get("gflop_per_s"), 1),
            ]
            lines.append(f"| {row['op']} | " + " | ".join(cells) + " |")
        lines.append("")
    if not wgsl:
        lines.append("not measured")
    lines += ["", "## Parts", "", "| part | status | s | SM, memory MHz at most | |"]
    lines.append("|---|---|---|---|---|")
    for row in parts:
        clocks = f"{row['sm_mhz']}, {row['memory_mhz']}".strip(", ")
        lines.append(
            f"| {row['part']} | {row['status']} | {row['seconds']} | {clocks} | {row['note']} |"
        )
    return "\n".join(lines) + "\n"


def write_csv(file, merged):
    with open(file, "w", newline="") as to:
        out = csv.writer(to)
        out.writerow(["op", "shape", "peer", "us", "spread", "gb_s", "tflop_s", "limit", "share",
                      "tokens_s", "ratio", "target", "not_measured"])
        for row in merged:
            for one in [row, *row["peers"]]:
                both = one is not row and "us" in one and "us" in row
                ratio = one["us"] / row["us"] if both else ""
                out.writerow(
                    [one["op"], one["shape"], one.get("peer", "gritlm")]
                    + [one.get(k, "") for k in ["us", "spread", "gb_s", "tflop_s", "limit"]]
                    + [one.get("share") or "", one.get("tokens_s") or "", ratio]
                    + [one.get("target", ""), one.get("not_measured", "")]
                )


def main():
    work, out = map(pathlib.Path, sys.argv[1:3])
    env = {}
    for line in (work / "env.txt").read_text().splitlines():
        name, _, value = line.partition("=")
        env[name] = value
    with open(out / "parts.csv") as file:
        parts = list(csv.DictReader(file))
    wgsl = [json.loads(file.read_text()) for file in sorted(work.glob("gpu-*.json"))]
    rows = read_rows(work)
    merged, at = merge(rows, "--quick" in sys.argv)
    (out / "table.md").write_text(table(merged, at, env, parts, wgsl))
    write_csv(out / "all.csv", merged)
    everything = {"env": env, "limits": at, "rows": merged, "all_rows": rows, "wgsl": wgsl,
                  "parts": parts}
    (out / "all.json").write_text(json.dumps(everything, indent=1) + "\n")


main()
