#!/usr/bin/env bats
# calibrate_bias.bats - `pcomp calibrate bias` as its users meet it: files, streams, exit codes, and the page in a browser.
#
# PCOMP is the program, TINY a tiny model file; a test that lacks one of them is skipped.
# shellcheck disable=SC2016 # single quotes: the inner shell expands

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR" || return 1
    local name
    for name in $(compgen -e PCOMP_); do unset "$name"; done
    [ -n "${PCOMP:-}" ] || skip "PCOMP does not name the program"
    awk 'BEGIN {
        for (i = 1; i <= 12; i++)
            printf "In the year %d the miller of village number %d wrote letter %d to his aunt.\n", \
                1800 + i, i, i * 7 }' > text.txt
}

need_model() {
    [ -n "${TINY:-}" ] || skip "TINY does not name a model"
}

need_browser() {
    command -v "${CHROMIUM:-chromium}" > /dev/null || skip "chromium is not installed"
    "${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --dump-dom 'data:text/html,<p>up</p>' \
        2> /dev/null | grep -q up || skip "chromium does not start here"
}

# bias ARGS: a short study of the tiny model; standard error is kept apart.
bias() {
    run --separate-stderr "$PCOMP" calibrate bias -m "$TINY" -f text.txt --chunk 300 --samples 4 -n 16 "$@"
}

is() { # is STATUS PART: exit status, and a part of standard error; nothing went to standard output
    [ "$status" -eq "$1" ] || { echo "status $status, stderr: $stderr" >&2; return 1; }
    [[ "$stderr" == *"$2"* ]] || { echo "no '$2' in: $stderr" >&2; return 1; }
    [ -z "$output" ]
}

@test "it writes a page, a drawing and numbers, and says what came of it" {
    need_model
    bias -o out
    [ "$status" -eq 0 ]
    [[ "$output" == "No rule proposed: "* || "$output" == "Proposed: "* ]]
    [[ "$stderr" == *"measuring, question 4 of 4"*"the paper's preset on the reported half"*"wrote out/bias.html"* ]]
    [ -s out/bias.html ] && [ -s out/bias.svg ]
    jq -e '.schema == "pcomp.bias.v1" and .questions == 4 and .n_chunks > 1 and .region == 75 and
        (.arms | map(.name) | index(["no rules", "the paper'"'"'s preset"]) == 0) and
        all(.chunks.layers[], .merged.layers[], .merged_with_rules.layers[];
            (([.share[]] | add) - 1 | fabs < 0.001) and all(.heads[]; ([.share[]] | add) - 1 | fabs < 0.001))' \
        out/bias.json
    [ -e out/calib.json ] || jq -e '.proposed == false' out/bias.json
    bias -o again --quiet
    [ -z "$stderr" ]
    cmp out/bias.html again/bias.html
    cmp out/bias.svg again/bias.svg
    cmp out/bias.json again/bias.json
}

@test "rules are proposed exactly when there is a file of them, and --config takes it" {
    need_model
    mkdir out
    echo '{}' > out/calib.json # of an earlier run
    bias -o out --samples 6
    [ "$status" -eq 0 ]
    if [[ "$output" == "Proposed: "* ]]; then
        jq -e '.calib | length > 0' out/calib.json
        "$PCOMP" run -m "$TINY" -f text.txt -q 'To whom?' -n 2 -c out/calib.json
    else
        [ ! -e out/calib.json ]
    fi
}

@test "own questions, own rules, the built-in text, the model as an argument" {
    need_model
    bias -o out -q 'To whom?' -q 'In which year?' --calib '[{"class":"sink","layers":[0,1],"lambda":0.01,"region":9,"rows":1,"stage":1}]'
    [ "$status" -eq 0 ]
    jq -e '.questions == 2 and .found == null and (.arms | map(.name) | index("own rules") == 2)' out/bias.json
    run --separate-stderr "$PCOMP" calibrate bias "$TINY" --tokens 900 --chunk 300 --samples 2 -n 16 -o out
    [ "$status" -eq 0 ]
    jq -e '.text == "a made-up text" and .n_context == 900 and .found != null' out/bias.json
}

@test "usage errors exit 2, before the model is opened" {
    run --separate-stderr "$PCOMP" calibrate bias -m none.gguf -f text.txt
    is 2 "give -o DIR"
    run --separate-stderr "$PCOMP" calibrate bias -m none.gguf -o out --samples 1
    is 2 "--samples 2 or more"
    run --separate-stderr "$PCOMP" calibrate bias a.gguf b.gguf -o out
    is 2 "give texts with -f"
    run --separate-stderr "$PCOMP" calibrate bias -m none.gguf -o out --calib '[{}]'
    is 2 "is missing"
    run --separate-stderr "$PCOMP" calibrate bias -m none.gguf -o out
    is 3 "none.gguf: cannot open"
    run --separate-stderr "$PCOMP" calibrate bias -m none.gguf -o text.txt
    is 1 "text.txt"
}

@test "one question, too short a text, another method" {
    need_model
    bias -o out -q 'To whom?'
    is 2 "one question cannot both choose rules and judge them"
    echo 'Too short.' > text.txt
    bias -o out
    is 3 "two are needed"
    awk 'BEGIN { for (i = 1; i < 9; i++) printf "A sentence of some length bears number %d.\n", i }' > text.txt
    bias -o out --method full
    is 2 "under --method parallelcomp only"
}

@test "an interrupt leaves nothing and exits 130" {
    need_model
    run --separate-stderr timeout --preserve-status -s INT 2 "$PCOMP" calibrate bias -m "$TINY" --tokens 60000 \
        --chunk 300 --samples 512 -n 16 -o out
    is 130 "stopped before anything was written"
    [ -z "$(ls out)" ]
}

@test "in a browser: nothing is fetched, no width is too narrow" {
    need_model
    need_browser
    bias -o out
    run ! grep -Eq 'https?:|<script|<link|<img|@import' out/bias.html
    run ! grep -Eq '<script|@import|href' out/bias.svg
    local width title
    sed 's#</body>#<script>document.title = document.documentElement.scrollWidth + " of " + innerWidth</script></body>#' \
        out/bias.html > width.html
    for width in 1280 800 400; do
        title=$("${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --hide-scrollbars \
            --user-data-dir="$PWD/home" --window-size=$width,900 --dump-dom "file://$PWD/width.html" 2> /dev/null |
            sed -n 's#.*<title>\([0-9]* of [0-9]*\)</title>.*#\1#p')
        [ -n "$title" ] && [ "${title% of *}" -le "${title#* of }" ]
    done
    "${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --user-data-dir="$PWD/home" \
        --screenshot="$PWD/svg.png" "file://$PWD/out/bias.svg" 2> /dev/null
    [ "$(wc -c < svg.png)" -gt 10000 ]
}
