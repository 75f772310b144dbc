#!/usr/bin/env bash
# Everything that wants a GPU, into one folder: tests, kernels, tuning, the step, the pipeline, inference.
#
#   bench/gpu.sh [FOLDER]        about 20 minutes; FOLDER is gpu-results by default
#   bench/gpu.sh --dry-run       needs no GPU: says what would run, and that all of it can start
#
# It needs pip install -e '.[dev,bench]'; for TensorRT, whose parts are left out without it, TensorRT 10's libraries.
#
# Each part writes NAME.txt, and JSON where it has figures; summary.txt says how each ended. figures.txt has the suite's
# figures as a table, figures.png as a picture. A part that fails does not keep the others from running; the exit status
# is then 1.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
dry=
if [ "${1:-}" = --dry-run ]; then
    dry=1
    shift
fi
out=$(realpath -m "${1:-gpu-results}")
failed=0
commands=() # of the dry run: words of a line are separated by tabs
json=()

part() { # NAME COMMAND...
    local name=$1 began=$SECONDS status
    shift
    if [ -n "$dry" ]; then
        echo "$name: $*"
        [ "$1" = nvidia-smi ] || commands+=("$(printf '%s\t' "$name" "$@")")
        return
    fi
    case $1 in
    pytest | engine.* | bench.* | kernels.*) set -- "$python" -m "$@" ;;
    esac
    "$@" >"$out/$name.txt" 2>&1
    status=$?
    if [ $status -ne 0 ]; then failed=1; fi
    echo "$name: exit status $status, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
}

suite() { # NAME...: files of the benchmark suite
    local name
    for name in "$@"; do
        part "$name" pytest "bench/test_$name.py" --benchmark-only --benchmark-json="$out/$name.json"
        if [ -n "$dry" ] || [ -s "$out/$name.json" ]; then json+=("$out/$name.json"); fi
    done
}

if [ -z "$dry" ]; then
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "bench/gpu.sh: torch finds no GPU; --dry-run needs none" >&2
        exit 2
    fi
    mkdir -p "$out" || exit 2
    : >"$out/summary.txt"
    rm -rf "$out/run" # of the time before
fi

part nvidia-smi nvidia-smi
part tests pytest tests -m gpu
suite kernels step
part tuning bench.tune --json "$out/tuning.json"
suite loaders inference checkpoint startup
part figures bench.summary "${json[@]}" --out "$out/figures.png"
part train engine.train --preset paper --epochs 3 --amp --device cuda --out "$out/run"
part export engine.export "$out/run"
part export-fp16 engine.export "$out/run" --precision fp16
photographs=$("$python" -c 'from pipelines.sample import sample_dir; print(sample_dir() / "images")')
devices=(cuda)
missing='from engine.session import missing; print(missing("tensorrt") or "")'
if [ -n "$dry" ] || [ -z "$("$python" -c "$missing" 2>/dev/null || echo no)" ]; then
    devices+=(tensorrt)
else
    echo "infer-tensorrt: left out, TensorRT is not installed" | tee -a "$out/summary.txt"
fi
for device in "${devices[@]}"; do
    for model in model model-fp16; do
        part "infer-$device-$model" engine.infer "$out/run/$model.onnx" "$photographs" --device "$device" \
            --out "$out/$device-$model.csv"
    done
done

if [ -n "$dry" ]; then
    printf '%s\n' "${commands[@]}" | "$python" -m bench.dry_run || failed=1
fi
exit $failed
