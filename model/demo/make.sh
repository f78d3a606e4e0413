#!/bin/sh
# Trains the demo model further on a package index, in two rounds: to embed, to answer, and to answer from cached
# documents. Then writes what transformers computes from the result.
#
#     model/demo/make.sh WORK [--records FILE.gz --heldout FILE.gz]
#
# It goes on from the model that is embedded in the program. WORK keeps data and state: the same command goes on after an
# interruption. Python with torch and transformers must be the first on the path.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$1
shift
[ -d "$work/data" ] || python3 "$here/data.py" "$work/data" "$@"
# Each conversation counts alike (--generative-group 1): a section has two tokens, a description sixty.
train() {
    cargo run --release --locked --manifest-path "$here/../../Cargo.toml" -- train "$@" \
        --steps 600 --batch 64 --generative-batch 64 --generative-group 1 --group-size 1 --warmup 0.05 \
        --temperature 0.04 --query-max-len 64 --passage-max-len 160 --generative-max-len 288 --chunk-tokens 16384 \
        --save-every 100
}
train --model demo --data "$work/data/train/first" --output "$work/first" --seed 0 --learning-rate 6e-4
train --model "$work/first" --data "$work/data/train/second" --output "$work/second" --seed 1 --learning-rate 8e-4
cp "$work/second/model.safetensors" "$work/second/tokenizer.json" "$here"
python3 "$here/expected.py"
