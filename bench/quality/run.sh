#!/usr/bin/env bash
# The published quality figures: bench/quality/run.sh DATA [OUT [part ...]]
#
# DATA is a folder of evaluation sets as JSON Lines (see the README, "Evaluate"). OUT (bench/results/quality unless given) receives a JSON,
# a table and plots per part. Finished examples are kept, so an interrupted part goes on where it was. On a CPU a part takes hours.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data=${1:?give the folder of evaluation sets}
out=${2:-bench/results/quality}
shift $(($# < 2 ? $# : 2))
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(samples open own paper likelihood tune)
evaluate=("${PYTHON:-python3}" -m lad_engine.evaluate)
prompts=bench/quality/prompts.txt
mkdir -p "$out"

for part in "${parts[@]}"; do
    case $part in
        samples) "${evaluate[@]}" --samples --prompts "$prompts" --out bench/quality/outputs_default.txt ;;
        # Quality against steps, with and without re-noising.
        open) "${evaluate[@]}" --tasks open --prompts "$prompts" --step-counts 8,16,32,64 --out "$out/open.json" ;;
        # The adapter's own profile, one block of it: what these tasks ask for is a letter, a word, or a gap of known length.
        own) "${evaluate[@]}" --tasks arc_easy,arc_challenge,mmlu,hellaswag,piqa,lambada,rocstories --data "$data" --limit 200 \
            --profile adapter --max-new-tokens 8 --steps 8 --scoring generation --out "$out/own.json" ;;
        # The paper's protocol: a window of 256 positions.
        paper) "${evaluate[@]}" --tasks arc_easy,arc_challenge,mmlu,hellaswag,piqa,gsm8k --data "$data" --limit 200 \
            --scoring generation --out "$out/paper.json" ;;
        likelihood) "${evaluate[@]}" --tasks arc_easy,arc_challenge,mmlu,hellaswag,piqa,lambada --data "$data" --limit 200 \
            --scoring likelihood --copies 16 --out "$out/likelihood.json" ;;
        # Runs what the model wrote, in a sandbox.
        code) "${evaluate[@]}" --tasks humaneval --data "$data" --allow-code-execution --scoring generation --out "$out/code.json" ;;
        tune) "${evaluate[@]}" --tune-profile --floor 2% --prompts bench/quality/tuning_prompts.txt --out "$out/tune.json" ;;
        *) echo "run.sh: $part is not a part, expected samples, open, own, paper, likelihood, code or tune." >&2 && exit 2 ;;
    esac
done
