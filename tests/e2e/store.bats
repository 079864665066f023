#!/usr/bin/env bats
# store.bats - texts that are read once: --store of run, summarize and pcomp-eval, several processes at one folder, kills.
#
# PCOMP and EVAL are the programs, TINY a tiny model file; a test that lacks one of them is skipped.
# shellcheck disable=SC2154 # bats sets stderr

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR" || return 1
    local name
    for name in $(compgen -e PCOMP_); do unset "$name"; done
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # in a container
    [ -n "${PCOMP:-}" ] || skip "PCOMP does not name the program"
    [ -n "${TINY:-}" ] || skip "TINY does not name a model"
    text 1 200 > text.txt
}

# text K N: N lines of prose, different for each K.
text() {
    awk -v k="$1" -v n="$2" 'BEGIN {
        for (i = 1; i <= n; i++)
            printf "In the year %d the miller of village number %d wrote letter %d to his aunt.\n", \
                1800 + i, i * k, i * 7 }'
}

ask() { # ask QUESTION ARGS: a short run
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt --chunk 150 -n 6 --json -q "$@"
    [ "$status" -eq 0 ] || { echo "$stderr" >&2; return 1; }
}

# What a store must not change.
facts='[.text, .input_hash, .logits_hash, .n_ids, .kv_kept, [.chunks[] | [.begin, .end, .score, .kept]]]'

summarize() { # summarize OUTPUT ARGS
    local out=$1
    shift
    run --separate-stderr "$PCOMP" summarize -m "$TINY" -o "$out" --chunk 150 -n 4 texts "$@"
}

make_texts() {
    mkdir texts
    local i
    for i in $(seq "$1"); do text "$i" $((60 + i)) > "texts/$i.txt"; done
}

lines() { # lines FILE: what summarize wrote, without what differs from run to run
    jq -c '[.id, .summary, .run.logits_hash, .run.kv_kept]' "$1" | sort
}

@test "a stored text gives the answer to the bit that reading it gives" {
    local q
    for q in 'To whom?' 'Which letter did the miller of village number 77 write, and in which year?'; do
        ask "$q"
        local cold
        cold=$(jq -c "$facts" <<< "$output")
        ask "$q" --store kept
        [ "$(jq -c "$facts" <<< "$output")" = "$cold" ]
    done
    [ "$(find kept -type f | wc -l)" -eq 1 ]
}

@test "pages of codes, selected pages and another cap work from a store" {
    local kind
    for kind in '--kv-type q8' '--kv-type q4' '--select bound --select-pages 2' '--kv-cap 64 --keep all'; do
        # shellcheck disable=SC2086 # two words
        ask 'To whom?' --store kept $kind
        # shellcheck disable=SC2086
        ask 'To whom?' --store kept $kind
    done
    [ "$(find kept -type f | wc -l)" -eq 3 ] # 16, 8 and 4 bits
}

@test "a question without room behind the stored chunks is asked of the text" {
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt --window 512 -n 8 -q 'To whom?' --store kept
    [ "$status" -eq 0 ]
    local long
    long=$(printf 'and whom did he name %.0s' $(seq 6))
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt --window 512 -n 8 -q "$long?" --store kept
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"this time the text is read again"* ]]
    local asked=$output
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt --window 512 -n 8 -q "$long?"
    [ "$output" = "$asked" ]
}

@test "summarize --store: the same lines, and the next question reads no text" {
    make_texts 5
    summarize cold.jsonl
    [ "$status" -eq 0 ]
    summarize first.jsonl --store kept
    [ "$status" -eq 0 ]
    [ "$(lines first.jsonl)" = "$(lines cold.jsonl)" ]
    [ "$(find kept -name '*.pcstore' | wc -l)" -eq 5 ]
    local before
    before=$(stat -c '%n %y' kept/*)
    summarize second.jsonl --store kept -q 'Who wrote most letters?'
    [ "$status" -eq 0 ]
    [ "$(stat -c '%n %y' kept/*)" = "$before" ]
    summarize other.jsonl -q 'Who wrote most letters?'
    [ "$(lines second.jsonl)" = "$(lines other.jsonl)" ]
}

@test "summarize --store killed and run again by two processes ends as if nothing had been" {
    make_texts 12
    summarize cold.jsonl
    local i
    for i in 1 2 3 4 5; do
        timeout -s KILL "0.0$((i * 19))" "$PCOMP" summarize -m "$TINY" -o out.jsonl --chunk 150 -n 4 texts \
            --store kept 2> /dev/null || true
    done
    "$PCOMP" summarize -m "$TINY" -o out.jsonl --chunk 150 -n 4 texts --store kept --share 2> one.log &
    local first=$! # run starts processes of its own
    summarize out.jsonl --store kept --share
    [ "$status" -eq 0 ]
    wait "$first" || { cat one.log >&2; return 1; }
    [ "$(lines out.jsonl)" = "$(lines cold.jsonl)" ]
    [ "$(find kept -name '*.pcstore' | wc -l)" -eq 12 ]
    [ "$(find kept -name '*.part' | wc -l)" -eq 0 ]
}

@test "processes that store the same text at once all answer, and leave one store" {
    text 1 2000 > text.txt
    ask 'To whom?'
    local cold i pids=()
    cold=$(jq -c "$facts" <<< "$output")
    for i in 1 2 3; do
        "$PCOMP" run -m "$TINY" -f text.txt --chunk 150 -n 6 --json -q 'To whom?' --store kept \
            > "$i.json" 2> "$i.log" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i"; done
    for i in 1 2 3; do [ "$(jq -c "$facts" "$i.json")" = "$cold" ]; done
    [ "$(find kept -type f | wc -l)" -eq 1 ]
}

@test "a damaged store is named, whoever asks it" {
    make_texts 2
    summarize first.jsonl --store kept
    local store
    store=$(find kept -name '*.pcstore' | sort | head -1)
    printf 'x' | dd of="$store" bs=1 seek=$(($(stat -c %s "$store") - 9000)) conv=notrunc 2> /dev/null
    summarize second.jsonl --store kept
    [ "$status" -eq 5 ]
    [[ "$stderr" == *"$store: the store is damaged"* ]]
    [ "$(jq -c 'select(.error)' second.jsonl | wc -l)" -eq 1 ]
    rm "$store"
    summarize second.jsonl --store kept
    [ "$status" -eq 0 ]
}

@test "a full disk stops summarize --store, and loses nothing" {
    make_texts 2
    local kept
    kept=$(ulimit -f 100 && "$PCOMP" summarize -m "$TINY" -o out.jsonl --chunk 150 -n 4 texts --store kept \
        2>&1) && return 1
    [[ "$kept" == *"free some space"* ]]
    summarize out.jsonl --store kept
    [ "$status" -eq 0 ]
    summarize cold.jsonl
    [ "$(lines out.jsonl)" = "$(lines cold.jsonl)" ]
}

@test "ranks ask a store together" {
    command -v mpirun > /dev/null || skip "mpirun is not installed"
    ldd "$PCOMP" | grep -q libmpi || skip "this build has no MPI"
    ask 'To whom?'
    local cold n
    cold=$(jq -c "$facts" <<< "$output")
    for n in 2 3; do
        run --separate-stderr timeout -k 5 60 mpirun --oversubscribe --bind-to none -n "$n" \
            "$PCOMP" run -m "$TINY" -f text.txt --chunk 150 -n 6 --json -q 'To whom?' --store "kept$n"
        [ "$status" -eq 0 ]
        [ "$(jq -c "$facts" <<< "$output")" = "$cold" ]
        run --separate-stderr timeout -k 5 60 mpirun --oversubscribe --bind-to none -n "$n" \
            "$PCOMP" ask -m "$TINY" "kept$n"/*.pcstore -n 6 --json -q 'To whom?'
        [ "$status" -eq 0 ]
        [ "$(jq -c "$facts" <<< "$output")" = "$cold" ]
    done
}

@test "pcomp-eval --store: the same predictions, each text read once" {
    [ -n "${EVAL:-}" ] || skip "EVAL does not name the program"
    mkdir data
    local i way
    for i in 1 2 3 4; do # two questions of each of two texts
        text $((i % 2 + 1)) 60 | jq -Rsc --arg i "$i" '{_id: $i, context: ., input: ("Who wrote letter " + $i + "?"),
            answers: ["miller"], all_classes: null, length: 60, dataset: "hotpotqa"}'
    done > data/hotpotqa.jsonl
    for way in cold kept; do
        local store=()
        [ "$way" = cold ] || store=(--store kept --workers 2)
        run --separate-stderr "$EVAL" longbench -m "$TINY" -d data -o "$way.run" --max-tokens 3 --chunk 150 --threads 1 \
            --method parallelcomp --method full "${store[@]}"
        [ "$status" -eq 0 ]
        jq -c '[._id, .pred, .score, .kept]' "$way.run"/*/hotpotqa.jsonl | sort > "$way.txt"
    done
    [ -s cold.txt ]
    cmp cold.txt kept.txt
    [ "$(find kept -name '*.pcstore' | wc -l)" -eq 2 ]
}
