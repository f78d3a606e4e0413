#!/usr/bin/env python3
"""Draws what runs of `gritlm train --eval-data` have found on held-out samples, by step.

    python3 plot.py OUTPUT.svg NAME=RUN NAME=RUN ...

RUN is the output folder of a run, or its metrics.jsonl. One panel shows the share of queries that find their passage
among the nearest ten, the other one the loss of answers. Only Python's standard library is needed.
"""

import argparse, html, json, pathlib

PANELS = [("eval_recall_at_10", "held-out recall@10"), ("eval_loss", "held-out loss, nats a token")]
COLOURS = ["#3b82c4", "#d1783b", "#4f9d69", "#9b6fc0", "#8a8a8a"]
WIDTH, HEIGHT, LEFT, TOP, GAP = 330, 190, 52, 40, 80


def curve(path, key):
    """The steps at which a number was measured, with it."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    lines = [json.loads(line) for line in open(file)]
    return [(line["step"], line[key]) for line in lines if key in line]


def ticks(low, high, count=4):
    return [low + (high - low) * i / count for i in range(count + 1)]


def panel(x0, title, curves):
    points = [point for _, curve in curves for point in curve]
    last = max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9
    at = lambda step, value: (x0 + WIDTH * step / last, TOP + HEIGHT * (high - value) / (high - low))
    yield f'<text x="{x0}" y="{TOP - 14}" font-weight="bold">{html.escape(title)}</text>'
    for value in ticks(low, high):
        y = at(0, value)[1]
        yield f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888" stroke-opacity="0.3"/>'
        yield f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
    for step in ticks(0, last):
        yield f'<text x="{at(step, low)[0]:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{step:.0f}</text>'
    for (_, curve), colour in zip(curves, COLOURS):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    args = parser.parse_args()
    runs = [(name, pathlib.Path(path)) for name, path in (run.split("=", 1) for run in args.runs)]
    width, height = LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + 56
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="12" fill="#808080">']
    for n, (key, title) in enumerate(PANELS):
        curves = [(name, curve(path, key)) for name, path in runs]
        parts += panel(LEFT + n * (WIDTH + GAP), title, [one for one in curves if one[1]])
    for n, ((name, _), colour) in enumerate(zip(runs, COLOURS)):
        x, y = LEFT + 160 * n, TOP + HEIGHT + 44
        parts.append(f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{html.escape(name)}</text>')
    args.output.write_text("\n".join(parts + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main()
