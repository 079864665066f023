#!/usr/bin/env bats
# report.bats - `pcomp-eval report` as its users meet it, and its page in a real browser.
#
# PCOMP is the program pcomp; pcomp-eval stands beside it. Runs are made up by make_run.py.

bats_require_minimum_version 1.5.0

setup() {
    [ -n "${PCOMP:-}" ] || skip "PCOMP does not name the program"
    EVAL=$(dirname "$PCOMP")/pcomp-eval
    HERE=$BATS_TEST_DIRNAME
    [ -x "$EVAL" ] || skip "pcomp-eval is not built beside pcomp"
    command -v python3 > /dev/null || skip "python3 is not installed"
    cd "$BATS_TEST_TMPDIR" || return 1
}

make_run() { # make_run KIND [SEED]
    python3 "$HERE/make_run.py" "$1" "${3:-$1}" "${2:-1}"
}

need_browser() {
    command -v "${CHROMIUM:-chromium}" > /dev/null || skip "chromium is not installed"
    "${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --dump-dom 'data:text/html,<p>up</p>' \
        2> /dev/null | grep -q up || skip "chromium does not start here"
}

@test "usage errors exit 2 and say what is wrong" {
    make_run empty
    run --separate-stderr "$EVAL" report
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"name the folder of a run"* ]]
    run --separate-stderr "$EVAL" report empty --format pdf
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"accepted: html, md, csv"* ]]
    run --separate-stderr "$EVAL" report empty --baseline best
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"'best' is no method of these runs; they have 'full'"* ]]
    run --separate-stderr "$EVAL" report nowhere
    [ "$status" -eq 3 ]
    mkdir nothing
    run --separate-stderr "$EVAL" report nothing
    [ "$status" -eq 3 ]
    [[ "$stderr" == *"no run in this folder"* ]]
    [ -z "$output" ]
}

@test "the form follows --format, then the file's ending" {
    make_run niah
    run --separate-stderr "$EVAL" report niah
    [ "$status" -eq 0 ]
    [ "${lines[0]}" = "<!doctype html>" ]
    [ -z "$stderr" ]
    "$EVAL" report niah -o out.md
    [ "$(head -n 1 out.md)" = "# 198 rows of 1 niah task" ]
    "$EVAL" report niah -o out.csv
    [[ "$(head -n 1 out.csv)" == kind,run,method,* ]]
    "$EVAL" report niah -o out.csv --format html
    [ "$(head -n 1 out.csv)" = "<!doctype html>" ]
}

@test "the same runs give the same bytes" {
    make_run longbench
    "$EVAL" report longbench -o a.html --quiet
    "$EVAL" report longbench -o b.html --quiet
    cmp a.html b.html
}

@test "torn, unreadable and failed lines are told and stop nothing" {
    make_run longbench
    run --separate-stderr "$EVAL" report longbench --format md
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"1 thing could not be read"*"full/trec.jsonl, line 11"* ]]
    [[ "$output" == *"full/trec.jsonl, line 11: a torn last line"* ]]
    [[ "$output" == *"2 of 10 failed"* ]]
    [[ "$output" == *"memory: needs 41.2 GiB"* ]]
}

@test "a part of a benchmark never bears its name, in no form" {
    make_run longbench
    make_run longbench-e
    local run form
    for run in longbench longbench-e; do
        for form in html md csv; do
            "$EVAL" report "$run" --quiet --format "$form" > out
            run ! grep -q LongBench out
        done
        grep -q 'longbench-*e*,' out
    done
    # nor is a mean over all its tasks given
    "$EVAL" report longbench-e --format md > out
    run ! grep -qiE 'mean of (13 )?tasks' out
    "$EVAL" report longbench --quiet --format md | grep -qF 'partial: 146 of 4,750 official rows'
}

@test "a whole benchmark does" {
    make_run full
    "$EVAL" report full --format md | grep -qxF '# LongBench: all 4,750 rows of 21 tasks'
}

@test "CSV is regular and agrees with the data" {
    make_run longbench
    "$EVAL" report longbench --quiet -o out.csv
    python3 - << 'PY'
import csv, glob, json
rows = list(csv.DictReader(open("out.csv", encoding="utf-8")))
assert all(None not in r and None not in r.values() for r in rows), "fields that have no column, or are missing"
n = 0
for row in rows:
    if row["kind"] != "score":
        continue
    lines = {}
    for text in open(f"longbench/{row['method']}/{row['task']}.jsonl", encoding="utf-8"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines[line["id"]] = line
    good = [x["score"] for x in lines.values() if "error" not in x]
    assert int(row["n"]) == len(good) and int(row["rows"]) == len(lines), row
    assert abs(float(row["mean"]) - 100 * sum(good) / len(good)) < 1e-6, row
    n += 1
assert n == 21 * 4, n
assert sum(r["kind"] == "difference" for r in rows) == 21 * 3
PY
}

@test "hostile texts do no harm" {
    make_run hostile
    run --separate-stderr "$EVAL" report hostile -o out.html
    [ "$status" -eq 0 ]
    run ! grep -qiE '<script|onerror=|https?:' out.html
    run ! grep -qP '[\x00-\x08\x0b-\x1f\x7f]|\x{202e}' out.html
}

@test "in a browser: the page shows what the data say (tasks)" {
    need_browser
    make_run longbench
    "$EVAL" report longbench --quiet -o out.html
    python3 "$HERE/report_browser.py" longbench out.html .
}

@test "in a browser: the page shows what the data say (needles)" {
    need_browser
    make_run niah
    make_run ruler
    "$EVAL" report niah -o niah.html
    python3 "$HERE/report_browser.py" niah niah.html .
    "$EVAL" report ruler -o ruler.html
    python3 "$HERE/report_browser.py" ruler ruler.html
}

@test "in a browser: hostile texts stay texts" {
    need_browser
    make_run hostile
    "$EVAL" report hostile --quiet -o out.html
    "${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --dump-dom "file://$PWD/out.html" > dom 2> /dev/null
    run ! grep -qE '<script|<u>m' dom
    grep -qF '&lt;script&gt;alert(1)' dom
}
