"""Prints the table of test_quant.c: fingerprints of seeded blocks decoded by the PyPI package gguf."""
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, quants

N_BLOCKS = 64
# Bytes that hold the high half of an f16 field: bit 6 is cleared so that the value is finite.
F16_HIGH = {T.Q4_0: [1], T.Q4_1: [1, 3], T.Q5_0: [1], T.Q5_1: [1, 3], T.Q8_0: [1], T.Q4_K: [1, 3],
            T.Q5_K: [1, 3], T.Q6_K: [209], T.F16: [1], T.BF16: [1], T.F32: [3]}


def random_bytes(n, state):
    out = bytearray()
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        out.append(state >> 56)
    return out


def fingerprint(values):
    h = 0xCBF29CE484222325
    for word in values.ravel().astype(np.float32).view(np.uint32).tolist():
        h = ((h ^ word) * 0x100000001B3) & (2**64 - 1)
    return h


for t, high in F16_HIGH.items():
    weights, size = GGML_QUANT_SIZES[t]
    raw = random_bytes(N_BLOCKS * size, int(t) + 1)
    for block in range(N_BLOCKS):
        for at in high:
            raw[block * size + at] &= 0xBF
    data = np.frombuffer(bytes(raw), np.uint8).reshape(1, -1)
    if t in (T.F32, T.F16):
        data = data.view(np.float32 if t == T.F32 else np.float16)
    print("    { DT_%s, { %s }, 0x%016xu }," % (t.name, ", ".join(map(str, (high + [-1])[:2])),
                                              fingerprint(np.asarray(quants.dequantize(data, t)))))
