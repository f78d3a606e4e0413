#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, with programs that were built elsewhere.
usage='Usage: benches/device.sh pack [DIR]   where cargo is: builds, strips and packs what OUT needs
       benches/device.sh OUT [DIR]    where the GPU is: runs it all, in less than nine minutes

DIR is target/device, or GRITLM_BINARIES. It gets binaries.tar.xz (or has the programs themselves:
tests, gpu, gritlm). OUT gets report.html, table.md, merged.json (a record, for `gritlm bench show`),
parts.csv and logs.tar.gz.

Run it from a checkout of the same commit. Needs bash, Python 3 and coreutils; the CUDA compiler
library (NVRTC) from CUDA or from Python packages; and for its parts compute-sanitizer, a Vulkan
loader, PyTorch, transformers: a part whose needs are missing is "not measured". Every part is a
process with a time limit, so that a kernel that hangs costs its part only.

Environment: PYTHON (python3), DEVICE_SECONDS (520, for all), DEVICE_EMULATOR=FOLDER (no GPU: the
emulator and its kernels that the tests have built, and tiny shapes, to try this script).'

set -u
cd "$(dirname "$0")/.." || exit 2
ROOT=$PWD
PYTHON=${PYTHON:-python3}

# Where cargo has put a program: its messages say so. $1: its name, the rest: a cargo command.
executable() {
    local name=$1
    shift
    cargo "$@" --message-format=json | "$PYTHON" -c '
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    if row.get("executable") and row["target"]["name"] == sys.argv[1]:
        found = row["executable"]
print(found)' "$name"
}

pack() {
    set -e
    local to=$1 name built
    mkdir -p "$to"
    for name in gritlm tests gpu; do
        case $name in
        gritlm) built=$(executable gritlm build --release --bin gritlm) ;;
        tests) built=$(executable tests test --release --no-run --test tests) ;;
        *) built=$(executable $name bench --no-run --bench $name) ;;
        esac
        strip -o "$to/$name" "$built"
    done
    git rev-parse --short HEAD >"$to/commit"
    # Also in file names of the tests' data.
    echo "$ROOT" >"$to/root"
    # The embedded model is in each of them: a dictionary of all their length keeps it once.
    "$PYTHON" - "$to" <<'PYTHON'
import lzma, os, sys, tarfile
folder = sys.argv[1]
filters = [{"id": lzma.FILTER_LZMA2, "preset": 4, "dict_size": 192 << 20}]
names = ["gritlm", "tests", "gpu", "commit", "root"]
with lzma.open(f"{folder}/binaries.tar.xz", "wb", filters=filters) as to:
    with tarfile.open(fileobj=to, mode="w") as tar:
        for name in names:
            tar.add(f"{folder}/{name}", name)
for name in names:
    os.remove(f"{folder}/{name}")
size = os.path.getsize(f"{folder}/binaries.tar.xz") / (1 << 20)
print(f"{folder}/binaries.tar.xz: {size:.1f} MiB")
sys.exit(size > 64)
PYTHON
}

case ${1:-} in
pack)
    pack "${2:-${GRITLM_BINARIES:-target/device}}"
    exit
    ;;
'' | -*)
    echo "$usage"
    exit 2
    ;;
esac

mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
DIR=${2:-${GRITLM_BINARIES:-target/device}}
END=${DEVICE_SECONDS:-520}
EMULATOR=${DEVICE_EMULATOR:-}
WORK=$(mktemp -d)
MODEL=
LINK=
CLOCKS=
cleanup() {
    [ -z "$CLOCKS" ] || kill "$CLOCKS" 2>/dev/null
    [ -z "$LINK" ] || rm -f "$LINK"
    rm -rf "$WORK" ${MODEL:+"$MODEL"}
}
trap cleanup EXIT
trap 'exit 1' INT TERM
LOGS=$WORK/logs
BIN=$WORK/bin
mkdir -p "$LOGS" "$BIN" "$WORK/lib" "$WORK/run"
SECONDS=0
SEEN=0
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GRITLM_CACHE=$WORK/cache
# OpenGL's libraries complain on stderr without it.
export XDG_RUNTIME_DIR=$WORK/run

if [ -f "$DIR/binaries.tar.xz" ]; then
    "$PYTHON" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
        "$DIR/binaries.tar.xz" "$BIN" || exit 2
elif [ -x "$DIR/tests" ]; then
    BIN=$(cd "$DIR" && pwd)
else
    echo "no programs in $DIR: benches/device.sh pack $DIR, where cargo is" >&2
    exit 2
fi

# The programs look for the tests' data where they were built.
built=$(cat "$BIN/root" 2>/dev/null)
if [ -n "$built" ] && [ ! -e "$built" ] && mkdir -p "$(dirname "$built")" 2>/dev/null; then
    ln -s "$ROOT" "$built" && LINK=$built
fi

# Rows of parts.csv: $1 part, $2 status, $3 seconds, $4 note. Clocks: the highest while it ran.
row() {
    local clocks
    clocks=$(tail -n "+$((SEEN + 1))" "$WORK/clocks.csv" 2>/dev/null | tr -d ' ' | sort -n |
        tail -n 1)
    echo "$1,$2,$3,${clocks:-,},$(echo "$4" | tr -d '",|\r' | tr -s ' \n' ' ' | cut -c1-240)" \
        >>"$OUT/parts.csv"
    echo "[$SECONDS s] $1: $2 ($3 s) $4"
    # After each part, so that whatever ends this script leaves what is known by then.
    "$PYTHON" benches/device/merge.py "$WORK" "$OUT" &&
        "$BIN/gritlm" bench show "$OUT/merged.json" --html "$OUT/report.html" \
            >"$LOGS/report.log" 2>&1 || echo "no report.html" >&2
    tar -czf "$OUT/logs.tar.gz" -C "$WORK" logs
}

# $1 part, $2 seconds that it may take, $3… command.
part() {
    local name=$1 limit=$2 left=$((END - SECONDS)) begun=$SECONDS code status note
    shift 2
    if [ $left -lt 8 ]; then
        SEEN=1000000
        row "$name" 'not measured' 0 'no time was left'
        return 1
    fi
    SEEN=$(wc -l 2>/dev/null <"$WORK/clocks.csv" || echo 0)
    [ "$limit" -le $left ] || limit=$left
    timeout -k 5 "$limit" "$@" >"$LOGS/$name.log" 2>&1 </dev/null
    code=$?
    note=$(grep -aE 'test result:|SKIPPED|not measured: |SUMMARY|panicked|[Ee]rror' \
        "$LOGS/$name.log" | grep -avE 'relative error|^ *error [0-9]' | tail -n 1)
    case $code in
    0) status=ok ;;
    124 | 137) status="stopped after $limit s" ;;
    *) status="failed ($code)" ;;
    esac
    # A test that was skipped has shown nothing, nor has a filter that fits none.
    if grep -aqE '^SKIPPED|test result: ok\. 0 passed' "$LOGS/$name.log"; then
        status='not measured'
    fi
    # `gritlm bench` names what it could not measure, and goes on.
    if [ "$status" = ok ] && grep -aq '^Not measured' "$LOGS/$name.log"; then
        status='partly measured'
        note=$(grep -aA 1 '^Not measured' "$LOGS/$name.log" | tail -n 1)
    fi
    row "$name" "$status" $((SECONDS - begun)) "$note"
    [ "$status" = ok ]
}

absent() {
    local why=$1 name
    shift
    SEEN=1000000
    for name; do row "$name" 'not measured' 0 "$why"; done
}

# What there is.
GPU=
if timeout 20 nvidia-smi -L >"$LOGS/nvidia-smi.log" 2>&1; then
    GPU=yes
    timeout 20 nvidia-smi -q >>"$LOGS/nvidia-smi.log" 2>&1
fi
query() {
    timeout 20 nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1
}
commit=$(cat "$BIN/commit" 2>/dev/null || git rev-parse --short HEAD 2>/dev/null || echo unknown)
{
    echo "commit=$commit"
    echo "date=$(date -u +%Y-%m-%dT%H:%MZ)"
    if [ -n "$GPU" ]; then
        echo "GPU=$(query name)"
        echo "driver=$(query driver_version)"
        echo "memory=$(query memory.total)"
        echo "clocks idle (SM, memory)=$(query clocks.sm,clocks.mem)"
        echo "clocks at most (SM, memory)=$(query clocks.max.sm,clocks.max.mem)"
        echo "power limit=$(query power.limit)"
    elif [ -n "$EMULATOR" ]; then
        echo "GPU=none: the emulator, tiny shapes; no time here says anything"
    else
        echo "GPU=none: not measured"
    fi
    echo "CPU=$(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2-) x $(nproc)"
    echo "PyTorch=$(timeout 60 "$PYTHON" -c 'import torch; print(torch.__version__)' 2>/dev/null ||
        echo 'not measured: none')"
} >"$WORK/env.txt"
echo 'part,status,seconds,sm_mhz,memory_mhz,note' >"$OUT/parts.csv"
if [ -n "$GPU" ]; then
    # It also keeps the driver loaded, which every part would else wait for.
    nvidia-smi --query-gpu=clocks.sm,clocks.mem --format=csv,noheader,nounits -i 0 -l 1 \
        >"$WORK/clocks.csv" 2>/dev/null &
    CLOCKS=$!
fi

# NVRTC of Python's packages, where there is one; under the name without a version, too.
nvrtc=$("$PYTHON" -c '
import glob, site, sys
for folder in site.getsitepackages() + sys.path:
    for file in sorted(glob.glob(folder + "/nvidia/*/lib/libnvrtc.so*")):
        if ".alt." not in file:
            print(file)' 2>/dev/null | sort -Vu | tail -n 1)
if [ -n "$nvrtc" ]; then
    ln -s "$nvrtc" "$WORK/lib/libnvrtc.so"
    LIBRARIES=$WORK/lib:$(dirname "$nvrtc")
else
    LIBRARIES=$WORK/lib
fi
[ -z "$EMULATOR" ] || LIBRARIES=$EMULATOR:$LIBRARIES
LIBRARIES=$LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Vulkan by NVIDIA's driver alone: other adapters have their turn elsewhere.
for icd in /usr/share /etc /usr/local/share /usr/local/nvidia/share; do
    icd=$icd/vulkan/icd.d/nvidia_icd.json
    [ -z "$GPU" ] || [ ! -f "$icd" ] || export VK_DRIVER_FILES=${VK_DRIVER_FILES:-$icd}
done
ADAPTER=NVIDIA
[ -z "$EMULATOR" ] || ADAPTER=llvmpipe

# Only our programs get the libraries; Python finds its own.
cuda() {
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" env LD_LIBRARY_PATH="$LIBRARIES" \
        ${EMULATOR:+GRITLM_EMULATOR=1} "$@"
}
tests() {
    local name=$1 limit=$2
    shift 2
    cuda "$name" "$limit" "$BIN/tests" --test-threads 1 "$@"
}
sanitized() {
    local name=$1 limit=$2 tool=$3
    shift 3
    cuda "$name" "$limit" "$SANITIZER" --tool "$tool" --error-exitcode 9 --print-limit 20 \
        "$BIN/tests" --test-threads 1 "$@"
}
# $1 part, $2 seconds, $3… what `gritlm bench` is to do on the GPU. It writes at its end, so that a
# part that is stopped has no rows: hence many small parts.
bench() {
    local name=$1 limit=$2
    shift 2
    cuda "$name" "$limit" env GRITLM_COMMIT="$commit" "$BIN/gritlm" bench "$@" --device cuda:0 \
        --json "$WORK/$name.json" ${EMULATOR:+--kernels "$EMULATOR"}
}
# The shapes that the peers have, too.
sizes() {
    "$PYTHON" benches/peers/torch/shapes.py ${EMULATOR:+--quick} "$1"
}
LIKE=$(sizes like) || exit 2
HOW=(--repeats 7)
[ -z "$EMULATOR" ] || HOW=(--repeats 1 --displace 0)
# $1 part, $2 seconds, $3 filter, $4… more arguments.
ops() {
    local name=$1 limit=$2 filter=$3
    shift 3
    bench "$name" "$limit" ops --filter "$filter" --batches "$(sizes batches)" "${HOW[@]}" "$@"
}

# 1. Is it right?
if [ -n "$GPU$EMULATOR" ]; then
    # Also compiles all kernels, which the others then find.
    tests cuda-matrices 75 cuda::matrices_arrive_whole
    if [ -n "$GPU" ]; then
        tests cuda-cases 50 cuda::every_case_on_cuda
        tests cuda-forms 40 cuda::every_form_of_a_product
        tests cuda-golden 40 cuda:: --skip every_case --skip every_form --skip matrices_arrive
    else
        absent 'takes long on the emulator; cargo test runs it' cuda-cases cuda-forms
        tests cuda-golden 100 cuda::demo_embeddings_are_near_the_cpus cuda::what_does_not_fit
    fi
else
    absent 'no NVIDIA GPU' cuda-matrices cuda-cases cuda-forms cuda-golden
fi
export GRITLM_EXPECT_ADAPTERS=$ADAPTER
if [ -n "$GPU" ]; then
    if part vulkan-adapter 20 "$BIN/tests" --test-threads 1 shaders::adapters_are_listed; then
        part vulkan-cases 50 "$BIN/tests" --test-threads 1 ops::every_case_on_every_adapter
        part vulkan-golden 40 "$BIN/tests" --test-threads 1 golden::
    else
        absent 'no NVIDIA GPU through Vulkan' vulkan-cases vulkan-golden
    fi
else
    absent 'no NVIDIA GPU' vulkan-adapter vulkan-cases vulkan-golden
fi

# 2. Does it stay within bounds, without races? A small model first, which has nearly all kernels;
# the case table last of all, with the time that is left: here everything is up to 50 times slower.
SANITIZER=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -z "$GPU" ]; then
    absent 'no NVIDIA GPU' memcheck-model racecheck-model memcheck-cases racecheck-cases
elif [ -z "$SANITIZER" ]; then
    absent 'no compute-sanitizer' memcheck-model racecheck-model memcheck-cases racecheck-cases
else
    sanitized memcheck-model 35 memcheck cuda::same_bits_twice cuda::demo_embeddings
    sanitized racecheck-model 45 racecheck cuda::same_bits_twice
fi

# 3. How fast? A process for each group of ops, which also measures the limits beside it.
if [ -n "$GPU$EMULATOR" ]; then
    dense=(--like "$LIKE" --rows "$(sizes rows)")
    ops cuda-qkv 25 qkv "${dense[@]}"
    ops cuda-linear-add 35 linear_add "${dense[@]}"
    ops cuda-gate-up 30 gate_up "${dense[@]}"
    ops cuda-logits 30 logits "${dense[@]}"
    ops cuda-attention 30 'attention T' --like "$LIKE" --contexts "$(sizes prefill)"
    for context in $(sizes contexts | tr , ' '); do
        ops "cuda-decode-$context" 40 'attention batch' --like "$LIKE" --contexts "$context"
    done
    ops cuda-experts 60 expert --like "$(sizes mixture)" --rows "$(sizes expert_rows)"
    for op in rmsnorm embed pool sample search; do
        ops "cuda-$op" 20 "$op " "${dense[@]}"
    done
else
    absent 'no NVIDIA GPU' cuda-ops
fi

# 4. And PyTorch?
on=(--device cuda)
[ -z "$EMULATOR" ] || on=(--device cpu --quick)
if [ -z "$GPU$EMULATOR" ]; then
    absent 'no NVIDIA GPU' torch-ops
elif grep -q '^PyTorch=not' "$WORK/env.txt"; then
    absent 'no PyTorch' torch-ops
else
    part torch-ops 70 "$PYTHON" benches/peers/torch/ops.py "${on[@]}" \
        --output "$WORK/torch-ops.jsonl"
fi

# 5. A whole model, with random weights: little of it, then all; how they get to the GPU.
if [ -n "$GPU$EMULATOR" ]; then
    bench cuda-model-quick 45 model --like "$LIKE" --quick "${HOW[@]}"
    [ -n "$EMULATOR" ] || bench cuda-model 100 model --like "$LIKE" --repeats 3 \
        --batch-tokens "$(sizes batch_tokens)"
    bench cuda-upload 40 load --like "$LIKE" --repeats 3
else
    absent 'no NVIDIA GPU' cuda-model-quick cuda-model cuda-upload
fi

# 6. The WGSL backend on the same GPU.
wgsl_ops() {
    local name=$1 limit=$2 filter=$3
    shift 3
    part "$name" "$limit" env GRITLM_COMMIT="$commit" "$BIN/gritlm" bench ops --like "$LIKE" \
        --device "wgpu:$ADAPTER" --filter "$filter" --batches 1 "${HOW[@]}" \
        --json "$WORK/$name.json" "$@"
}
if [ -n "$GPU" ]; then
    wgsl_ops vulkan-linear-add 30 linear_add --rows 1,16,512
    wgsl_ops vulkan-attention 30 attention --contexts 512
    part vulkan-bench 45 "$BIN/gpu" matmul matvec attention --device "$ADAPTER" \
        --output "$WORK/gpu-ops.json"
    part vulkan-decode 45 "$BIN/gpu" decode --device "$ADAPTER" --output "$WORK/gpu-decode.json"
elif [ -n "$EMULATOR" ]; then
    wgsl_ops vulkan-linear-add 30 linear_add --rows "$(sizes rows)"
    part vulkan-bench 45 "$BIN/gpu" matvec --device "$ADAPTER" --repeats 1 \
        --output "$WORK/gpu-ops.json"
else
    absent 'no NVIDIA GPU' vulkan-linear-add vulkan-attention vulkan-bench vulkan-decode
fi

# 7. The same model by Hugging Face.
if [ -z "$GPU$EMULATOR" ]; then
    absent 'no NVIDIA GPU' torch-model
elif grep -q '^PyTorch=not' "$WORK/env.txt"; then
    absent 'no PyTorch' torch-model
else
    part torch-model 60 "$PYTHON" benches/peers/torch/model.py "${on[@]}" \
        --output "$WORK/torch-model.jsonl"
fi

# 8. Loading from files, which are written for it: to memory where there is room.
model_folder() {
    local folder free
    for folder in ${TMPDIR:+"$TMPDIR"} /dev/shm /tmp "$WORK"; do
        free=$(df -Pk "$folder" 2>/dev/null | awk 'NR == 2 { print $4 }')
        if [ "${free:-0}" -gt $((18 * 1024 * 1024)) ] || [ -n "$EMULATOR" ]; then
            mktemp -d "$folder/gritlm-device.XXXXXX" && return
        fi
    done
}
if [ -n "$GPU$EMULATOR" ] && MODEL=$(model_folder) && [ -n "$MODEL" ]; then
    if part synth 60 "$BIN/gritlm" synth --like "$LIKE" --output "$MODEL/$LIKE"; then
        bench cuda-load 60 load --model "$MODEL/$LIKE" --repeats 1
    else
        absent 'no checkpoint' cuda-load
    fi
    rm -rf "$MODEL"
else
    absent 'no NVIDIA GPU, or no room for a checkpoint' synth cuda-load
fi

if [ -n "$GPU" ] && [ -n "$SANITIZER" ]; then
    sanitized memcheck-cases 90 memcheck cuda::every_case_on_cuda
    sanitized racecheck-cases 120 racecheck cuda::every_case_on_cuda
fi

echo "[$SECONDS s] all: $OUT"
cat "$OUT/table.md"
