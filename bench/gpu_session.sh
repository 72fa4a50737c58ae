#!/usr/bin/env bash
# Everything that proves and measures on a GPU, in order of value: bench/gpu_session.sh [OUT [part ...]]
#
# OUT (bench/results unless given) receives one JSON file per part, written as it goes, and logs in OUT/logs. A part that fails or runs out
# of its time is named at the end, and the next one runs. Without parts, those that an earlier call into the same OUT has begun are left
# out, so that a call cut short is gone on with. Needs no network and no checkpoint: weights are random. The package is installed from this
# folder where setuptools is here (LAD_BENCH_INSTALL=0: never), and used from it in any case.
#
#   SESSION_SECONDS=580 bench/gpu_session.sh results      where one command may take ten minutes: no part begins that could not end
#   PART_SECONDS=120                                      no part takes longer than this
#   LAD_BENCH_ARCHIVE=results.tgz                         OUT packed as one file after every part
#   LAD_BENCH_QUICK=1                                     sizes that prove the script, on a CPU too; PYTHON names another interpreter
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/bench/results}
shift || true
# Parts and the seconds each may take. The first eleven measure every target; half an hour holds them.
order=(environment first_contact tests head step_1b step_135m step_8b decode_1b memory step_8b_fp8 decode_8b
    ops tune tuned invariant families train tests_ops sanitizer targets)
declare -A limits=([environment]=60 [first_contact]=180 [tests]=330 [head]=90 [step_1b]=330 [step_135m]=200 [step_8b]=420 [decode_1b]=240
    [memory]=90 [step_8b_fp8]=120 [decode_8b]=200 [ops]=420 [tune]=580 [tuned]=150 [invariant]=90 [families]=400
    [train]=200 [tests_ops]=330 [sanitizer]=400 [targets]=60)
python=${PYTHON:-$(command -v python3 || command -v python)}
quick=()
[[ ${LAD_BENCH_QUICK:-0} == 1 ]] && quick=(--quick)

mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
archive=${LAD_BENCH_ARCHIVE:+$(realpath -m "$LAD_BENCH_ARCHIVE")}
cd "$root" || exit 1
parts=("$@")
if [[ ${#parts[@]} -eq 0 ]]; then
    for part in "${order[@]}"; do
        # The table of the targets is made from what is there, so it is always made again.
        [[ $part != targets ]] && grep -qx "$part" "$out/logs/begun" 2>/dev/null || parts+=("$part")
    done
fi
# In a clone `lad_engine` finds `kernels/` beside itself, so this one line is all an uninstalled tree needs.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
gpu=$("$python" -c 'from bench.results import device_slug; print(device_slug())') || exit 1
[[ $gpu == cpu ]] && eight_bits=int8 || eight_bits=fp8
failed=()
left_over=()

# The seconds a part may still take, nothing where its own limit would reach beyond the session.
allowed() {
    local own=${limits[$1]:-590}
    [[ -n ${PART_SECONDS:-} && $PART_SECONDS -lt $own ]] && own=$PART_SECONDS
    [[ -z ${SESSION_SECONDS:-} || $((SECONDS + own)) -le $SESSION_SECONDS ]] && echo "$own"
}

# Runs one command of a part under the part's time limit, its output shown and kept.
run() {
    local name=$1 started=$SECONDS status
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$out/logs/$name.log" | cut -c1-2000
    status=${PIPESTATUS[0]}
    printf -- '-- %s: exit %s after %s s\n' "$name" "$status" "$((SECONDS - started))"
    [[ $status -eq 0 ]] || failed+=("$name (exit $status)")
    return "$status"
}

bench() {
    local name=$1 module=$2
    shift 2
    run "$name" "$python" -m "bench.$module" "$@" "${quick[@]}" --out "$out/${name}_$gpu.json"
}

step() {
    local name=$1
    shift
    bench "$name" step "$@"
}

environment() {
    nvidia-smi 2>/dev/null || echo "no nvidia-smi here"
    # Optional: the tree works without it. What it adds is the C++ extension, which lays requests out on the host.
    if [[ ${LAD_BENCH_INSTALL:-1} == 1 && ${#quick[@]} -eq 0 ]]; then
        timeout "$seconds" "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index -e . >"$out/logs/install.log" 2>&1 ||
            echo "pip install -e . does not work here (see logs/install.log); the tree is used as it is."
    fi
    run environment "$python" -c 'import json, lad_engine.kernels.op; from bench.results import conditions
from lad_engine.ops import select_ops; import torch
print(json.dumps(conditions(), indent=1)); print(select_ops(device="cuda" if torch.cuda.is_available() else "cpu").table())'
}

# Tests in several processes, without the options of plugins that may be missing here.
shards() {
    local name=$1 count=()
    shift
    [[ ${#quick[@]} -eq 0 ]] || count=(--shards 1)
    run "$name" "$python" -m bench.shards "${count[@]}" --logs "$out/logs/$name" -- \
        -q -o "addopts=-ra --strict-markers" -p no:cacheprovider "$@"
}

tests() {
    local marked
    mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
    shards tests -m gpu "${marked[@]}"
}

# The op tests that take a GPU's kernels where there is one; in the quick run one file of them.
tests_ops() {
    local files
    mapfile -t files < <(grep -lE 'cuda\.is_available|def test_.*\bdevice\b' tests/ops/test_*.py)
    [[ ${#quick[@]} -eq 0 ]] || files=(tests/ops/test_gaussian_noise.py)
    shards tests_ops -m "not gpu" "${files[@]}"
}

# The steps again with the table that `tune` wrote, which is put where the engine reads it and taken away afterwards.
tuned() {
    local table=$out/tuned/$gpu.json kept=kernels/tuned/$gpu.json
    if [[ ! -f $table ]]; then
        echo "there is no $table: run the part tune first."
        return
    fi
    mkdir -p kernels/tuned "$out/after_tuning"
    [[ ! -f $kept ]] || cp "$kept" "$out/logs/table_before.json"
    cp "$table" "$kept"
    run tuned_step "$python" -m bench.step --models Llama-3.2-1B Llama-3.1-8B SmolLM2-135M --canvas 256 512 --only ours \
        --out "$out/after_tuning/step_$gpu.json"
    if [[ -f $out/logs/table_before.json ]]; then mv "$out/logs/table_before.json" "$kept"; else rm "$kept"; fi
}

sanitizer() {
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not on this machine; the kernels run without it."
        run sanitizer "$python" -m bench.sanitize --most 2
        return
    fi
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    seconds=$((seconds / 2))
    run memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m bench.sanitize --most 4
    run racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$python" -m bench.sanitize --most 3
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
}

one() {
    case $1 in
        environment | tests | tests_ops | tuned | sanitizer) "$1" ;;
        first_contact) bench first_contact first_contact ;;
        # What one target needs of `ops`, which comes late.
        head) bench head ops --models Llama-3.2-1B --ops lm_head --canvas 256 ;;
        step_1b) step step_1b --models Llama-3.2-1B --canvas 256 512 ;;
        step_8b) step step_8b --models Llama-3.1-8B --canvas 512 ;;
        step_135m) step step_135m --models SmolLM2-135M --canvas 256 ;;
        # A CPU has no fp8 products: there the dry run takes int8.
        step_8b_fp8) step step_8b_fp8 --models Llama-3.1-8B --canvas 512 --precision "$eight_bits" --only ours ;;
        memory) step memory --models Llama-3.1-8B --canvas 2048 --batch 8 --only ours --repeats 3 ;;
        invariant) step invariant --models Llama-3.2-1B --canvas 256 --batch 1 8 --batch-invariant --only ours ;;
        # Batch 1 first: it has the targets.
        decode_1b) bench decode_1b decode --models Llama-3.2-1B --steps 16 8 32 64 --batch 1 2 4 8 ;;
        decode_8b) bench decode_8b decode --models Llama-3.1-8B --prompt 64 --batch 1 --steps 16 8 64 --repeats 3 --no-generate ;;
        families) bench families families.decode ;;
        train) bench train train --models Llama-3.2-1B --examples 128 --warm-up 1 ;;
        # Not among the parts that run unasked: it needs the default base in LAD_CACHE, or a network to fetch it.
        trained) bench trained decode --trained ;;
        ops) bench ops ops ;;
        # Beside the other results: a table is looked at before it goes into kernels/tuned/.
        tune) bench tune tune --tables "$out/tuned" ;;
        targets) run targets "$python" -m bench.targets "$out" "$out/after_tuning" ;;
        *)
            echo "part is '$1', expected some of: ${order[*]} trained"
            failed+=("$1 (unknown)")
            ;;
    esac
}

for part in "${parts[@]}"; do
    seconds=$(allowed "$part")
    if [[ -z $seconds ]]; then
        left_over+=("$part")
        continue
    fi
    [[ -z ${limits[$part]:-} ]] || echo "$part" >>"$out/logs/begun"
    one "$part"
    [[ -z $archive ]] || tar -czf "$archive" -C "$out" .
done

[[ ${#left_over[@]} -eq 0 ]] || printf '\nno time left for: %s\n' "${left_over[*]}"
if [[ ${#failed[@]} -gt 0 ]]; then
    printf '\nfailed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
[[ ${#left_over[@]} -gt 0 ]] || printf '\nall parts done: %s\n' "${parts[*]}"
