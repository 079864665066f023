#!/usr/bin/env bats
# eval.bats - pcomp-eval as its users meet it: runs that resume, predictions, records, hostile data.
#
# EVAL is the program, TINY a tiny model file; a test that lacks one of them is skipped.

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR" || return 1
    local name
    for name in $(compgen -e PCOMP_); do unset "$name"; done
    [ -n "${EVAL:-}" ] || skip "EVAL does not name the program"
    [ -n "${TINY:-}" ] || skip "TINY does not name a model"
    mkdir data
    rows 6 trec > data/trec.jsonl
    rows 6 hotpotqa > data/hotpotqa.jsonl
    rows 6 samsum | gzip > data/samsum.jsonl.gz
}

# rows N TASK: N rows in LongBench's form.
rows() {
    awk -v n="$1" -v task="$2" 'BEGIN {
        for (i = 1; i <= n; i++) {
            text = ""
            for (j = 1; j <= 20 + 3 * (i % 8); j++)
                text = text "The miller of village " i * 100 + j " wrote letter " j * 7 ". "
            printf "{\"_id\":\"%s-%d\",\"context\":\"%s\",\"input\":\"Who wrote letter %d?\",\"answers\":" \
                "[\"miller\",\"e\"],\"all_classes\":\"['"'"'miller'"'"', '"'"'aunt'"'"']\",\"length\":%d,\"dataset\":\"%s\"}\n",
                task, i, text, i * 7, 20 + 3 * (i % 8), task
        }
    }'
}

bench() { # bench ARGS: a short run of everything in data/
    run --separate-stderr "$EVAL" longbench -m "$TINY" -d data -o out --max-tokens 3 --threads 1 "$@"
}

is() { # is STATUS PART: exit status, and a part of standard error
    [ "$status" -eq "$1" ] || { echo "status $status, stderr: $stderr" >&2; return 1; }
    [[ "$stderr" == *"$2"* ]] || { echo "no '$2' in: $stderr" >&2; return 1; }
}

# Predictions of one method without what differs from run to run.
essence() {
    jq -c 'del(.seconds, .peak_bytes, .config_hash)' "out/$1"/*.jsonl | sort
}

@test "a run writes predictions, scores and records" {
    bench --method parallelcomp --method nocap:parallelcomp,kv_cap=off --method truncate
    is 0 "54 rows written, 0 finished before, 0 failed"
    [ "$(cat out/*/*.jsonl | wc -l)" -eq 54 ]
    jq -e '.schema == "pcomp.eval.v1" and .tasks.samsum.rows == 6 and .tasks.trec.official_rows == 200
        and (.methods | keys) == ["nocap","parallelcomp","truncate"]' out/run.json
    jq -es 'all(.schema == "pcomp.sample.v1" and (.score >= 0) and (.pred | type) == "string"
        and (.answers | length) == 2 and (.kept | length) > 0 and .n_context > 0)' out/parallelcomp/*.jsonl
    # the prompt of few-shot sets is not wrapped, that of questions is
    jq -es 'all(.chat_template == "raw")' out/parallelcomp/trec.jsonl
    jq -es 'all(.chat_template != "raw")' out/parallelcomp/hotpotqa.jsonl
    # the answer stands where its words do
    jq -es 'all(.answer_chunks | length > 0)' out/parallelcomp/trec.jsonl
}

@test "the same command goes on; changed settings are refused, --fresh sets them aside" {
    bench
    is 0 "18 rows written"
    cp -r out before
    bench
    is 0 "0 rows written, 18 finished before"
    diff -r before/parallelcomp out/parallelcomp
    bench --keep 1
    is 2 "--fresh"
    diff -r before/parallelcomp out/parallelcomp
    bench --keep 1 --fresh
    is 0 "18 rows written"
    cmp before/parallelcomp/trec.jsonl out/parallelcomp/trec.jsonl.old-1
}

@test "a folder keeps the methods of earlier commands" {
    bench --method full
    bench --method truncate
    jq -e '.methods | keys == ["full","truncate"]' out/run.json
    run --separate-stderr "$EVAL" report out --format md
    [ "$status" -eq 0 ]
    [[ "$output" == *"| full | truncate |"* && "$output" != *LongBench* ]]
    [ -z "$stderr" ]
}

@test "torn last lines are repaired, SIGKILL loses at most the row in flight" {
    bench
    truncate -s -9 out/parallelcomp/trec.jsonl
    bench
    is 0 "1 rows written, 17 finished before"
    [[ "$stderr" == *"a torn last line of"* ]]
    essence parallelcomp > whole
    rm -r out
    local i
    for i in 1 2 3 4; do
        timeout --foreground -s KILL "0.0$((i * 2))" "$EVAL" longbench -m "$TINY" -d data -o out \
            --max-tokens 3 --threads 1 2> /dev/null || true
    done
    bench
    [ "$status" -eq 0 ]
    essence parallelcomp | diff whole -
}

@test "workers give the same lines as one process" {
    bench
    essence parallelcomp > one
    rm -r out
    bench --workers 3
    is 0 "18 rows written"
    essence parallelcomp | diff one -
}

@test "Ctrl-C stops with 130 and goes on later, with workers too" {
    rows 3000 trec > data/trec.jsonl
    local workers
    for workers in 1 2; do
        run --separate-stderr timeout --preserve-status -s INT 2 "$EVAL" longbench -m "$TINY" -d data \
            -o "out$workers" --max-tokens 3 --threads 1 --workers $workers
        is 130 "run the same command again to go on"
        [ "$(cat "out$workers"/parallelcomp/*.jsonl | wc -l)" -gt 0 ]
        [ "$(tail -c 1 "out$workers/parallelcomp/trec.jsonl" | od -An -tx1 | tr -d ' ')" = 0a ] ||
            [ ! -s "out$workers/parallelcomp/trec.jsonl" ]
    done
}

@test "bad rows are lines of errors.ndjson, not stops" {
    printf '{"context":"x\n' >> data/trec.jsonl
    printf '{"context":"\xff","answers":["a"]}\n' >> data/trec.jsonl
    awk 'BEGIN { s = "["; for (i = 0; i < 20; i++) s = s s; print substr(s, 1, 100000) }' >> data/trec.jsonl
    bench
    is 5 "18 rows written, 0 finished before, 3 failed"
    [ "$(wc -l < out/parallelcomp/errors.ndjson)" -eq 3 ]
    jq -es 'all(.error.code == "format") and .[1].error.message == "data/trec.jsonl, line 8: byte 12 (0xff) is not UTF-8"' \
        out/parallelcomp/errors.ndjson
    bench
    is 5 "18 finished before, 3 failed"
}

@test "a full disk stops the run and loses nothing" {
    run --separate-stderr bash -c 'ulimit -f 4; exec "$EVAL" longbench -m "$TINY" -d data -o out --max-tokens 3'
    is 1 "finished results are kept"
    [ "$(tail -c 1 out/parallelcomp/hotpotqa.jsonl | od -An -tx1 | tr -d ' ')" = 0a ]
    bench
    [ "$status" -eq 0 ]
    [ "$(cat out/parallelcomp/*.jsonl | wc -l)" -eq 18 ]
}

@test "split and limit choose rows; the record says so" {
    bench --split 2/2 --limit 2
    is 0 "6 rows written"
    [ "$(jq -r .id out/parallelcomp/trec.jsonl | tr '\n' ' ')" = "trec-2 trec-4 " ]
    jq -e '.split == "2/2" and .limit == 2' out/run.json
    bench --split 3/2
    is 2 "--split"
}

@test "usage errors name the thing" {
    run --separate-stderr "$EVAL" longbench -m "$TINY"
    is 2 "--data"
    bench --tasks trek
    is 2 "did you mean 'trec'"
    bench --tasks qasper
    is 3 "has no rows of qasper"
    bench --method paralelcomp
    is 2 "paralelcomp"
    bench --method parallelcomp --method parallelcomp
    is 2 "two methods have the label"
    bench --method a:parallelcomp,kv_cup=3
    is 2 "kv_cap"
    bench --method a:parallelcomp,precision=f32
    is 2 "setting 'precision' is the same for all methods"
    bench --profile mine
    is 2 "official, parallelcomp"
    bench --code-sim x
    is 2 "difflib"
    run --separate-stderr "$EVAL" longbench -m "$TINY" -d nowhere
    is 3 "nowhere"
}

@test "LongBench-E reads files with _e; the parallelcomp profile wraps nothing" {
    rows 3 hotpotqa > data/hotpotqa_e.jsonl
    run --separate-stderr "$EVAL" longbench-e -m "$TINY" -d data -o out --max-tokens 3 --profile parallelcomp
    is 0 "3 rows written"
    jq -es 'all(.chat_template == "raw")' out/parallelcomp/hotpotqa.jsonl
}

@test "rescoring what a run wrote gives the scores it wrote" {
    bench
    run --separate-stderr "$EVAL" rescore longbench out/parallelcomp --json
    [ "$status" -eq 0 ]
    local task mine
    for task in trec hotpotqa samsum; do
        mine=$(jq -s 'map(.score) | add / length * 10000 | round' "out/parallelcomp/$task.jsonl")
        jq -e --arg t $task --argjson m "$mine" \
            '[.. | objects | select(.task? == $t) | .score * 100 | round] == [$m]' <<< "$output"
    done
}

@test "needles and InfiniteBench's tasks are made, run and scored" {
    awk 'BEGIN { for (i = 1; i < 4000; i++) print "In the year " 1800 + i " nothing happened in village " i "." }' > text.txt
    run --separate-stderr "$EVAL" niah -m "$TINY" -f text.txt --tokens 1K,2K --depth 0,1 -o out --max-tokens 3 --window 1024
    is 0 "4 rows written"
    jq -es 'map([.target_tokens, .depth]) == [[1024,0],[1024,1],[2048,0],[2048,1]]' out/parallelcomp/needle.jsonl
    jq -es 'map(.answer_chunks[0] == 0 or .depth == 1) | all' out/parallelcomp/needle.jsonl
    run --separate-stderr "$EVAL" infinitebench -m "$TINY" --tokens 1K --count 2 -o out2 --tasks passkey,code_run \
        --max-tokens 3
    is 0 "4 rows written"
    jq -es 'length == 2 and all((.prediction | type) == "string" and (.ground_truth | length) == 1)' \
        out2/parallelcomp/preds_passkey.jsonl
}

@test "generate writes the same rows each time, exact in tokens" {
    run --separate-stderr "$EVAL" generate kv_retrieval -m "$TINY" --tokens 2K,4K --count 2 --draw 7 -o rows.jsonl
    [ "$status" -eq 0 ]
    [ -z "$output" ]
    [ "$(jq -c .length rows.jsonl | tr '\n' ' ')" = "2048 2048 4096 4096 " ]
    jq -es 'all(. as $r | $r.answer_at | all(. as $at | ($r.context | explode | .[$at:] | implode) | startswith($r.answers[0])))' \
        rows.jsonl
    "$EVAL" generate kv_retrieval -m "$TINY" --tokens 2K,4K --count 2 --draw 7 | cmp rows.jsonl -
    "$EVAL" generate kv_retrieval -m "$TINY" --tokens 2K,4K --count 2 --draw 8 > other.jsonl
    run ! cmp -s rows.jsonl other.jsonl
    run --separate-stderr "$EVAL" generate kv_retreival -m "$TINY"
    is 2 "did you mean 'kv_retrieval'"
    run --separate-stderr "$EVAL" generate passkey -m "$TINY" --tokens 3
    is 3 ""
    run --separate-stderr "$EVAL" generate passkey -m "$TINY" --tokens 1K -o /dev/full
    is 1 "No space left on device"
    # what was generated can be run as a data set
    run --separate-stderr "$EVAL" infinitebench -m "$TINY" -d rows.jsonl --tasks kv_retrieval -o out --max-tokens 3
    is 0 "4 rows written"
    jq -es 'map(.target_tokens) == [2048,2048,4096,4096] and all(.answer_chunks | length == 1)' out/parallelcomp/preds_kv_retrieval.jsonl
}
