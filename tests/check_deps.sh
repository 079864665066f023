#!/usr/bin/env bash
# The dependency rule, read from the #include lines: nothing includes upward, no cycles, and outside
# libraries stay where they belong. Prints every breach; exit status 1 when there is one.
# Usage: tests/check_deps.sh [FOLDER]      (default: this repository)
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

# From the bottom up. A module is a .c with its .h: `quant` for src/quant.*, `eviction/select` for
# another folder. It may include modules of its own line and of the lines below it.
layers=(
    "base"
    "quant merge page_store team team_*"
    "config config_*"
    "eviction/* calib/*"
    "headmap headmap_* chunk_profile"
    "gguf safetensors"
    "model model_* geometry geometry_*"
    "tokenizer tokenizer_* text_* pretokenize added strmap bpe spm parts chat chat_* prompt"
    "kernels kernels_*"
    "backend cpu cpu_* page_frames"
    "chunk_plan kv_cache kv_* pages peers store store_*"
    "transformer"
    "pcomp sampler"
    "session session_* prefill decode engine plan bench bench_* perplexity calibrate calibrate_*"
    "html cli cli_* cmd_* bias_* program commands jsonl results explain provenance progress summarize inspect demo"
    "main eval/*"
)
# Narrower than their layer: module, then all that it may include beside its own folder or family.
only=(
    "eviction/* : base config eviction/*"
    "calib/* : base config calib/*"
    "config : base"
    "config_* : base config"
    "kernels_* : base quant config model kernels kernels_*"
    "cpu : base quant model kernels kernels_* backend cpu_*"
    "cpu_* : base quant page_store model kernels kernels_* backend cpu cpu_* eviction/page_select eviction/residency"
    "page_frames : base page_store eviction/residency"
    "main : base config pcomp provenance cli cli_* cmd_*"
)
# Outside headers, and the modules that may know them.
outside=(
    "cjson/cJSON.h cJSON.h : config headmap headmap_* chunk_profile safetensors model model_* cli cli_* cmd_* jsonl results explain provenance summarize bench inspect bias_* eval/*"
    "zlib.h zstd.h : eval/dataset"
    "xxhash.h : base"
    "pcre2.h : tokenizer tokenizer_* pretokenize"
    "mpi.h : team_mpi"
    "immintrin.h : kernels_* quant"
    "cmocka.h : -"
)

breaches=0
breach() {
    echo "check_deps: $*"
    breaches=$((breaches + 1))
}

matches() { # matches NAME GLOB...
    local name=$1 glob
    shift
    for glob in "$@"; do
        # shellcheck disable=SC2053 # a glob, on purpose
        [[ $name != $glob ]] || return 0
    done
    return 1
}

layer_of() { # sets $layer
    local i globs
    for i in "${!layers[@]}"; do
        read -ra globs <<< "${layers[i]}"
        layer=$i
        if matches "$1" "${globs[@]}"; then return 0; fi
    done
    return 1
}

module_of() { # src/quant.h -> quant, calib/rules.c -> calib/rules
    local m=${1%.[ch]}
    echo "${m#src/}"
}

mapfile -t files < <(find src eviction calib eval -name '*.[ch]' 2> /dev/null | sort)
[ ${#files[@]} -gt 0 ] || { echo "check_deps: no sources here" >&2; exit 1; }

edges=$(mktemp)
trap 'rm -f "$edges"' EXIT
for file in "${files[@]}"; do
    from=$(module_of "$file")
    if ! layer_of "$from"; then
        breach "$file is in no layer: add it to the table in tests/check_deps.sh"
        continue
    fi
    mine=$layer
    while read -r line include; do
        if [ -e "src/$include" ]; then
            to=$(module_of "$include")
        elif [ -e "$include" ]; then
            to=$(module_of "$include")
        elif [ -e "${file%/*}/$include" ]; then
            to=$(module_of "${file%/*}/$include")
        else
            for rule in "${outside[@]}"; do
                read -ra headers <<< "${rule%% : *}"
                read -ra users <<< "${rule##* : }"
                if matches "$include" "${headers[@]}" && ! matches "$from" "${users[@]}"; then
                    breach "$file:$line: $include is for ${rule##* : } only"
                fi
            done
            continue
        fi
        [ "$to" != "$from" ] || continue
        echo "$from.${file##*.} $to.h" >> "$edges"
        if layer_of "$to" && [ "$layer" -gt "$mine" ]; then
            breach "$file:$line: $from may not include $to, which stands above it"
        fi
        for rule in "${only[@]}"; do
            read -ra allowed <<< "${rule##* : }"
            if matches "$from" "${rule%% : *}" && ! matches "$to" "${allowed[@]}"; then
                breach "$file:$line: $from may not include $to, only ${rule##* : }"
            fi
        done
    done < <(awk -F '[<">]' '/^[ \t]*#[ \t]*include[ \t]*[<"]/ { print FNR, $2 }' "$file")
done

[ -s "$edges" ] || breach "read no #include at all"
if ! loop=$(tsort "$edges" 2>&1 > /dev/null); then
    breach "headers in a cycle:$(echo "$loop" | sed '1d; s/^tsort://' | tr -d '\n')"
fi
[ $breaches -eq 0 ]
