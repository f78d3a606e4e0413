"""One record of all that benches/device.sh has measured, and a table with targets: merge.py WORK OUT.

WORK has records of `gritlm bench` (*.json), what peers write (*.jsonl: an object a line), env.txt
(name=value), and gpu-*.json of the WGSL bench; OUT has parts.csv, and gets merged.json, for
`gritlm bench show`, and table.md.
"""

import csv
import json
import pathlib
import sys

# What; its suite, ops and how their shapes begin; what it is a share of; at least.
TARGETS = [
    ("matmul", "ops", ["qkv", "linear_add", "gate_up", "logits"], "", "torch.matmul", 0.6),
    ("experts", "ops", ["expert"], "", "torch._grouped_mm", 0.6),
    ("attention", "ops", ["attention"], "", "SDPA cuDNN", 0.6),
    ("decode", "model", ["decode"], "batch 1,", "copy", 0.8),
    ("loading", "load", ["upload", "load warm"], "", "pinned", 0.6),
]


def read_peers(work):
    rows = []
    for file in sorted(work.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                # A line that a time limit has cut counts for nothing.
                rows.append(json.loads(line))
            except ValueError:
                pass
    return rows


def merge(records, peers, parts, env):
    """One record. A device's limits are the best that any of its processes has measured."""
    merged = {"version": 1, "date": env.get("date", ""), "program": "", "host": "",
              "devices": [], "rows": [], "steps": [], "peers": [], "missing": []}
    devices = {}
    for record in records:
        for name in ("date", "program", "host"):
            merged[name] = record[name]
        for name in ("rows", "steps", "missing"):
            merged[name] += record.get(name, [])
        for limits in record.get("devices", []):
            known = devices.setdefault(limits["device"], limits)
            for name in ("copy_gb_s", "matmul_gflop_s", "pinned_gb_s"):
                if name in limits:
                    known[name] = max(known.get(name, 0), limits[name])
    merged["devices"] = list(devices.values())
    for row in peers:
        if "us" in row:
            fields = ("peer", "device", "op", "shape", "us")
            merged["peers"].append({name: row[name] for name in fields})
        else:
            what = f"{row['peer']}, {row['op']} {row['shape']}"
            merged["missing"].append(f"{what}: {row['not_measured']}")
    for part in parts:
        # The record of a part that was measured in part names the rest itself.
        if part["status"] not in ("ok", "partly measured"):
            why = [part["status"], part["note"]]
            why = why[1:] if why[0] == "not measured" else why
            merged["missing"].append(": ".join(filter(None, [part["part"], *why])))
    merged["missing"] = list(dict.fromkeys(merged["missing"]))
    return merged


def reached(row, record, what):
    """What share of a limit, or of the fastest such peer's speed, a row has; None where unknown."""
    limits = next((d for d in record["devices"] if d["device"] == row["device"]), {})
    if what in ("copy", "pinned"):
        rate = limits.get(f"{what}_gb_s")
        return row["bytes"] / row["us"] / 1e3 / rate if rate else None
    work = row["op"], row["shape"]
    times = [peer["us"] for peer in record["peers"]
             if peer["peer"].startswith(what) and (peer["op"], peer["shape"]) == work]
    return min(times) / row["us"] if times else None


def targets(record):
    rows = [row for row in record["rows"] if row["device"].startswith("cuda")]
    lines = ["| target | at least | measured | lowest | |", "|---|---|---|---|---|"]
    for name, suite, ops, begin, what, least in TARGETS:
        those = [row for row in rows if row["suite"] == suite and row["op"] in ops
                 and row["shape"].startswith(begin)]
        shares = [(reached(row, record, what), f"{row['op']} {row['shape']}") for row in those]
        shares = sorted(share for share in shares if share[0] is not None)
        missed = sum(share < least for share, _ in shares)
        verdict = f"MISSED by {missed}" if missed else "met" if shares else "not measured"
        lowest = f"{shares[0][0]:.2f}, {shares[0][1]}" if shares else ""
        lines.append(f"| {name} | {least:.2f} of {what} | {len(shares)} | {lowest} | {verdict} |")
    return lines


def figures(record):
    lines = ["| device | op | shape | µs | ± % | GB/s | TFLOP/s | share of limit | beside peers |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in record["rows"]:
        work, us = (row["op"], row["shape"]), row["us"]
        rates = [f"{row[name] / us / by:.1f}" for name, by in (("bytes", 1e3), ("flops", 1e6))]
        share = f"{row['share']:.2f} of {row['limit']}" if row["limit"] else ""
        if row.get("tokens_s"):
            share += f"; {row['tokens_s']:.1f} tokens/s"
        beside = [f"{peer['us'] / us:.2f} of {peer['peer']}" for peer in record["peers"]
                  if row["device"].startswith("cuda") and (peer["op"], peer["shape"]) == work]
        cells = [row["device"], *work, f"{us:.1f}", f"{50 * row['spread']:.0f}", *rates, share,
                 "; ".join(beside)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def wgsl(benches):
    lines = []
    for bench in benches:
        lines += [bench["device"], "", "| op | ms | GB/s | share of the adapter's copy | GFLOP/s |",
                  "|---|---|---|---|---|"]
        for row in bench["rows"]:
            time = row.get("median_s")
            cells = [number(time and time * 1e3, 3), number(row.get("gb_per_s"), 1),
                     number(row.get("share_of_copy"), 2), number(row.get("gflop_per_s"), 1)]
            lines.append(f"| {row['op']} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines or ["not measured", ""]


def table(record, benches, parts, env):
    lines = ["# gritlm on an NVIDIA GPU", ""]
    lines += [f"* {name}: {value}" for name, value in env.items()]
    for limits in record["devices"]:
        rates = f"copies {limits['copy_gb_s']:.1f} GB/s, read and written"
        rates += f"; matmul {limits['matmul_gflop_s'] / 1e3:.2f} TFLOP/s"
        if "pinned_gb_s" in limits:
            rates += f"; from pinned memory {limits['pinned_gb_s']:.1f} GB/s"
        lines.append(f"* {limits['device']}: {rates}")
    lines += ["", "Ratios are the peer's time ÷ gritlm's: above 1 gritlm is faster.", ""]
    lines += [*targets(record), "", *figures(record), ""]
    lines += [f"* not measured: {line}" for line in record["missing"]]
    lines += ["", "## The WGSL backend's own bench, through Vulkan", "", *wgsl(benches)]
    lines += ["## Parts", "", "| part | status | s | SM, memory MHz at most | |",
              "|---|---|---|---|---|"]
    for row in parts:
        clocks = f"{row['sm_mhz']}, {row['memory_mhz']}".strip(", ")
        cells = [row["part"], row["status"], row["seconds"], clocks, row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    work, out = map(pathlib.Path, sys.argv[1:3])
    env = dict(line.split("=", 1) for line in (work / "env.txt").read_text().splitlines())
    with open(out / "parts.csv") as file:
        parts = list(csv.DictReader(file))
    read = {file.name: json.loads(file.read_text()) for file in sorted(work.glob("*.json"))}
    benches = [value for name, value in read.items() if name.startswith("gpu-")]
    records = [value for name, value in read.items() if not name.startswith("gpu-")]
    record = merge(records, read_peers(work), parts, env)
    (out / "merged.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "table.md").write_text(table(record, benches, parts, env))


main()
