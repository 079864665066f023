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

# cuBLASLt writes its products by bulk stores, which this tool does not follow: it takes the logits for unwritten where
# nll_kernel reads them. That products write all of their output is test_products' matter, whose buffers begin as NaN.
echo "== initcheck"
reports=$(mktemp)
trap 'rm -f "$reports"' EXIT
sanitize initcheck --print-limit 1000000 -- "$@" >"$reports" 2>&1
code=$?
grep -v '^=========' "$reports"
readers=$(grep -A1 'Uninitialized' "$reports" | sed -n 's/^=========  *at \([a-z_0-9]*\).*/\1/p' | sort | uniq -c)
echo "read before written, by kernel:${readers:- none}"
if [ $code -ne 0 ] && [ $code -ne 9 ]; then echo "FAIL initcheck: exit code $code"; failed=1; fi
if echo "$readers" | grep -qv -e nll_kernel -e '^$'; then echo "FAIL initcheck: a kernel of ours"; failed=1; fi
exit $failed
