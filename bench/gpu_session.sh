#!/usr/bin/env bash
# Everything that proves and measures on a GPU, in order of value: bench/gpu_session.sh [OUT [part ...]]
#
# OUT (bench/results unless given) receives one JSON file per part, written as it goes, and logs in OUT/logs. A part that fails or runs out
# of its time is named at the end, and the next one runs. Needs no network: the package is installed from this folder where setuptools is
# here, and used from it in any case. LAD_BENCH_QUICK=1 takes sizes that prove the script, on a CPU too; PYTHON and PART_SECONDS can be set.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/bench/results}
shift || true
all_parts=(environment first_contact tests ops step_1b step_8b step_135m decode_1b decode_8b families tune step_8b_fp8 memory invariant sanitizer targets)
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=("${all_parts[@]}")
python=${PYTHON:-$(command -v python3 || command -v python)}
seconds=${PART_SECONDS:-590}
quick=()
[[ ${LAD_BENCH_QUICK:-0} == 1 ]] && quick=(--quick)

mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
cd "$root" || exit 1
# In a clone `lad_engine` finds `kernels/` beside itself, so this one line is all an uninstalled tree needs.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
gpu=$("$python" -c 'from bench.results import device_slug; print(device_slug())') || exit 1
[[ $gpu == cpu ]] && eight_bits=int8 || eight_bits=fp8
failed=()

# Runs one command of a part under the part's time limit, its output shown and kept.
run() {
    local part=$1 started=$SECONDS status
    shift
    printf '\n== %s: %s\n' "$part" "$*"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$out/logs/$part.log" | cut -c1-2000
    status=${PIPESTATUS[0]}
    printf -- '-- %s: exit %s after %s s\n' "$part" "$status" "$((SECONDS - started))"
    [[ $status -eq 0 ]] || failed+=("$part (exit $status)")
    return "$status"
}

bench() {
    local part=$1 module=$2
    shift 2
    run "$part" "$python" -m "bench.$module" "$@" "${quick[@]}" --out "$out/${part}_$gpu.json"
}

environment() {
    nvidia-smi 2>/dev/null || echo "no nvidia-smi here"
    # Optional: the tree works without it. What it adds is the C++ extension for the CPU.
    if [[ ${LAD_BENCH_INSTALL:-1} == 1 && ${#quick[@]} -eq 0 ]]; then
        "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index -e . >"$out/logs/install.log" 2>&1 ||
            echo "pip install -e . does not work here (see logs/install.log); the tree is used as it is."
    fi
    run environment "$python" -c 'import json, lad_engine.kernels.op; from bench.results import conditions
from lad_engine.ops import select_ops; import torch
print(json.dumps(conditions(), indent=1)); print(select_ops(device="cuda" if torch.cuda.is_available() else "cpu").table())'
}

tests() {
    # Without the options of plugins that may be missing here; a file whose imports are missing is an error of its own, not the end.
    local options=(-q -o "addopts=-ra --strict-markers" -p no:cacheprovider --continue-on-collection-errors)
    local timed=()
    "$python" -c 'import pytest_benchmark' 2>/dev/null || timed=(--ignore=tests/ops/test_op_speed.py)
    local marked
    mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
    run tests_gpu "$python" -m pytest "${options[@]}" -m gpu "${marked[@]}"
    # The op tests again, now on the GPU's kernels, and what decodes with them.
    [[ ${#quick[@]} -gt 0 ]] ||
        run tests_ops "$python" -m pytest "${options[@]}" -m "not gpu" "${timed[@]}" tests/ops tests/runtime tests/denoisers
}

sanitizer() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not on this machine; the kernels run without it."
        run sanitizer "$python" -m bench.sanitize --most 2
        return
    fi
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    run memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m bench.sanitize --most 4
    run racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$python" -m bench.sanitize --most 3
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
}

for part in "${parts[@]}"; do
    case $part in
        environment) environment ;;
        first_contact) bench first_contact first_contact ;;
        tests) tests ;;
        ops) bench ops ops ;;
        step_1b) bench step_1b step --models Llama-3.2-1B --canvas 256 512 ;;
        step_8b) bench step_8b step --models Llama-3.1-8B --canvas 512 ;;
        step_135m) bench step_135m step --models SmolLM2-135M --canvas 256 ;;
        # A CPU has no fp8 products: there the dry run takes int8.
        step_8b_fp8) bench step_8b_fp8 step --models Llama-3.1-8B --canvas 512 --precision "$eight_bits" --only ours ;;
        memory) bench memory step --models Llama-3.1-8B --canvas 2048 --batch 8 --only ours ;;
        decode_1b) bench decode_1b decode --models Llama-3.2-1B ;;
        decode_8b) bench decode_8b decode --models Llama-3.1-8B --prompt 64 --batch 1 8 --steps 8 16 64 --repeats 3 ;;
        families) bench families families.decode ;;
        invariant) bench invariant step --models Llama-3.2-1B --canvas 256 --batch 1 8 --batch-invariant --only ours ;;
        # Not among the parts that run unasked: it needs the default base in LAD_CACHE, or a network to fetch it.
        trained) bench trained decode --trained ;;
        # Beside the other results: a table is looked at before it goes into kernels/tuned/.
        tune) bench tune tune --tables "$out/tuned" ;;
        sanitizer) sanitizer ;;
        targets) run targets "$python" -m bench.targets "$out" ;;
        *)
            echo "part is '$part', expected some of: ${all_parts[*]} trained"
            failed+=("$part (unknown)")
            ;;
    esac
done

if [[ ${#failed[@]} -gt 0 ]]; then
    printf '\nfailed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
printf '\nall parts done: %s\n' "${parts[*]}"
