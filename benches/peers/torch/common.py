"""What both scripts share: rows, times by CUDA events, limits."""

import argparse
import json
import statistics
import time

import torch


def arguments(what):
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", help="gets a JSON object a line")
    return parser.parse_args()


class Rows:
    def __init__(self, path, device):
        self.file = open(path, "w") if path else None
        # As people name it: gritlm compares what ran on the like.
        cuda = device == "cuda" and torch.cuda.is_available()
        self.device = torch.cuda.get_device_name() if cuda else device

    def put(self, **row):
        if self.file:
            self.file.write(json.dumps({**row, "device": self.device}) + "\n")
            self.file.flush()
        name = f"{row['op']}, {row['shape']}, {row['peer']}"
        if "not_measured" in row:
            print(f"{name:80} not measured: {row['not_measured']}", flush=True)
        else:
            rates = f"{row['gb_s']:9.1f} GB/s {row['tflop_s']:8.1f} TFLOP/s"
            print(f"{name:80} {row['us']:11.1f} us {rates}", flush=True)

    def measure(self, op, shape, peer, make, clock, bytes=0, flops=0, tokens=0):
        """Times what `make()` returns; whatever goes wrong is a row that says so."""
        try:
            seconds = sorted(clock(make()))
            middle = statistics.median(seconds)
            row = {
                "us": middle * 1e6,
                "spread": (seconds[-1] - seconds[0]) / middle,
                "gb_s": bytes / middle / 1e9,
                "tflop_s": flops / middle / 1e12,
            }
            if tokens:
                row["tokens_s"] = tokens / middle
        except Exception as problem:  # the table says why, and the other rows go on
            row = {"not_measured": why(problem)}
        self.put(op=op, shape=shape, peer=peer, **row)


def why(problem):
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def cold(device, repeats, displaced=256 << 20):
    """A clock for one op: CUDA events around it, after a sum whose operand takes the place of what L2
    holds; it leaves nothing there to be written back. While it runs, the host gets ahead, so its own
    time does not count."""
    operand = torch.ones(displaced // 4, device=device)

    def clock(run):
        seconds = []
        for repeat in range(repeats + 2):
            operand.sum()
            if device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                passed = start.elapsed_time(end) / 1e3
            else:
                before = time.perf_counter()
                run()
                passed = time.perf_counter() - before
            # The first ones load code and choose algorithms.
            if repeat >= 2:
                seconds.append(passed)
        return seconds

    return clock


def walls(device, repeats, times=1):
    """A clock for what takes long: wall time of so many runs in a row, for each of them."""

    def clock(run):
        seconds = []
        for repeat in range(repeats + 1):
            synchronize(device)
            before = time.perf_counter()
            for _ in range(times):
                run()
            synchronize(device)
            if repeat:
                seconds.append((time.perf_counter() - before) / times)
        return seconds

    return clock
