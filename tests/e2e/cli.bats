#!/usr/bin/env bats
# cli.bats - the command line as its users meet it: streams, exit codes, messages, files, signals.
#
# PCOMP is the program, TINY a tiny model file; a test that lacks one of them is skipped.
# shellcheck disable=SC2016 # single quotes: the inner shell expands

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_TMPDIR" || return 1
    # Settings of whoever runs the tests must not decide them.
    local name
    for name in $(compgen -e PCOMP_); do unset "$name"; done
    text 300 > text.txt
}

# text N: N lines of prose, all different.
text() {
    awk -v n="$1" 'BEGIN {
        for (i = 1; i <= n; i++)
            printf "In the year %d the miller of village number %d wrote letter %d to his aunt.\n", \
                1800 + i, i, i * 7 }'
}

need_program() {
    [ -n "${PCOMP:-}" ] || skip "PCOMP does not name the program"
}

need_model() {
    need_program
    [ -n "${TINY:-}" ] || skip "TINY does not name a model"
}

# ask ARGS: a short run on the tiny model; standard error is kept apart.
ask() {
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q 'To whom?' -n 4 "$@"
}

is() { # is STATUS PART: exit status, and a part of standard error; nothing went to standard output
    [ "$status" -eq "$1" ] || { echo "status $status, stderr: $stderr" >&2; return 1; }
    [[ "$stderr" == *"$2"* ]] || { echo "no '$2' in: $stderr" >&2; return 1; }
    [ -z "$output" ]
}

# ==== Without a model ====

@test "version names build and device" {
    need_program
    run --separate-stderr "$PCOMP" --version
    [ "$status" -eq 0 ]
    [[ "${lines[0]}" =~ ^pcomp\ [0-9]+\.[0-9]+\.[0-9]+\ \(commit\ .+\)$ ]]
    [[ "$output" == *"build: "* && "$output" == *"device: "* ]]
    [ -z "$stderr" ]
}

@test "help of every command has its usage and an example" {
    need_program
    run --separate-stderr "$PCOMP" --help
    [ "$status" -eq 0 ]
    local command
    for command in run summarize index ask demo plan bench inspect perplexity calibrate settings completion help; do
        [[ "$output" == *"  $command "* ]]
    done
    for command in run summarize index ask demo plan bench inspect perplexity calibrate settings completion help; do
        run --separate-stderr "$PCOMP" help "$command"
        [ "$status" -eq 0 ]
        [[ "$output" == *"usage: pcomp $command"* && "$output" == *"Example: "*"pcomp $command"* ]]
        local first=$output
        run --separate-stderr "$PCOMP" "$command" --help
        [ "$output" = "$first" ]
    done
}

@test "usage errors exit 2 and name the nearest word" {
    need_program
    run --separate-stderr "$PCOMP"
    [ "$status" -eq 2 ]
    run --separate-stderr "$PCOMP" rnu
    is 2 "unknown command 'rnu': did you mean 'run'?"
    run --separate-stderr "$PCOMP" run --kepe 3
    is 2 "unknown flag '--kepe' of \`pcomp run\`: did you mean '--keep'?"
    run --separate-stderr "$PCOMP" run -Z
    is 2 "unknown flag '-Z'"
    run --separate-stderr "$PCOMP" run -f
    is 2 "flag '-f' needs a value"
    run --separate-stderr "$PCOMP" run --json=1
    is 2 "takes no value"
    run --separate-stderr "$PCOMP" run --json --jsonl
    is 2 "not both"
    run --separate-stderr "$PCOMP" run -f text.txt
    is 2 "no question"
    run --separate-stderr "$PCOMP" bench nothing
    is 2 "accepted: prefill, decode, ops, text, paper, all"
    run --separate-stderr "$PCOMP" completion fish
    is 2 "name the shell"
    run --separate-stderr "$PCOMP" summarize
    is 2 "nothing to summarise"
}

@test "settings are checked before a model is opened" {
    need_program
    run --separate-stderr "$PCOMP" plan -m none -f text.txt --keep 0
    is 2 "setting 'keep': '0' is out of range; accepted: 1 to 65536, auto, all"
    run --separate-stderr "$PCOMP" plan -m none -f text.txt --method best
    is 2 "parallelcomp, full, truncate"
    run --separate-stderr env PCOMP_KEEP=x "$PCOMP" plan -m none -f text.txt
    is 2 "environment variable PCOMP_KEEP"
    echo '{"kepe": 3}' > bad.json
    run --separate-stderr "$PCOMP" plan -m none -f text.txt -c bad.json
    is 2 "bad.json: unknown setting 'kepe': did you mean 'keep'?"
    echo '{"keep": 3' > bad.json
    run --separate-stderr "$PCOMP" plan -m none -f text.txt -c bad.json
    is 2 "bad.json: not valid JSON at byte"
}

@test "the table of settings and the completions" {
    need_program
    run --separate-stderr "$PCOMP" settings --markdown
    [ "$status" -eq 0 ]
    [ "${lines[0]}" = "| setting | default | accepted | meaning |" ]
    [ "$(grep -c '^| `' <<< "$output")" -eq "$(jq length "$BATS_TEST_DIRNAME/../../configs/default.json")" ]
    [ "$(awk -F'|' '{ print NF }' <<< "$output" | sort -u)" = 6 ]
    "$PCOMP" completion bash | bash -n
    # shellcheck disable=SC1090
    source <("$PCOMP" completion bash)
    COMP_WORDS=(pcomp run --kv-c) COMP_CWORD=2
    _pcomp
    [ "${COMPREPLY[*]}" = "--kv-cap" ]
    run --separate-stderr "$PCOMP" completion zsh
    [[ "$output" == *bashcompinit* ]]
}

@test "a missing or bad model exits 3 and says where" {
    need_program
    run --separate-stderr "$PCOMP" run -m none.gguf -f text.txt -q x
    is 3 "none.gguf: cannot open: No such file"
    echo 'not a model' > bad.gguf
    run --separate-stderr "$PCOMP" run -m bad.gguf -f text.txt -q x
    is 3 "bad.gguf"
    run --separate-stderr "$PCOMP" inspect bad.gguf
    is 3 "bad.gguf"
    : > empty.gguf
    run --separate-stderr "$PCOMP" inspect empty.gguf
    is 3 "empty.gguf"
}

# ==== run ====

@test "run prints the answer and nothing else" {
    need_model
    ask
    [ "$status" -eq 0 ]
    [ -n "$output" ]
    [ -z "$stderr" ]
    local first=$output
    ask # the same bytes again
    [ "$output" = "$first" ]
}

@test "run takes files, standard input, several of both kinds" {
    need_model
    ask
    local first=$output
    run --separate-stderr bash -c '"$PCOMP" run -m "$TINY" -q "To whom?" -n 4 < text.txt'
    [ "$output" = "$first" ]
    run --separate-stderr bash -c 'cat text.txt | "$PCOMP" run --model="$TINY" -q"To whom?" -n4 -f -'
    [ "$output" = "$first" ]
    run --separate-stderr env PCOMP_MODEL="$TINY" "$PCOMP" run text.txt -q 'To whom?' --max-tokens 4
    [ "$output" = "$first" ]
    head -n 3 text.txt | tr -d '\n' > a.txt
    tail -n 3 text.txt > b.txt
    { cat a.txt; printf '\n\n'; cat b.txt; } > both.txt
    run --separate-stderr "$PCOMP" run -m "$TINY" -f a.txt -f b.txt -q x -n 2 --json
    local hash
    hash=$(jq -r .input_hash <<< "$output")
    run --separate-stderr "$PCOMP" run -m "$TINY" -f both.txt -q x -n 2 --json
    [ "$(jq -r .input_hash <<< "$output")" = "$hash" ]
}

@test "several questions get one answer each" {
    need_model
    ask -q 'And when?'
    [ "$status" -eq 0 ]
    [ "$(grep -c '^## ' <<< "$output")" -eq 2 ]
    [ "${lines[0]}" = "## To whom?" ]
    printf 'One?\n\nTwo?\r\nThree?\n' > questions.txt
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -Q questions.txt -n 2 --json
    [ "$status" -eq 0 ]
    [ "$(wc -l <<< "$output")" -eq 3 ]
    [ "$(jq -r .question <<< "$output" | tr '\n' ' ')" = "One? Two? Three? " ]
}

@test "--json is one object with its provenance" {
    need_model
    ask --json --keep 2 --kv-cap 16 --seed 7
    [ "$status" -eq 0 ]
    jq -e '.schema == "pcomp.run.v1" and .seed == 7 and .config.kv_cap == 16 and .plan.keep <= 2 and
        .truncation.truncated == false and (.chunks | length) == .plan.n_chunks and
        ([.chunks[] | select(.kept)] | length) == .plan.keep and
        .kv_kept.total <= .kv_in.total and .kv_kept.total == (.kv_kept.by_layer_head | flatten | add) and
        (.stop_reason | IN("eos", "length")) and .n_ids <= 4 and
        (.model.hash | test("^[0-9a-f]{16}$")) and (.input_hash | test("^[0-9a-f]{16}$")) and
        .chunks[0].begin == 0 and .chunks[-1].end == .plan.n_context and
        (.seconds | keys) == ["decode", "prefill", "question", "tokenize", "total"]' <<< "$output"
    [ "$(jq -r .chunks[-1].byte_end <<< "$output")" -eq "$(stat -c %s text.txt)" ]
    run ! grep -qi 'nan\|infinity' <<< "$output"
}

@test "--select says what it takes and what was read" {
    need_model
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt -q x --select bound
    [[ $output == *"pages by the range of their keys, 1 token a choice, an index of "* ]]
    ask --json --keep all --kv-cap off --select mean --select-pages 1 --select-every 64
    [ "$status" -eq 0 ]
    jq -e '.plan.select_every == 64 and .config.select_every == 64' <<< "$output"
    jq -e '.plan.select == "mean" and .plan.index_bytes > 0 and .pages_there >= .pages_read' <<< "$output"
    local kv some
    for kv in q8 q4; do
        ask --json --keep all --kv-cap off --kv-type $kv --select bound --select-pages 1
        jq -e '.pages_there > .pages_read' <<< "$output"
        ask --json --keep all --kv-cap off --kv-type $kv --select mean --select-mass 1
        some=$(jq -c '[.text, .logits_hash]' <<< "$output")
        ask --json --keep all --kv-cap off --kv-type $kv
        [ "$(jq -c '[.text, .logits_hash]' <<< "$output")" = "$some" ]
    done
    ask --json
    jq -e '.plan.select == "off" and .plan.index_bytes == 0 and .pages_there == 0' <<< "$output"
    run --separate-stderr "$PCOMP" plan -m none -f text.txt --select most
    is 2 'off, mean, bound'
    run --separate-stderr "$PCOMP" plan -m none -f text.txt --select mean --select-every 65
    is 2 '1 to 64'
}

@test "--kv-resident changes no byte of what waits, and says what came from below" {
    need_model
    local near
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt -q x --select mean --kv-resident 25% --backend cpu
    [[ $output == *"pages of a KV head near, "*" below (disk); tokens wait"* ]]
    ask --json --keep all --kv-cap off --select mean --select-pages 2 --backend cpu
    near=$(jq -c '[.text, .logits_hash]' <<< "$output")
    jq -e '.plan.tier_slots == 0 and .tiers == null' <<< "$output"
    ask --json --keep all --kv-cap off --select mean --select-pages 2 --backend cpu --kv-resident 25% --kv-dir .
    [ "$(jq -c '[.text, .logits_hash]' <<< "$output")" = "$near" ]
    jq -e '.plan.tier_below == "disk" and .plan.tier_below_bytes > .plan.tier_near_bytes' <<< "$output"
    jq -e '.plan.tier_host_bytes == 0 and .plan.tier_file_bytes == .plan.tier_below_bytes and .tiers.from_file > 0' <<< "$output"
    jq -e '.config.kv_resident == "25%" and .tiers.fetched > 0 and .tiers.late_pages == 0 and .tiers.bytes > 0' <<< "$output"
    local how
    for how in '--store kept' '--ranks 3'; do
        # shellcheck disable=SC2086 # two words
        ask --json --chunk 150 --keep all --kv-cap off --select mean --select-pages 2 --backend cpu $how
        near=$(jq -c '[.text, .logits_hash]' <<< "$output")
        # shellcheck disable=SC2086
        ask --json --chunk 150 --keep all --kv-cap off --select mean --select-pages 2 --backend cpu --kv-resident 25% $how
        [ "$(jq -c '[.text, .logits_hash]' <<< "$output")" = "$near" ]
        jq -e '.tiers.fetched > 0' <<< "$output"
    done
    ask --json --keep all --kv-cap off --select mean --select-pages 2 --backend cpu --kv-resident 25% --tier-wait late
    jq -e '.tiers.late_share >= 0' <<< "$output"
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q x --kv-resident 25% --backend cpu
    is 2 'give --select mean or bound'
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q x --select mean --kv-resident 25% --backend cpu --kv-dir nowhere
    is 3 '--kv-dir'
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt -q x --select mean --kv-resident 25% --kv-host 1M --backend cpu
    is 2 'leave out --kv-host'
    run --separate-stderr "$PCOMP" plan -m none -f text.txt --select mean --kv-resident 200%
    is 2 '1% to 100%'
}

@test "--json and plain output carry the same answer" {
    need_model
    ask
    local plain=$output
    ask --json
    [ "$(jq -r .text <<< "$output")" = "$plain" ]
    ask --jsonl
    [ "$(jq -j 'select(.event == "text") | .text' <<< "$output")" = "$plain" ]
    [ "$(jq -r .event <<< "$output" | head -n 1)" = start ]
    [ "$(tail -n 1 <<< "$output" | jq -r .event)" = result ]
}

@test "progress as JSON has the names that clients know" {
    need_model
    ask --progress json
    [ "$status" -eq 0 ]
    jq -e 'has("total") and has("cache") and has("processed") and has("time_ms")' <<< "${stderr%%$'\n'*}"
    ask --progress sometimes
    is 2 "accepted: auto, none, plain, json"
}

@test "settings: defaults < file < environment < flags" {
    need_model
    echo '{"obs_rows": 3, "pool": 3, "kv_cap": 33}' > set.json
    run --separate-stderr env PCOMP_POOL=5 PCOMP_KV_CAP=55 "$PCOMP" run -m "$TINY" -f text.txt -q x -n 1 \
        -c set.json --kv-cap 77 --json
    [ "$status" -eq 0 ]
    [ "$(jq -c '[.config | .obs_rows, .pool, .kv_cap, .overlap]' <<< "$output")" = "[3,5,77,0]" ]
}

@test "a shipped configuration file gives the defaults" {
    need_model
    ask --json
    local first
    first=$(jq -r .config_hash <<< "$output")
    ask --json -c "$BATS_TEST_DIRNAME/../../configs/default.json" --max-tokens 4
    [ "$(jq -r .config_hash <<< "$output")" = "$first" ]
}

@test "bad input is refused with the place of the fault" {
    need_model
    run --separate-stderr "$PCOMP" run -m "$TINY" -f none.txt -q x
    is 3 "none.txt: cannot open: No such file"
    printf 'ab\0c' > nul.txt
    run --separate-stderr "$PCOMP" run -m "$TINY" -f nul.txt -q x
    is 3 "nul.txt: NUL at byte 2"
    printf 'ab\xff' > latin.txt
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -f latin.txt -q x
    is 3 "latin.txt: byte 2 (0xff) is not UTF-8"
    : > empty.txt
    run --separate-stderr "$PCOMP" run -m "$TINY" -f empty.txt -q x
    is 3 "empty.txt is empty"
    run --separate-stderr "$PCOMP" run -m "$TINY" -f . -q x
    is 3 "is a directory"
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q ''
    is 3 "the question is empty"
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q $'\xff'
    is 3 "not UTF-8"
}

@test "--explain writes one page for each question" {
    need_model
    ask --explain page.html
    [ "$status" -eq 0 ]
    grep -q '<!doctype html>' page.html
    grep -q 'To whom?' page.html
    run ! grep -q 'http' page.html
    ask -q 'Second?' --explain two.html
    grep -q 'To whom?' two.html
    grep -q 'Second?' two-2.html
    ask --explain /nowhere/page.html
    [ "$status" -eq 1 ]
    [[ "$stderr" == *"/nowhere/page.html"* ]]
}

@test "a full disk or a closed pipe is an error" {
    need_model
    run --separate-stderr bash -c '"$PCOMP" run -m "$TINY" -f text.txt -q x -n 4 > /dev/full'
    is 1 "could not be written"
    run --separate-stderr bash -c '"$PCOMP" run -m "$TINY" -f text.txt -q x -n 4 --json > /dev/full'
    is 1 "cannot write to standard output"
}

@test "--log-file takes standard error; errors still show" {
    need_model
    ask -v --log-file log.txt
    [ "$status" -eq 0 ]
    [ -z "$stderr" ]
    grep -q 'tokens ' log.txt
    run --separate-stderr "$PCOMP" run -m none -f text.txt -q x --log-file log.txt
    is 3 "none: cannot open"
    grep -q 'none: cannot open' log.txt
}

# ==== plan, inspect, perplexity, bench, demo ====

@test "plan tells the need and exits 4 when it does not fit" {
    need_model
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt -q x
    [ "$status" -eq 0 ]
    [[ "$output" == *"chunks "* && "$output" == *": fits"* ]]
    text 3000 > long.txt
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f long.txt -q x --memory 1M --keep all --kv-cap off --wave 16
    [ "$status" -eq 4 ]
    [[ "$output" == *"does not fit"* ]]
    [[ "$stderr" == *"try --kv-cap"* ]]
    run --separate-stderr "$PCOMP" run -m "$TINY" -f long.txt -q x --memory 1M --keep all --kv-cap off --wave 16
    is 4 ""
    ask --plan --json
    [ "$status" -eq 0 ]
    jq -e '.schema == "pcomp.plan.v1" and .plan.fits and .plan.n_context > 0' <<< "$output"
}

# heads ARGS: a small study of the tiny model's heads.
heads() {
    run --separate-stderr "$PCOMP" calibrate heads "$TINY" -f text.txt --passkeys 1 --words 2 --len 450 \
        --samples 1 --sink 4 --recent 32 "$@"
}

@test "calibrate chunks prints a table and writes a profile that runs go by" {
    need_model
    run --separate-stderr "$PCOMP" calibrate chunks "$TINY" --samples 1 --chunk 300 --tokens 3000 -o early
    [ "$status" -eq 0 ]
    grep -q "right chunk among the best 1, 2 and 4" <<< "$output"
    [ "$(grep -c '^\*' <<< "$output")" -ge 1 ]
    [ "$(jq -r .schema early/chunks.json)" = pcomp.chunks.v1 ]
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q "Why?" -n 4 --chunk 100 --keep 1 --json \
        --early profile --chunk-profile early/chunks.json --early-risk 1
    [ "$status" -eq 0 ]
    [ "$(jq '.plan.early[0].layer' <<< "$output")" = "$(jq '.stops[0].layer' early/chunks.json)" ]
    jq -e '.plan.read_share < 1 and any(.chunks[]; .n_layers == 1)' <<< "$output"
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q "Why?" --early profile
    [ "$status" -eq 2 ]
    [[ $stderr == *"calibrate chunks"* ]]
}

@test "rounds: which found what, what is kept of each, what the plan says" {
    need_model
    printf 'Take xyzzy to plugh now. ' >> text.txt
    text 300 >> text.txt
    printf 'Take plugh to gnusto now. ' >> text.txt
    text 100 >> text.txt
    rounds=(-m "$TINY" -f text.txt -q "xyzzy" --chunk 200 --chunk-score bm25 --rounds 2 --keep 2)
    run --separate-stderr "$PCOMP" run "${rounds[@]}" -n 4 -v --json --explain page.html
    [ "$status" -eq 0 ]
    jq -e '[.chunks[] | select(.kept) | .round] == [1, 2] and .plan.rounds == 2' <<< "$output"
    [[ $(jq -r '.found[0].text' <<< "$output") == *"xyzzy to plugh now."* ]]
    [[ $stderr == *"in round 2"*"found    in round 1: "*"plugh now."* ]]
    grep -q "Found in round 1" page.html
    run --separate-stderr "$PCOMP" plan "${rounds[@]}" --chunk-score question
    [[ $output == *"rounds   2 share the kept chunks: 1, then 1 by"*"200.0% of the arithmetic"* ]]
    run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q "xyzzy" --rounds 3 --keep 2
    is 2 "use --keep 3"
}

@test "calibrate heads prints a table and writes every form of the map" {
    need_model
    local regime
    for regime in full parallelcomp; do
        heads --method $regime --compare --refine 4 -o map
        [ "$status" -eq 0 ]
        [[ "$output" == *"ablate"*"deviate"*"mass"*"copy"*"echo"*"rope"*"random"*"inverted"* ]]
        [[ "$output" == *"* 50.0%"* ]]
        local file
        for file in full_attention_heads.tsv config.json headwise.json heads.json heads.svg; do
            [ -s "map/$file" ]
        done
        jq -e '.schema == "pcomp.heads.v1" and .ratio == 0.5 and .method == "ablate"' map/heads.json
        jq -e '.sink_size == 4 and .recent_size == 32 and .ratio == 0.5' map/config.json
        jq -e '.headwise_config."0" | length > 0' map/headwise.json
        if command -v xmllint > /dev/null; then xmllint --noout map/heads.svg; fi
        cp map/heads.json first.json
        heads --method $regime --compare --refine 4 -t 2 -o map
        cmp first.json map/heads.json
    done
    heads --method full --score mass -o mass
    [ -s mass/q_heads.tsv ]
    heads --method full --tol 100
    [[ "$output" == *"*  0.0%      0"* ]]
    heads --method full --tol 0
    [[ "$output" == *"*100.0%"* ]]
}

@test "calibrate refuses what it cannot measure" {
    need_model
    run --separate-stderr "$PCOMP" calibrate tails "$TINY"
    is 2 "accepted: heads"
    run --separate-stderr "$PCOMP" calibrate heads "$TINY" more
    is 2 "takes one model"
    heads --score ablat
    is 2 "did you mean 'ablate'"
    heads --len 12x
    is 2 "is not a list"
    heads --tol much
    is 2 "--tol"
    heads --tol 0.1 --ratio 0.3
    is 2 "not both"
    heads --method full --len 9000
    is 2 "do not fit the model's window"
    heads --passkeys 9
    is 3 "give fewer --passkeys or --words"
    echo short > short.txt
    run --separate-stderr "$PCOMP" calibrate heads "$TINY" -f short.txt
    is 3 "too few to hide passkeys in"
    heads -o /dev/null/map
    is 1 "/dev/null/map"
}

@test "inspect reads a model as text and as JSON" {
    need_model
    run --separate-stderr "$PCOMP" inspect "$TINY"
    [ "$status" -eq 0 ]
    [ -n "$output" ]
    run --separate-stderr "$PCOMP" inspect --json "$TINY"
    [ "$status" -eq 0 ]
    jq -e type <<< "$output"
}

@test "perplexity under each method" {
    need_model
    local method
    for method in full parallelcomp truncate; do
        run --separate-stderr "$PCOMP" perplexity -m "$TINY" -f text.txt --method $method --tail 32 --json
        [ "$status" -eq 0 ]
        jq -e '.schema == "pcomp.perplexity.v1" and .ppl > 1 and .n_scored > 0' <<< "$output"
    done
    run --separate-stderr "$PCOMP" perplexity -m "$TINY" -f text.txt --method full --window 128 --json
    [ "$status" -eq 0 ]
    jq -e '.n_scored == .n_context - (.n_context / 128 | ceil)' <<< "$output" # all but the first of each window
    run --separate-stderr "$PCOMP" perplexity -m "$TINY" -f text.txt --tail 32
    [[ "$output" =~ ^perplexity\ [0-9.]+\ \ nll ]]
}

# tsv FILE: a head map for the tiny model as DuoAttention writes it: every second KV head of a layer must remember.
tsv() {
    "$PCOMP" inspect --json "$TINY" | jq -r '[range(.n_layers)] as $l | [range(.n_kv_heads)] as $h |
        $l[] | [$h[] | (. + 1) % 2 | tostring] | @tsv' > "$1"
}

@test "a head map: streaming heads hold less, in every method that takes one" {
    need_model
    tsv heads.tsv
    echo '{"sink_size": 4, "recent_size": 32}' > config.json
    local method all
    for method in parallelcomp full truncate duo headwise; do
        run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q "Which?" --method $method --window 400 \
            --heads heads.tsv --chunk 64 -n 8 --json
        [ "$status" -eq 0 ]
        jq -e '.plan.heads_streaming > 0 and .plan.head_recent == 32 and .plan.head_sinks == 4' <<< "$output"
        all=$("$PCOMP" plan -m "$TINY" -f text.txt --method full --window 400 -n 8 --json | jq .plan.heads_bytes)
        jq -e --argjson all "$all" '.plan.heads_bytes < $all' <<< "$output"
    done
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt --heads heads.tsv --heads-ratio 0.25
    [[ "$output" == *"stream: 4 first and 32 last tokens"* ]]
    ask --method duo
    is 2 '--heads FILE'
    ask --heads missing.tsv
    is 3 'missing.tsv'
    ask --heads heads.tsv --method snapkv
    is 2 'takes no head map'
    printf '1\t2\n' > heads.tsv
    ask --heads heads.tsv
    [ "$status" -eq 3 ]
    [[ "$stderr" == *"heads.tsv"* ]]
}

@test "the baselines run, and plan and result name them" {
    need_model
    local method
    for method in full truncate self-extend streaming-llm snapkv pyramidkv; do
        run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt --method $method --window 400 -n 8
        [ "$status" -eq 0 ]
        [[ "$output" == *"method   $method"* ]]
        run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q "Which?" --method $method \
            --window 400 --kv-cap 64 -n 8 --json
        [ "$status" -eq 0 ]
        jq -e --arg method $method '.plan.method == $method and .plan.n_positions > 0' <<< "$output"
    done
    for method in random bm25; do
        run --separate-stderr "$PCOMP" run -m "$TINY" -f text.txt -q "Which?" --chunk-score $method \
            --chunk 64 --keep 1 -n 8 --json
        [ "$status" -eq 0 ]
        jq -e '.plan.n_read == 1 and .plan.n_chunks > 1 and ([.chunks[] | select(.kept)] | length) == 1' \
            <<< "$output"
    done
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt --method full --rope-scaling ntk --rope-factor 4
    [[ "$output" == *"method   full, ntk stretched by 4, "* ]]
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt --rope-factor 4
    is 2 "--rope-scaling ntk or yarn"
}

@test "bench prints Markdown, CSV and JSON" {
    need_model
    run --separate-stderr "$PCOMP" bench all -m "$TINY" -r 2 --tokens 256 -n 4
    [ "$status" -eq 0 ]
    [[ "$output" == *"| prefill | 256 tokens |"* && "$output" == *" ± "* ]]
    run --separate-stderr "$PCOMP" bench prefill -m "$TINY" -r 2 --tokens 256 -n 1 --format csv
    [ "$(wc -l <<< "$output")" -eq 2 ]
    [[ "${lines[0]}" == test,shape,repeats,* ]]
    run --separate-stderr "$PCOMP" bench text -m "$TINY" -r 1 --tokens 5000 --threads 2 --format csv
    [ "$(wc -l <<< "$output")" -eq 9 ] # four parts, by one thread and by two
    [[ "${lines[1]}" == "text scan,"*"1 thread\""* && "${lines[8]}" == "text loads,"*"2 threads\""* ]]
    run --separate-stderr "$PCOMP" bench text -m "$TINY" -r 1 -f text.txt --threads 1 --method full --format csv
    [ "$(wc -l <<< "$output")" -eq 5 ]
    run --separate-stderr "$PCOMP" bench ops -m "$TINY" -r 2 --tokens 64 --format json
    [ "$status" -eq 0 ]
    jq -e '.schema == "pcomp.bench.v1" and (.rows | length) > 0 and .rows[0].repeats == 2' <<< "$output"
}

@test "demo hides its sentence, says so, and judges the answer" {
    need_model
    text 2000 > book.txt
    run --separate-stderr "$PCOMP" demo -m "$TINY" -f book.txt --tokens 3000 -n 2
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"first 3000 tokens"* && "$stderr" == *"Hidden at 50%"* ]]
    [[ "$stderr" == *"The sentence stands in chunk "* && "$stderr" == *"The answer "*"contain"* ]]
    run --separate-stderr "$PCOMP" demo -m "$TINY" -f book.txt --tokens 3000 -n 2 --json --depth 0.1
    jq -e '.plan.n_context == 3000' <<< "$output"
    run --separate-stderr "$PCOMP" demo -m "$TINY" -f book.txt --tokens 3000 --no-needle
    is 2 "give your own question"
    run --separate-stderr "$PCOMP" demo -m "$TINY" -f book.txt --tokens 3000 --no-needle -q 'Who?' -n 2
    [ "$status" -eq 0 ]
    [[ "$stderr" != *"Hidden"* ]]
}

@test "--geometry runs a shape with random weights and says so" {
    need_program
    run --separate-stderr "$PCOMP" plan --geometry tiny -f text.txt -q x
    [ "$status" -eq 0 ]
    [[ "$output" == *"tiny geometry, random weights, BF16"*" made in memory"*": fits"* ]]
    run --separate-stderr "$PCOMP" plan --geometry llama3-8b -f text.txt --memory 1G
    [ "$status" -eq 4 ]
    [[ "$output" == *"15.0 GiB made in memory"*"does not fit"* ]]
    [[ "$stderr" == *"take 14.96 GiB of memory, 1.00 GiB are available; try --geometry llama3-8b:q4_k"* ]]
    run --separate-stderr "$PCOMP" run --geometry llama3-8b -f text.txt -q x --memory 1G
    is 4 "take 14.96 GiB"
    run --separate-stderr "$PCOMP" run --geometry tiny:q8_0 -f text.txt -q x -n 2 --json
    [ "$status" -eq 0 ]
    jq -e '.model.name == "tiny geometry, random weights, Q8_0" and .model.weights == "random" and
        .model.path == "geometry:tiny:q8_0" and .plan.made_bytes > 0 and .chat_template == "raw"' <<< "$output"
    jq -e --argjson bytes "$(wc -c < text.txt)" '.plan.n_context == $bytes' <<< "$output"
    run --separate-stderr "$PCOMP" bench prefill --geometry tiny -r 1 --tokens 256 --format json
    [ "$status" -eq 0 ]
    jq -e '.model.weights == "random"' <<< "$output"
    run --separate-stderr "$PCOMP" demo --geometry tiny --tokens 3000 -n 2 --json
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"answer is noise"* && "$stderr" == *" at the peak"* && "$stderr" != *"Hidden"* ]]
    jq -e '.plan.n_context == 3000' <<< "$output"
}

@test "--geometry refuses unknown shapes and a model beside it" {
    need_program
    run --separate-stderr "$PCOMP" run --geometry lama3-8b -f text.txt -q x
    is 2 "no geometry 'lama3-8b', did you mean 'llama3-8b'? (llama3-8b, llama2-7b, qwen2.5-7b"
    run --separate-stderr "$PCOMP" run --geometry tiny:q4 -f text.txt -q x
    is 2 "did you mean 'q4_k'"
    run --separate-stderr "$PCOMP" run --geometry tiny -m x.gguf -f text.txt -q x
    is 2 "not both"
    run --separate-stderr "$PCOMP" inspect geometry:tiny
    is 2 "is no file"
}

# ==== Signals ====

@test "Ctrl-C stops with 130 and a hint, SIGTERM with 143" {
    need_model
    text 60000 > long.txt
    run --separate-stderr timeout --preserve-status -s INT 1 "$PCOMP" run -m "$TINY" -f long.txt -q x -n 4
    is 130 "repeat the command"
    run --separate-stderr timeout --preserve-status -s TERM 1 "$PCOMP" run -m "$TINY" -f long.txt -q x -n 4
    is 143 "repeat the command"
    run --separate-stderr timeout --preserve-status -s INT 1 \
        "$PCOMP" run -m "$TINY" -f long.txt -q x -n 4 --json
    [ "$status" -eq 130 ]
    jq -e '.stop_reason == "interrupted"' <<< "$output"
    # timeout signals the process and its group: two signals are one wish
    local seconds
    for seconds in 0.3 0.4 0.5 0.6 0.7; do
        run --separate-stderr timeout --preserve-status -s INT $seconds \
            "$PCOMP" run -m "$TINY" -f long.txt -q x -n 4
        is 130 "repeat the command"
    done
}

# ==== summarize ====

summarize() {
    run --separate-stderr "$PCOMP" summarize -m "$TINY" -o out.jsonl -n 4 "$@"
}

make_texts() { # make_texts N: a folder of N texts
    local i
    mkdir -p texts
    for ((i = 0; i < $1; i++)); do text $((20 + i)) > "texts/$(printf %03d "$i").txt"; done
}

# The results: every line whole and a JSON object, N different keys.
has_results() {
    [ "$(tail -c 1 out.jsonl | od -An -tx1 | tr -d ' ')" = 0a ]
    jq -es "map(select(.error | not).key) | unique | length == $1" out.jsonl
}

@test "summarize makes one line a text and skips what is finished" {
    need_model
    make_texts 3
    summarize texts --text-dir notes
    [ "$status" -eq 0 ]
    [ -z "$output" ]
    has_results 3
    [ "$(find notes -type f | wc -l)" -eq 3 ]
    [ -s notes/texts_001.txt ]
    jq -es 'all(.run.plan.keep == .run.plan.n_chunks and .run.schema == "pcomp.run.v1")' out.jsonl
    cp out.jsonl before.jsonl
    summarize texts
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"0 written, 3 finished before"* ]]
    cmp out.jsonl before.jsonl
}

@test "summarize repairs a torn last line" {
    need_model
    make_texts 3
    summarize texts
    truncate -s -9 out.jsonl
    summarize texts
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"a torn last line of"*"was cut off"* ]]
    has_results 3
    [ "$(wc -l < out.jsonl)" -eq 3 ]
}

@test "summarize refuses changed settings unless --fresh" {
    need_model
    make_texts 2
    summarize texts
    summarize texts --keep 1
    is 2 "--fresh"
    summarize texts --keep 1 --fresh
    [ "$status" -eq 0 ]
    has_results 4
}

@test "summarize: errors are lines, exit code 5, tried again" {
    need_model
    make_texts 1
    printf '\xff' > texts/bad.txt
    printf '{"id":"q","text":"some words","question":"Which?"}\n{"id":"gone","file":"texts/none.txt"}\nno\n' > l.jsonl
    summarize texts l.jsonl
    [ "$status" -eq 5 ]
    has_results 2
    [ "$(jq -c 'select(.error) | [.id, .error.code]' out.jsonl | tr '\n' ' ')" = \
        '["texts/bad.txt","format"] ["gone","io"] ["line 3","format"] ' ]
    text 5 > texts/none.txt
    rm texts/bad.txt
    summarize texts/000.txt l.jsonl
    [ "$status" -eq 5 ]
    has_results 3
}

@test "summarize survives SIGKILL at any moment" {
    need_model
    make_texts 40
    local i
    for i in 1 2 3 4; do
        timeout -s KILL "0.$((i * 15))" "$PCOMP" summarize -m "$TINY" -o out.jsonl -n 4 texts 2> /dev/null || true
    done
    summarize texts
    [ "$status" -eq 0 ]
    has_results 40
    [ "$(wc -l < out.jsonl)" -eq 40 ]
}

@test "summarize stopped by Ctrl-C goes on where it was" {
    need_model
    make_texts 3
    text 60000 > texts/900.txt
    run --separate-stderr timeout --preserve-status -s INT 2 "$PCOMP" summarize -m "$TINY" -o out.jsonl -n 4 texts
    [ "$status" -eq 130 ]
    [[ "$stderr" == *"run the same command again to go on"* ]]
    has_results 3
    rm texts/900.txt
    summarize texts
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"0 written, 3 finished before"* ]]
}

@test "summarize on a full disk stops and loses nothing" {
    need_model
    make_texts 8
    run --separate-stderr bash -c 'ulimit -f 16; exec "$PCOMP" summarize -m "$TINY" -o out.jsonl -n 4 texts'
    is 1 "finished results are kept"
    [ "$(tail -c 1 out.jsonl | od -An -tx1 | tr -d ' ')" = 0a ]
    jq -es 'length > 0 and length < 8' out.jsonl
    summarize texts
    [ "$status" -eq 0 ]
    has_results 8
    run --separate-stderr "$PCOMP" summarize -m "$TINY" -o /dev/full -n 4 texts
    is 1 "No space left on device"
}

# ==== Stores ====

# kept ARGS: what a run or an answer from the store kept and said, as one line.
kept() {
    "$PCOMP" "$@" -q 'To whom?' -n 4 --json --quiet |
        jq -c '[.text, [.chunks[] | [.begin, .end, .kept]], .plan.keep, .plan.kv_cap]'
}

@test "ask answers from a store what run answers from the text" {
    need_model
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 200 --json
    [ "$status" -eq 0 ]
    echo "$output" | jq -e '.schema == "pcomp.index.v1" and .chunks_done == .plan.n_chunks and .bytes > 0'
    local with
    for with in '--keep 3' '--kv-cap 60' '--chunk-score published' '--chunk-score bm25' '--wave 5'; do
        # shellcheck disable=SC2086 # words
        [ "$(kept ask -m "$TINY" s.pcstore $with)" = "$(kept run -m "$TINY" -f text.txt --chunk 200 $with)" ]
    done
    run --separate-stderr "$PCOMP" ask -m "$TINY" s.pcstore -q one -q two -n 4 --explain page.html
    [ "$status" -eq 0 ]
    [[ "$output" == *"## one"*"## two"* ]]
    grep -q 'letter 7' page.html
}

@test "index --kv-cap keeps a part of each chunk, and ask takes the store as it is" {
    need_model
    "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 200 --quiet
    run --separate-stderr "$PCOMP" plan -m "$TINY" -f text.txt -q x --chunk 200 --store-cap 64
    [[ $output == *"in a store, of at most 64 tokens for each chunk, layer and head"* ]]
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o c.pcstore --chunk 200 --kv-cap 64
    [ "$status" -eq 0 ]
    [[ $stderr == *"(a head keeps 64 of each)"* ]]
    [ "$(stat -c %s c.pcstore)" -lt "$(($(stat -c %s s.pcstore) / 2))" ]
    run --separate-stderr "$PCOMP" ask -m "$TINY" c.pcstore -q 'To whom?' -n 4 --json --keep 3
    [ "$status" -eq 0 ]
    jq -e '.config.store_cap == 64 and .plan.store_cap == 64 and (.kv_kept.by_layer_head | flatten | max) == 192' <<< "$output"
    run --separate-stderr "$PCOMP" ask -m "$TINY" c.pcstore -q x --store-cap 32
    is 2 'made with setting {"store_cap":64}, and this is {"store_cap":32}'
    run --separate-stderr "$PCOMP" ask -m "$TINY" s.pcstore -q x --store-cap 32
    is 2 'made with setting {"store_cap":"off"}'
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o c.pcstore --chunk 200
    is 2 "another text, model or settings"
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o d.pcstore --kv-cap 64 --store-cap 64
    is 2 "give one"
}

@test "a store is refused by name for another model, setting, file or damage" {
    need_model
    "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 300 --quiet
    run --separate-stderr "$PCOMP" ask -m "$TINY" s.pcstore -q x --chunk 200
    is 2 'made with setting {"chunk":300}, and this is {"chunk":200}'
    run --separate-stderr "$PCOMP" ask -m "$TINY" s.pcstore -q x --precision f32
    is 2 "made with pages of cpu f16, int16"
    run --separate-stderr "$PCOMP" ask --geometry tiny s.pcstore -q x
    is 2 "made with another model"
    run --separate-stderr "$PCOMP" ask -m "$TINY" text.txt -q x
    is 3 "text.txt: is no document store"
    run --separate-stderr "$PCOMP" ask -m "$TINY" -q x
    is 2 "name one store"
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o text.txt
    is 2 "text.txt: is there and is no document store"
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt
    is 2 "-o STORE"
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 200
    is 2 "--fresh to replace"
    "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 200 --fresh --quiet
    printf 'x' | dd of=s.pcstore bs=1 seek=30000 conv=notrunc status=none
    run --separate-stderr "$PCOMP" ask -m "$TINY" s.pcstore -q x
    is 3 "s.pcstore: the store is damaged"
    head -c 20000 s.pcstore > cut.pcstore
    run --separate-stderr "$PCOMP" ask -m "$TINY" cut.pcstore -q x
    is 3 "damaged"
}

@test "index on a full disk, stopped or alone at work goes on later" {
    need_model
    run --separate-stderr bash -c 'ulimit -f 1400; exec "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 300'
    is 1 "repeat the command to go on"
    [ -e s.pcstore.part ] && [ ! -e s.pcstore ]
    exec 9>> s.pcstore.part
    flock 9
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 300
    is 2 "another pcomp is writing this store"
    exec 9>&-
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 300 --json
    [ "$status" -eq 0 ]
    echo "$output" | jq -e '.chunks_before > 0 and .chunks_before < .chunks_done'
    [ ! -e s.pcstore.part ]
    run --separate-stderr "$PCOMP" index -m "$TINY" text.txt -o s.pcstore --chunk 300
    is 0 "holds this text already"
}

@test "--store keeps a text for the next command" {
    need_model
    local first
    first=$(kept run -m "$TINY" -f text.txt --store kept --chunk 150)
    [ "$(find kept -type f | wc -l)" -eq 1 ]
    [ "$(kept run -m "$TINY" -f text.txt --store kept --chunk 150)" = "$first" ]
    [ "$(kept run -m "$TINY" -f text.txt --chunk 150)" = "$first" ]
    [ "$(find kept -type f | wc -l)" -eq 1 ]
    kept run -m "$TINY" -f text.txt --store kept --chunk 200
    [ "$(find kept -type f | wc -l)" -eq 2 ]
}

@test "two processes do not write one file" {
    need_model
    make_texts 2
    text 60000 > long.txt
    "$PCOMP" summarize -m "$TINY" -o out.jsonl -n 4 long.txt 2> /dev/null &
    local other=$!
    until [ -e out.jsonl ]; do sleep 0.05; done
    sleep 0.2
    summarize texts
    is 1 "another pcomp is writing to this file"
    summarize texts --share
    is 1 "without --share"
    kill "$other"
    wait "$other" || true
    summarize texts
    [ "$status" -eq 0 ]
}
