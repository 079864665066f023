#!/usr/bin/env bash
# compute-sanitizer over the op table: bad and leaked memory, races in shared memory, reads of what was never written.
# Usage: tests/cuda/sanitize.sh [PROGRAM [ARGUMENT]]      (default: build/cuda/tests/test_backend; its argument: one of its
# pairs of models, 0 to 6, so that several can run beside each other)
set -uo pipefail
program=${1:-build/cuda/tests/test_backend}
[ $# -gt 0 ] && shift
failed=0
for tool in "memcheck --leak-check full" racecheck initcheck; do
    echo "== $tool"
    # shellcheck disable=SC2086 # the tool's own flags
    timeout "${SECONDS_A_TOOL:-600}" compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 20 "$program" brief "$@" ||
        { echo "FAIL $tool: exit code $?"; failed=1; }
done
exit $failed
