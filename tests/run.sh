#!/usr/bin/env bash
# Runs what has been built: the unit tests, the command-line tests and the dependency rule.
# Usage: tests/run.sh [BUILD_FOLDER] [unit|e2e|deps|cuda]...      (default: build/cpu, the first three)
#
# Every part speaks TAP and is counted the same way. Of a failing program all but its passed tests
# is shown; a program that ends by a signal, hangs, or stops before its plan is done has failed.
# The last line is "N passed, N failed, N skipped"; the exit status is 1 when a test failed or none
# ran.
#
# For the tests: PCOMP and EVAL, the programs; TINY, a tiny model; PCOMP_MODELS, the folder of real models,
# and PCOMP_SHARED, the folder of reference data beside the repository: unset when not there.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
build=${1:-build/cpu}
shift || true
[ $# -gt 0 ] || set -- unit e2e deps
limit=${TEST_TIMEOUT:-900} # seconds for one program

ulimit -c 0 # no core files of tests that crash
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

case $build in
/*) ;;
*) build=$root/$build ;;
esac
export PCOMP=$build/pcomp EVAL=$build/pcomp-eval
if [ -z "${PCOMP_MODELS:-}" ] && [ -d models ]; then export PCOMP_MODELS=$root/models; fi
if [ -z "${PCOMP_SHARED:-}" ] && [ -d ../shared ]; then
    PCOMP_SHARED=$(cd ../shared && pwd)
    export PCOMP_SHARED
fi
# threads that wait should not keep a busy machine's cores from those that work
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

# Reads TAP (cmocka's and bats') and prints: passed failed skipped planned, then a line for each skip.
# cmocka gives a skip no reason: the line that the test printed before it is taken for one.
read -r -d '' summary << 'AWK' || true
/^[0-9]+\.\.[0-9]+/ { split($1, plan, /\.\./); planned += plan[2]; next }
/^(not )?ok [0-9]+ # (SKIP|skip)/ {
    skipped++; name = $0; sub(/^.*# (SKIP|skip) */, "", name)
    reasons = reasons "      skip  " name (said != "" ? ": " said : "") "\n"; said = ""; next
}
/^ok [0-9]+ .*# (SKIP|skip)/ {
    skipped++; name = $0; sub(/^ok [0-9]+ /, "", name); sub(/ # (SKIP|skip) */, ": ", name)
    reasons = reasons "      skip  " name "\n"; said = ""; next
}
/^ok [0-9]+/ { passed++; said = ""; next }
/^not ok [0-9]+/ { failed++; said = ""; next }
{ said = $0; sub(/^(SKIP|skip|skipped):? */, "", said) }
END { print passed + 0, failed + 0, skipped + 0, planned + 0; printf "%s", reasons }
AWK

# run NAME COMMAND...: runs one program that speaks TAP, counts and shows.
run() {
    execute "$@"
    report "$1"
}

# execute NAME COMMAND...: leaves what it said in NAME.out and NAME.err, then its exit status and seconds in NAME.end.
execute() {
    local name=$1 status begin
    shift
    begin=$(date +%s.%N)
    { timeout -k 5 "$limit" "$@" > "$work/$name.out" 2> "$work/$name.err" < /dev/null; } 2> /dev/null
    status=$?
    awk -v status=$status -v begin="$begin" -v end="$(date +%s.%N)" \
        'BEGIN { printf "%d %.1f\n", status, end - begin }' > "$work/$name.now"
    mv "$work/$name.now" "$work/$name.end"
}

report() {
    local name=$1 status p f s planned why="" seconds
    read -r status seconds < "$work/$name.end"
    awk "$summary" "$work/$name.out" > "$work/sum"
    read -r p f s planned < "$work/sum"
    if [ "$status" -eq 124 ]; then
        why="was stopped after $limit s"
    elif [ "$status" -gt 128 ]; then
        why="died of signal $((status - 128)) ($(kill -l $((status - 128))))"
    elif [ "$planned" -eq 0 ] && ! grep -q '^1\.\.0' "$work/$name.out"; then
        why="printed no plan (exit status $status)"
    elif [ $((p + f + s)) -ne "$planned" ]; then
        why="ran $((p + f + s)) of $planned tests (exit status $status)"
    elif [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then
        why="exit status $status"
    fi
    [ -z "$why" ] || f=$((f + 1))
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    local word=ok
    [ "$f" -eq 0 ] || word=FAIL
    awk -v word=$word -v name="$name" -v p="$p" -v f="$f" -v s="$s" -v seconds="$seconds" 'BEGIN {
        printf "%-5s %-24s %d passed", word, name, p
        if (f) printf ", %d failed", f
        if (s) printf ", %d skipped", s
        printf "  (%.1f s)\n", seconds }'
    tail -n +2 "$work/sum"
    if [ "$f" -gt 0 ]; then
        [ -z "$why" ] || echo "      $name $why"
        sed '/^ok /d; s/^/    | /' "$work/$name.out" "$work/$name.err"
    fi
    rm -f "$work/$name".*
}

# one NAME COMMAND...: a program that just succeeds or fails, as a plan of one.
one() {
    local name=$1
    shift
    # shellcheck disable=SC2016 # for the inner shell
    run "$name" bash -c '
        echo 1..1
        if "${@:2}"; then echo "ok 1 - $1"; else echo "not ok 1 - $1"; exit 1; fi' _ "$name" "$@"
}

# As many at a time as there are cores: most of a unit test is one thread. Reported in their order.
unit() {
    local test lanes shown=0 names=()
    lanes=$(nproc)
    for test in "$build"/tests/test_*; do
        # Only programs whose source is still there.
        if [ ! -x "$test" ] || [ ! -e "tests/unit/${test##*/}.c" ]; then continue; fi
        while [ "$(jobs -rp | wc -l)" -ge "$lanes" ]; do wait -n; done
        CMOCKA_MESSAGE_OUTPUT=TAP execute "${test##*/}" "$test" &
        names+=("${test##*/}")
        report_ended
    done
    wait
    report_ended
}

# Goes on with unit()'s list as far as it has ended.
report_ended() {
    while [ "$shown" -lt ${#names[@]} ] && [ -e "$work/${names[$shown]}.end" ]; do
        report "${names[$shown]}"
        shown=$((shown + 1))
    done
}

e2e() {
    local test
    for test in tests/e2e/*.bats; do
        [ -e "$test" ] || continue
        if command -v bats > /dev/null; then
            run "${test##*/}" bats --formatter tap "$test"
        else
            run "${test##*/}" printf '1..1\nok 1 %s # skip bats is not installed\n' "$test"
        fi
    done
}

# Programs that say how many checks passed, or that there is no GPU: one test each; and the golden vectors.
cuda() {
    local test name
    for test in "$build"/tests/test_*; do
        name=${test##*/}
        [ -x "$test" ] || continue
        if compgen -G "tests/cuda/$name.c*" > /dev/null; then
            # shellcheck disable=SC2016 # for the inner shell
            run "$name" bash -c '
                echo 1..1
                if ! "$1" > "$2"; then tail -n 40 "$2"; echo "not ok 1 - checks"; exit 1; fi
                if grep -q "^SKIP" "$2"; then echo "ok 1 - checks # skip $(sed -n "s/^SKIP: //p" "$2")"
                else echo "ok 1 - $(tail -n 1 "$2")"; fi' _ "$test" "$work/checks"
        elif [ -e "tests/unit/$name.c" ]; then
            CMOCKA_MESSAGE_OUTPUT=TAP run "$name" "$test"
        fi
    done
}

if [ -x "$build/tests/tiny_model" ]; then
    export TINY=$build/tests/tiny.gguf
    "$build/tests/tiny_model" "$TINY" > "$work/out" 2>&1 ||
        one tiny_model sh -c "cat '$work/out'; exit 1"
fi
for part in "$@"; do
    case $part in
    unit) unit ;;
    e2e) e2e ;;
    deps) one check_deps tests/check_deps.sh ;;
    cuda) cuda ;;
    *)
        echo "run.sh: unknown part '$part' (unit, e2e, deps, cuda)" >&2
        exit 2
        ;;
    esac
done

[ $((passed + failed + skipped)) -gt 0 ] || echo "run.sh: nothing ran in $build" >&2
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
