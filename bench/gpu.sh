#!/usr/bin/env bash
# Everything that wants a GPU, into one folder: tests, kernels, tuning, the step, the pipeline, inference.
#
#   bench/gpu.sh [FOLDER]        about 15 minutes; FOLDER is gpu-results by default
#   bench/gpu.sh --dry-run       needs no GPU: says what would run, and that all of it can start
#
# Each part writes NAME.txt, and JSON where it has figures; summary.txt says how each ended. A part that fails does not
# keep the others from running; the exit status is then 1.
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

part() { # NAME COMMAND...
    local name=$1
    shift
    if [ -n "$dry" ]; then
        echo "$name: $*"
        case $1 in
        pytest) set -- "$@" --collect-only -q ;;
        nvidia-smi) return ;;
        *) set -- "$@" --help ;;
        esac
    fi
    case $1 in
    pytest | engine.* | bench.* | kernels.*) set -- "$python" -m "$@" ;;
    esac
    local began=$SECONDS status
    if [ -n "$dry" ]; then
        "$@" >/dev/null 2>&1
    else
        "$@" >"$out/$name.txt" 2>&1
    fi
    status=$?
    if [ $status -ne 0 ]; then failed=1; fi
    if [ -n "$dry" ]; then
        [ $status -eq 0 ] || echo "$name does not start: exit status $status"
    else
        echo "$name: exit status $status, $((SECONDS - began)) s" | tee -a "$out/summary.txt"
    fi
}

if [ -z "$dry" ]; then
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "bench/gpu.sh: torch finds no GPU; --dry-run needs none" >&2
        exit 2
    fi
    mkdir -p "$out" || exit 2
    : >"$out/summary.txt"
    "$python" -c 'import platform, torch, triton, os
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__, platform.platform(), os.cpu_count(), "cores")' |
        tee "$out/machine.txt"
fi

part nvidia-smi nvidia-smi
part tests pytest tests -m gpu
part kernels pytest bench/test_kernels.py --benchmark-only --benchmark-json="$out/kernels.json"
part step pytest bench/test_step.py --benchmark-only --benchmark-json="$out/step.json"
part tuning bench.tune --json "$out/tuning.json"
part loaders pytest bench/test_loaders.py --benchmark-only --benchmark-json="$out/loaders.json"
part inference pytest bench/test_inference.py --benchmark-only --benchmark-json="$out/inference.json"
part train engine.train --preset paper --epochs 3 --amp --device cuda --out "$out/run"
part export engine.export "$out/run"
photographs=$("$python" -c 'from pipelines.sample import sample_dir; print(sample_dir() / "images")')
part infer engine.infer "$out/run/model.onnx" "$photographs" --device cuda --out "$out/answers.csv"
part infer-tensorrt engine.infer "$out/run/model.onnx" "$photographs" --device tensorrt --out "$out/trt.csv"
exit $failed
