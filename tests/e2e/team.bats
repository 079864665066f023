#!/usr/bin/env bats
# team.bats - several processes: runs under mpirun, and queues that processes share under mpirun, job arrays or alone.
#
# PCOMP and EVAL are the programs, TINY a tiny model file; a test that lacks one of them or mpirun is skipped.
# shellcheck disable=SC2016,SC2154 # single quotes: the inner shell expands; bats sets stderr

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR" || return 1
    local name
    for name in $(compgen -e PCOMP_); do unset "$name"; done
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # in a container
    text 300 > text.txt
}

# text N: N lines of prose, all different.
text() {
    awk -v n="$1" 'BEGIN {
        for (i = 1; i <= n; i++)
            printf "In the year %d the miller of village number %d wrote letter %d to his aunt.\n", \
                1800 + i, i, i * 7 }'
}

need_model() {
    [ -n "${PCOMP:-}" ] || skip "PCOMP does not name the program"
    [ -n "${TINY:-}" ] || skip "TINY does not name a model"
}

need_mpi() {
    need_model
    command -v mpirun > /dev/null || skip "mpirun is not installed"
    ldd "$PCOMP" | grep -q libmpi || skip "this build has no MPI"
}

# ranks N COMMAND...: N processes; standard error is kept apart.
ranks() {
    local n=$1
    shift
    run --separate-stderr timeout -k 5 60 mpirun --oversubscribe --bind-to none -n "$n" "$@"
}

ask() { # ask N ARGS: a short run by N ranks
    local n=$1
    shift
    ranks "$n" "$PCOMP" run -m "$TINY" -f text.txt -q 'To whom?' -n 6 "$@"
}

# What must not depend on the number of ranks: the answer's tokens and the chunks, with their scores.
facts='[.text, .input_hash, .logits_hash, .n_ids, .kv_kept, [.chunks[] | [.begin, .end, .score, .kept]]]'

# local_ranks N ARGS: the same without MPI, by the program itself.
local_ranks() {
    local n=$1
    shift
    run --separate-stderr timeout -k 5 60 "$PCOMP" run -m "$TINY" -f text.txt -q 'To whom?' -n 6 --ranks "$n" "$@"
}

# ==== One request ====

@test "--ranks: any number of processes without MPI, the same answer, once" {
    need_model
    local_ranks 1 --json
    [ "$status" -eq 0 ]
    local one n
    one=$(jq -c "$facts" <<< "$output")
    for n in 2 3 5; do
        local_ranks "$n" --json
        [ "$status" -eq 0 ]
        [ "$(jq -sc length <<< "$output")" = 1 ]
        [ "$(jq -c "$facts" <<< "$output")" = "$one" ]
    done
    run --separate-stderr "$PCOMP" run -m "$TINY" -q 'To whom?' -n 6 --ranks 3 --json < text.txt
    [ "$(jq -c "$facts" <<< "$output")" = "$one" ] # what is piped in, rank 0 reads
}

@test "--ranks: a failure is told once, with its rank, and a killed process ends all" {
    need_model
    OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 local_ranks 2
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"leave out --ranks 2"* ]]
    local_ranks 3 --memory 1M
    [ "$status" -eq 4 ]
    [ "$(grep -Ec 'ranks? [0-2, ]+ of 3: ' <<< "$stderr")" = 1 ]
    text 60000 > text.txt
    timeout 60 "$PCOMP" run -m "$TINY" -f text.txt -q 'To whom?' --ranks 3 2> log &
    local lead=$! child=
    while [ -z "$child" ]; do child=$(pgrep -P "$(pgrep -P "$lead")" | tail -1) || true; done
    kill -9 "$child"
    status=0
    wait "$lead" || status=$?
    [ "$status" -eq 6 ]
    grep -q 'rank [12] of 3: gone' log
}

@test "any number of ranks gives the same answer, once" {
    need_mpi
    ask 1 --json
    [ "$status" -eq 0 ]
    local one n
    one=$(jq -c "$facts" <<< "$output")
    for n in 2 3 5; do
        ask "$n" --json
        [ "$status" -eq 0 ]
        [ "$(jq -sc length <<< "$output")" = 1 ]
        [ "$(jq -c "$facts" <<< "$output")" = "$one" ]
    done
}

@test "all ranks answer, over what each has read: the same chunks and words, on one output" {
    need_mpi
    ask 1 --json --keep 5
    local one n words='[.text, .n_ids, .kv_kept, [.chunks[] | [.begin, .score, .kept]]]'
    one=$(jq -c "$words" <<< "$output")
    for n in 1 2 3 5; do
        ask "$n" --json --keep 5 --answer-ranks all
        [ "$status" -eq 0 ]
        [ "$(jq -sc length <<< "$output")" = 1 ]
        [ "$(jq -c "$words" <<< "$output")" = "$one" ]
    done
    ask 3 --answer-ranks all --temperature 1 --seed 7
    [ "$status" -eq 0 ]
    [ "$(grep -c . <<< "$output")" -ge 1 ]
    ask 2 --answer-ranks all --select mean
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"select mean"*"--answer-ranks lead"* ]]
}

@test "a rank that is killed while all answer ends the run within seconds, with no object on standard output" {
    need_mpi
    local begun=$SECONDS
    ranks 3 bash -c '[ "$OMPI_COMM_WORLD_RANK" != 2 ] || { (sleep 3; kill -9 $$) & }
        exec "$PCOMP" run -m "$TINY" -f text.txt -q "To whom?" -n 200000 --window 262144 --chunk 600 --answer-ranks all --json'
    [ "$status" -ne 0 ]
    [ $((SECONDS - begun)) -lt 20 ]
    [ -z "$output" ]
}

@test "ranks share standard input, questions in a file, and the demo" {
    need_mpi
    printf 'To whom?\nWhen?\n' > q.txt
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -Q q.txt -n 4
    local alone=$output
    run --separate-stderr bash -c 'mpirun --oversubscribe -n 3 "$PCOMP" run -m "$TINY" -Q q.txt -n 4 < text.txt'
    [ "$status" -eq 0 ]
    [ "$output" = "$alone" ]
    ranks 2 "$PCOMP" demo -m "$TINY" -f text.txt --tokens 6000 -n 4
    [ "$status" -eq 0 ]
    [ "$(grep -c 'The sentence stands in chunk' <<< "$stderr")" = 1 ]
}

@test "a command that is not shared runs once" {
    need_mpi
    ranks 3 "$PCOMP" --version
    [ "$status" -eq 0 ]
    [ "$(grep -c '^pcomp ' <<< "$output")" = 1 ]
    ranks 3 "$PCOMP" plan -m "$TINY" -f text.txt -q 'To whom?' --json
    [ "$(jq -sc length <<< "$output")" = 1 ]
    ask 2 --plan --json
    [ "$(jq -sc length <<< "$output")" = 1 ]
}

@test "an error is told once, with the rank, and its exit code kept" {
    need_mpi
    ranks 3 "$PCOMP" run -m "$TINY" -f none.txt -q x
    [ "$status" -eq 3 ]
    [ "$(grep -c 'none.txt' <<< "$stderr")" = 1 ]
    [[ "$stderr" == *"pcomp: rank 0 of 3: none.txt: cannot open"* ]]
    ranks 3 "$PCOMP" run -m none.gguf -f text.txt -q x
    [ "$status" -eq 3 ]
    [ "$(grep -c 'none.gguf' <<< "$stderr")" = 1 ]
    [[ "$stderr" == *"pcomp: ranks 0, 1, 2 of 3: none.gguf"* ]]
    ranks 3 "$PCOMP" run --bogus
    [ "$status" -eq 2 ]
    [ "$(grep -c -e '--bogus' <<< "$stderr")" = 1 ]
    [ -z "$output" ]
}

@test "ranks that were given different settings refuse to work together" {
    need_mpi
    ranks 2 bash -c 'PCOMP_OBS_ROWS=$((4 + OMPI_COMM_WORLD_RANK)) exec "$PCOMP" run -m "$TINY" -f text.txt -q x -n 4'
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"rank 1 plans another run than rank 0"* ]]
}

@test "a rank that is killed ends the run within seconds, with nothing on standard output" {
    need_mpi
    text 40000 > long.txt
    local begun=$SECONDS
    ranks 3 bash -c '[ "$OMPI_COMM_WORLD_RANK" != 1 ] || { (sleep 2; kill -9 $$) & }
        exec "$PCOMP" run -m "$TINY" -f long.txt -q "To whom?" -n 4'
    [ "$status" -ne 0 ]
    [ $((SECONDS - begun)) -lt 20 ]
    [[ "$stderr" == *"rank 1"* ]]
    [ -z "$output" ]
}

@test "processes that were started together without MPI are told so" {
    need_model
    PMI_RANK=0 PMI_SIZE=2 run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q x
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"2 processes were started together"* ]]
}

# ==== Queues ====

make_texts() { # make_texts N: a folder of N texts
    local i
    mkdir -p texts
    for ((i = 0; i < $1; i++)); do text $((20 + i)) > "texts/$(printf %03d "$i").txt"; done
}

# What a file of results says, whatever the order and the times.
results() {
    jq -c '[.id, .key, .summary, .error]' "$1" | sort
}

summarize() { # summarize OUT ARGS
    "$PCOMP" summarize -m "$TINY" -o "$1" -n 4 --threads 1 texts --quiet "${@:2}"
}

@test "two processes share a queue: each text once, the same results" {
    need_model
    make_texts 30
    summarize one.jsonl --text-dir one
    summarize two.jsonl --text-dir two --share &
    summarize two.jsonl --text-dir two --share
    wait
    [ "$(wc -l < two.jsonl)" -eq 30 ]
    [ "$(results one.jsonl)" = "$(results two.jsonl)" ]
    diff -r one two
}

@test "texts that fail are told by one of them" {
    need_model
    make_texts 6
    printf '\xff' > texts/bad.txt
    local first second
    summarize out.jsonl --share 2> a.log & first=$!
    summarize out.jsonl --share 2> b.log & second=$!
    wait "$first" && first=0 || first=$?
    wait "$second" && second=0 || second=$?
    [ $((first + second)) -eq 5 ] # one of them has seen it
    [ "$(cat a.log b.log | grep -c 'bad.txt')" -eq 1 ]
    [ "$(wc -l < out.jsonl)" -eq 7 ]
    [ "$(jq -c 'select(.error) | .id' out.jsonl)" = '"texts/bad.txt"' ]
}

@test "whoever is killed, the others finish its text" {
    need_model
    make_texts 40
    local i
    for i in 1 2 3; do
        timeout -s KILL "0.$((i * 2))" "$PCOMP" summarize -m "$TINY" -o out.jsonl -n 4 texts --share --quiet &
    done
    summarize out.jsonl --share
    wait || true
    [ "$(jq -es 'map(.key) | unique | length' out.jsonl)" -eq 40 ]
    [ "$(wc -l < out.jsonl)" -eq 40 ]
}

@test "mpirun shares a queue; killed and run again by more ranks it has the same results" {
    need_model
    command -v mpirun > /dev/null || skip "mpirun is not installed"
    make_texts 30
    summarize one.jsonl
    ranks 2 bash -c '[ "$OMPI_COMM_WORLD_RANK" != 1 ] || { (sleep 0.3; kill -9 $$) & }
        exec "$PCOMP" summarize -m "$TINY" -o two.jsonl -n 4 texts'
    ranks 3 "$PCOMP" summarize -m "$TINY" -o two.jsonl -n 4 texts
    [ "$status" -eq 0 ]
    [ "$(wc -l < two.jsonl)" -eq 30 ]
    [ "$(results one.jsonl)" = "$(results two.jsonl)" ]
}

# Some of these rows do not fit the window: they are lines of errors.ndjson, each once.
@test "pcomp-eval shares rows, failed ones too" {
    need_model
    [ -n "${EVAL:-}" ] || skip "EVAL does not name the program"
    text 3000 > hay.txt
    bench() { # bench FOLDER ARGS
        "$EVAL" niah -m "$TINY" -f hay.txt --tokens 1000 --depth 0,0.5,1 --count 4 --method parallelcomp \
            --max-tokens 3 --threads 1 --quiet -o "$@"
    }
    bench one 2> /dev/null || [ $? -eq 5 ]
    bench two --share 2> /dev/null &
    bench two --share 2> /dev/null || [ $? -eq 5 ]
    wait || [ $? -eq 5 ]
    lines() { jq -c '[.id, .key, .pred, .score]' "$1"/parallelcomp/*.jsonl | sort; }
    [ "$(cat one/parallelcomp/*.{jsonl,ndjson} | wc -l)" -eq 12 ]
    [ -s one/parallelcomp/errors.ndjson ]
    [ "$(lines one)" = "$(lines two)" ]
    # a row that failed is not done: the other process may have tried it again
    [ "$(jq .id one/parallelcomp/errors.ndjson | sort -u)" = "$(jq .id two/parallelcomp/errors.ndjson | sort -u)" ]
    run --separate-stderr bench two --share --workers 2
    [ "$status" -eq 2 ]
    [[ "$stderr" == *"--workers"* ]]
}
