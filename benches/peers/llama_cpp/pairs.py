"""gritlm beside llama.cpp on the same GGUF files: tokens/s, in pairs.

    python3 pairs.py --llama-bench PATH --gritlm PATH [--pairs 5] [--compute auto] FILE.gguf ...

In each pair both programs measure one figure, one after the other, and take turns at being first. The
table has the medians of both, and the median of the pairs' ratios with its range. README.md tells how
llama-bench is built. Only Python's standard library is needed.
"""

import argparse, json, pathlib, statistics, subprocess, tempfile

# A figure of `gritlm bench model`, and the arguments of llama-bench for the same work.
FIGURES = {
    "prefill 1 x 512 tokens": "-p 512 -n 0",
    "prefill 1 x 2048 tokens": "-p 2048 -n 0",
    "decode batch 1, context 0": "-p 0 -n 32",
    "decode batch 1, context 4096": "-p 0 -n 16 -d 4096",
}


def gritlm(args, file, figure):
    with tempfile.TemporaryDirectory() as folder:
        record = pathlib.Path(folder) / "record.json"
        command = f"bench model --device cpu --kv-tokens 8192 --displace 0 --compute {args.compute} --repeats"
        repeats = "32" if figure.startswith("decode") else "1"
        command = [args.gritlm, *command.split(), repeats, "--model", file, "--filter", figure + " of"]
        subprocess.run([*command, "--json", record], check=True, capture_output=True)
        rows = json.loads(record.read_text())["rows"]
    return rows[0]["tokens_s"]


def llama(args, file, figure):
    command = [args.llama_bench, "-t", str(args.threads), "-r", "1", "-o", "json", "-m", file]
    run = subprocess.run([*command, *FIGURES[figure].split()], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)[0]["avg_ts"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--gritlm", required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--figure", action="append", choices=FIGURES, help="all, if left out")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    print("| file | figure | gritlm | llama.cpp | gritlm / llama.cpp |\n|---|---|---|---|---|")
    for file in args.files:
        for figure in args.figure or FIGURES:
            pairs = []
            for i in range(args.pairs):
                programs = [gritlm, llama] if i % 2 == 0 else [llama, gritlm]
                rates = {program: program(args, file, figure) for program in programs}
                pairs.append((rates[gritlm], rates[llama]))
            ours, theirs = (statistics.median(rates) for rates in zip(*pairs))
            ratios = sorted(a / b for a, b in pairs)
            ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {pathlib.Path(file).name} | {figure} | {ours:.1f} | {theirs:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
