#!/usr/bin/env bash
# Runs every fuzz target for a while, from its kept seeds and from what earlier runs have found.
# Usage: tests/fuzz/run.sh [BUILD_FOLDER] [SECONDS]      (default: build/fuzz-clang, 30)
#
# Seeds of fuzz_X are tests/fuzz/seeds/X/ (in the repository) and the tiny model for fuzz_gguf; a
# dictionary is tests/fuzz/X.dict. An input that crashes, hangs or eats memory is kept under
# BUILD_FOLDER/crashes and fails the run.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build/fuzz-clang}
seconds=${2:-30}
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export OMP_NUM_THREADS=1

passed=0 failed=0
mkdir -p "$build/crashes"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for program in "$build"/tests/fuzz_*; do
    if [ ! -x "$program" ] || [ ! -e "tests/fuzz/${program##*/}.c" ]; then continue; fi
    name=${program##*/fuzz_}
    corpus=$build/corpus/$name
    mkdir -p "$corpus"
    folders=("$corpus")
    [ ! -d "tests/fuzz/seeds/$name" ] || folders+=("tests/fuzz/seeds/$name")
    if [ "$name" = gguf ] && [ -x "$build/tests/tiny_model" ]; then
        "$build/tests/tiny_model" "$corpus/tiny.gguf" > /dev/null 2>&1 || true
    fi
    options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
        -artifact_prefix="$build/crashes/$name-")
    [ ! -e "tests/fuzz/$name.dict" ] || options+=(-dict="tests/fuzz/$name.dict")
    if "$program" "${options[@]}" "${folders[@]}" > "$log" 2>&1 < /dev/null; then
        passed=$((passed + 1))
        awk -v name="$name" '/stat::number_of_executed_units/ { n = $2 } /stat::new_units_added/ { a = $2 }
            END { printf "ok    fuzz_%-18s %d runs, %d new inputs\n", name, n, a }' "$log"
    else
        failed=$((failed + 1))
        echo "FAIL  fuzz_$name"
        tail -n 60 "$log" | sed 's/^/    | /'
    fi
done
[ $((passed + failed)) -gt 0 ] || echo "fuzz/run.sh: no fuzz targets in $build/tests" >&2
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
