#!/usr/bin/env bats
# stream.bats - texts that are read a stretch at a time: from files, pipes and several of both; by several processes; files that
# change, spools without room, and processes that are killed.
#
# PCOMP is the program, TINY a tiny model file; a test that lacks one of them is skipped.
# shellcheck disable=SC2016,SC2154 # single quotes: the inner shell expands; bats sets stderr

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR" || return 1
    local name
    for name in $(compgen -e PCOMP_); do unset "$name"; done
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # in a container
    [ -n "${PCOMP:-}" ] || skip "PCOMP does not name the program"
    [ -n "${TINY:-}" ] || skip "TINY does not name a model"
    mkdir spool
    export TMPDIR=$PWD/spool
    text 300 > text.txt
}

# text N: N lines of prose, all different.
text() {
    awk -v n="$1" 'BEGIN {
        for (i = 1; i <= n; i++)
            printf "In the year %d the miller of village number %d wrote letter %d to his aunt.\n", \
                1800 + i, i, i * 7 }'
}

ask() { # ask ARGS: a short run; the text comes from the arguments or from standard input
    "$PCOMP" run -m "$TINY" -q 'To whom?' -n 4 --progress none "$@"
}

# What a text decides: the answer's tokens and the chunks, with their places and scores.
facts='[.text, .input_hash, .logits_hash, .n_ids, .kv_kept, .plan.n_context, .chunks]'

is() { # is STATUS PART: exit status, and a part of standard error
    [ "$status" -eq "$1" ] || { echo "status $status, stderr: $stderr" >&2; return 1; }
    [[ "$stderr" == *"$2"* ]] || { echo "no '$2' in: $stderr" >&2; return 1; }
}

# ==== The same text ====

@test "a file, a redirection, a pipe and a named pipe are the same text" {
    local want
    want=$(ask -f text.txt --json | jq -c "$facts")
    [ "$(ask --json < text.txt | jq -c "$facts")" = "$want" ]
    [ "$(cat text.txt | ask --json | jq -c "$facts")" = "$want" ]
    [ "$(ask -f <(cat text.txt) --json | jq -c "$facts")" = "$want" ]
    [ "$( (head -n 100 text.txt; sleep 0.3; tail -n +101 text.txt) | ask -f - --json | jq -c "$facts")" = "$want" ]
}

@test "files and pipes together stand in the order given, a blank line apart" {
    text 40 > b.txt
    { cat text.txt; printf '\n\n'; cat b.txt; printf '\n\n'; cat text.txt; } > all.txt
    local want
    want=$(ask -f all.txt --json | jq -c "$facts")
    [ "$(ask -f text.txt -f b.txt -f text.txt --json | jq -c "$facts")" = "$want" ]
    [ "$(cat b.txt | ask -f text.txt -f - -f text.txt --json | jq -c "$facts")" = "$want" ]
}

@test "chunks name bytes of the file" {
    ask -f text.txt --json > out.json
    [ "$(jq '.chunks | length' out.json)" -gt 5 ]
    [ "$(jq '.chunks[0].byte_begin' out.json)" -eq 0 ]
    [ "$(jq '.chunks[-1].byte_end' out.json)" -eq "$(wc -c < text.txt)" ]
    jq -e '[.chunks[1:], .chunks[:-1]] | transpose | all(.[0].byte_begin == .[1].byte_end)' out.json
    ask -f text.txt --explain page.html
    local at
    at=$(jq '.chunks[3].byte_begin' out.json)
    grep -qF "$(tail -c "+$((at + 1))" text.txt | head -c 40 | tr '\n' ' ' | sed 's/ $//')" page.html
}

@test "every question of a pipe is answered, as each by itself" {
    printf 'To whom?\nWhen?\n' > q.txt
    cat text.txt | "$PCOMP" run -m "$TINY" -Q q.txt -n 4 --json --progress none | jq -c "$facts" > both
    for q in 'To whom?' 'When?'; do
        "$PCOMP" run -m "$TINY" -f text.txt -q "$q" -n 4 --json --progress none | jq -c "$facts"
    done > each
    cmp both each
}

@test "plan reads a pipe too, and every method takes a file" {
    [ "$("$PCOMP" plan -m "$TINY" -f text.txt -q x --json | jq .plan.n_chunks)" -gt 5 ]
    [ "$(cat text.txt | "$PCOMP" plan -m "$TINY" -q x --json | jq .plan.n_context)" = \
        "$("$PCOMP" plan -m "$TINY" -f text.txt -q x --json | jq .plan.n_context)" ]
    local method
    for method in full truncate streaming-llm snapkv pyramidkv self-extend; do
        run --separate-stderr ask -f text.txt --method "$method"
        [ "$status" -eq 0 ]
    done
}

@test "summaries of files are found again, whatever read them" {
    printf '{"id": "a", "file": "text.txt"}\n' > list.jsonl
    "$PCOMP" summarize -m "$TINY" list.jsonl -o out.jsonl -n 2 --progress none
    local key
    key=$(jq -r .key out.jsonl)
    jq -Rsc '{id: "a", text: .}' text.txt > list.jsonl
    "$PCOMP" summarize -m "$TINY" list.jsonl -o out.jsonl -n 2 --progress none
    [ "$(jq -r .key out.jsonl)" = "$key" ]
    [ "$(wc -l < out.jsonl)" -eq 1 ]
}

# ==== A pipe that is slow ====

# slow FILE: enough for some chunks, and the rest after a while.
slow() {
    head -c 200000 "$1"
    sleep 2
    tail -c +200001 "$1"
}

@test "chunks of a slow pipe are read before its end, and the answer is the file's" {
    text 6000 > long.txt
    local want how
    for how in '--chunk-score auto' '--rounds 2 --keep 3' '--early auto --early-at 1:300'; do
        # shellcheck disable=SC2086 # several words
        want=$(ask -f long.txt $how --json | jq -c "$facts")
        # shellcheck disable=SC2086
        slow long.txt | ask $how --json > out.json
        [ "$(jq -c "$facts" out.json)" = "$want" ]
        [ "$(jq .n_piped out.json)" -ge 64 ]
    done
}

@test "progress of a slow pipe tells chunks without a total, and the start event still comes first" {
    text 6000 > long.txt
    slow long.txt | ask --jsonl --progress json > out.jsonl 2> err.jsonl
    jq -se 'map(select(.stage == "prefill" and .n_chunks == 0 and .total == 0 and .chunks_done > 0)) | length > 0' err.jsonl
    jq -se 'map(select(.stage == "prefill" and .n_chunks > 0)) | all(.chunks_done >= 64)' err.jsonl
    [ "$(head -n 1 out.jsonl | jq -r .event)" = start ]
    [ "$(jq -s 'map(select(.event == "start")) | length' out.jsonl)" -eq 1 ]
}

@test "a run that is stopped while its pipe is open says how far it came" {
    text 60000 > long.txt
    run --separate-stderr bash -c '(head -c 5000000 long.txt; sleep 20) |
        timeout --foreground -s INT 2 "$PCOMP" run -m "$TINY" -q x --progress none'
    [[ "$stderr" =~ stopped\ after\ [0-9]+\ chunks\ of\ a\ pipe ]]
    [ -z "$output" ]
}

# ==== Memory ====

@test "memory does not grow with the text, from a file or a pipe" {
    text 20000 > long.txt
    local few many piped
    few=$(ask -f text.txt --json | jq .peak_bytes)
    many=$(ask -f long.txt --json | jq .peak_bytes)
    piped=$(cat long.txt | ask --json | jq .peak_bytes)
    echo "$few $many $piped" >&2
    [ $((many - few)) -lt 600000 ] # of 1.6 million bytes of text, 3,000 chunks and more
    [ $((piped - few)) -lt 600000 ]
}

@test "progress tells tokens and their rate while a pipe is still read" {
    run --separate-stderr bash -c '(text() { :; }; for i in 1 2 3 4 5 6; do cat text.txt text.txt text.txt text.txt; sleep 0.2; done) |
        "$PCOMP" run -m "$TINY" -q x -n 2 --progress json'
    [ "$status" -eq 0 ]
    jq -se 'map(select(.stage == "tokenize" and .processed > 0 and .total == 0)) | length > 0' <<< "$stderr"
    jq -se 'map(select(.stage == "prefill" and .total > .processed)) | length > 0' <<< "$stderr"
}

# ==== What goes wrong ====

@test "a pipe's text has no name on the disk, and nothing is left of a killed run" {
    text 20000 > long.txt
    (cat long.txt; sleep 20) | ask > out.txt &
    local i pid
    for i in $(seq 100); do
        pid=$(pgrep -f "$PCOMP run -m $TINY" | head -n 1)
        [ -z "$pid" ] || ! ls -l "/proc/$pid/fd" 2> /dev/null | grep -q 'pcomp-text-.*deleted' || break
        sleep 0.1
    done
    ls -l "/proc/$pid/fd" | grep -q 'pcomp-text-.*deleted'
    [ -z "$(ls spool)" ]
    kill -9 "$pid"
    wait || true
    [ -z "$(ls spool)" ]
}

@test "a spool without a folder or without room is told of, with the remedy" {
    text 20000 > long.txt
    run --separate-stderr bash -c 'cat long.txt | TMPDIR=$PWD/none "$PCOMP" run -m "$TINY" -q x -n 1'
    is 3 "none: cannot keep the piped text there: No such file"
    [[ "$stderr" == *"set TMPDIR"* && "$stderr" == *"-f"* ]]
    run --separate-stderr bash -c 'ulimit -f 1200; cat long.txt | "$PCOMP" run -m "$TINY" -q x -n 1'
    is 3 "cannot keep the piped text there: File too large"
    run --separate-stderr bash -c 'cat text.txt | TMPDIR=$PWD/none "$PCOMP" run -m "$TINY" -q x -n 1'
    [ "$status" -eq 0 ] # little enough for memory
}

@test "a file that shrinks or changes while it is read is named" {
    text 20000 > long.txt
    local change
    for change in 'truncate -s 900000 long.txt' 'tr a b < long.txt > other.txt; cat other.txt > long.txt'; do
        text 20000 > long.txt
        run --separate-stderr bash -c '"$PCOMP" run -m "$TINY" -f long.txt -q x -n 1 --wave 1 --progress json 2> >(
            while read -r line; do
                echo "$line" >&2
                [[ "$line" != *\"prefill\"* ]] || eval "$0"
            done); s=$?; wait; exit $s' "$change"
        is 3 "long.txt: changed while it was being read, at byte"
        [ -z "$output" ]
    done
}

@test "an empty pipe and binary data in one are refused by name" {
    run --separate-stderr bash -c ': | "$PCOMP" run -m "$TINY" -q x'
    is 3 "standard input is empty"
    run --separate-stderr bash -c '(cat text.txt; printf "\0") | "$PCOMP" run -m "$TINY" -q x'
    is 3 "standard input: NUL at byte $(wc -c < text.txt)"
    run --separate-stderr bash -c '(cat text.txt; printf "\xff") | "$PCOMP" run -m "$TINY" -f text.txt -f - -q x'
    is 3 "standard input: byte $(wc -c < text.txt) (0xff) is not UTF-8"
}

@test "a signal ends the wait for a pipe" {
    mkfifo slow
    sleep 30 > slow &
    run --separate-stderr timeout --foreground -s INT 1 "$PCOMP" run -m "$TINY" -f slow -q x
    [ "$status" -eq 124 ] || [ "$status" -eq 130 ]
    kill %1
    run ! pgrep -f "$PCOMP run -m $TINY -f slow"
}

# ==== Several processes ====

@test "ranks read a file by themselves, or are handed what they do not see" {
    command -v mpirun > /dev/null || skip "mpirun is not installed"
    ldd "$PCOMP" | grep -q libmpi || skip "this build has no MPI"
    local want n
    want=$(ask -f text.txt --json | jq -c "$facts")
    for n in 2 3; do
        run --separate-stderr mpirun --oversubscribe --bind-to none -n "$n" \
            "$PCOMP" run -m "$TINY" -q 'To whom?' -n 4 --json -f text.txt
        [ "$(jq -c "$facts" <<< "$output")" = "$want" ]
        # only rank 0 stands in the folder that has the file
        run --separate-stderr mpirun --oversubscribe --bind-to none -n "$n" bash -c \
            '[ "$OMPI_COMM_WORLD_RANK" = 0 ] || cd spool
             "$PCOMP" run -m "$TINY" -q "To whom?" -n 4 --json -f text.txt'
        [ "$(jq -c "$facts" <<< "$output")" = "$want" ]
        run --separate-stderr bash -c "cat text.txt | mpirun --oversubscribe --bind-to none -n $n \
            \"\$PCOMP\" run -m \"\$TINY\" -q 'To whom?' -n 4 --json"
        [ "$(jq -c "$facts" <<< "$output")" = "$want" ]
    done
}
