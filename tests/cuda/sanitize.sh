#!/usr/bin/env bash
# compute-sanitizer over the op table: bad and leaked memory, races in shared memory, reads of what was never written.
# Usage: tests/cuda/sanitize.sh [PROGRAM [ARGUMENT]]      (default: build/cuda/tests/test_backend; its argument: one of its
# pairs of models, 0 to 6, so that several can run beside each other)
set -uo pipefail
program=${1:-build/cuda/tests/test_backend}
[ $# -gt 0 ] && shift
failed=0

# sanitize TOOL [FLAG...] -- ARGUMENT...: one tool over the program's brief run.
sanitize() {
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    timeout "${SECONDS_A_TOOL:-600}" compute-sanitizer --tool "${flags[@]}" --error-exitcode 9 "$program" brief "$@"
}

for tool in "memcheck --leak-check full" racecheck; do
    echo "== $tool"
    # shellcheck disable=SC2086 # the tool's own flags
    sanitize $tool --print-limit 20 -- "$@" || { echo "FAIL $tool: exit code $?"; failed=1; }
done

# Products are cleared before cuBLASLt writes them, by stores that this tool does not follow: lt_written.c.
echo "== initcheck"
LD_PRELOAD=$(realpath "$(dirname "$program")/lt_written.so") sanitize initcheck --print-limit 20 -- "$@" ||
    { echo "FAIL initcheck: exit code $?"; failed=1; }
exit $failed
