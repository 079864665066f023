#!/usr/bin/env bash
# Prints the folder of a CUDA toolkit: the one at $CUDA or /usr/local/cuda, else one from Python packages, fetched into
# build/cuda-toolkit (840 MB) by name and version. Says what is missing on standard error.
set -euo pipefail
cd "$(dirname "$0")/.."

for folder in "${CUDA:-/usr/local/cuda}" "$PWD/build/cuda-toolkit/nvidia/cu13"; do
    if [ -x "$folder/bin/nvcc" ] && compgen -G "$folder/lib*/libcublasLt.so*" > /dev/null; then
        echo "$folder"
        exit 0
    fi
done

packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-nvtx==13.0.85)
tests/setup.sh build demo
echo "No CUDA toolkit here: fetching one (840 MB) into build/cuda-toolkit." >&2
rm -rf build/cuda-toolkit
mkdir -p build
if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
    --target build/cuda-toolkit.part "${packages[@]}" >&2 2> build/cuda-toolkit.log; then
    tail -n 3 build/cuda-toolkit.log >&2
    echo "cuda.sh: no CUDA toolkit; install one of 13.0 or newer, or give its folder: make cuda CUDA=/path" >&2
    exit 1
fi
mv build/cuda-toolkit.part build/cuda-toolkit
chmod +x build/cuda-toolkit/nvidia/cu13/bin/* build/cuda-toolkit/nvidia/cu13/nvvm/bin/*
echo "$PWD/build/cuda-toolkit/nvidia/cu13"
