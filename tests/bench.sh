#!/usr/bin/env bash
# Speed of pcomp on this machine, and beside llama.cpp (llama-cpp-python) when python3 has it: prefill
# of 2,048 and 8,192 tokens, and decode, on the same model and threads. The two take turns, three
# times each, so that a machine that slows down slows both; the ratio is of the means.
# Usage: tests/bench.sh [MODEL]      (default: models/SmolLM2-135M-Instruct.Q4_1.gguf)
#        REPEATS=3 THREADS=<cores>
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
repeats=${REPEATS:-3}
threads=${THREADS:-$(nproc)}
pcomp=build/pcomp

"$pcomp" bench -m "$model"

if ! python3 -c 'import llama_cpp' 2> /dev/null; then
    echo "No comparison: python3 has no llama_cpp (pip install llama-cpp-python)." >&2
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for ((i = 1; i <= repeats; i++)); do
    echo "Comparison, round $i of $repeats" >&2
    "$pcomp" bench -m "$model" --threads "$threads" --repeats 1 --format json > "$work/pcomp.$i"
    python3 tests/bench_llama.py "$model" "$threads" > "$work/llama.$i"
done
python3 tests/bench_llama.py --table "$work"/pcomp.* "$work"/llama.*
