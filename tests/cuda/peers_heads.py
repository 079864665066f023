#!/usr/bin/env python3
"""Causal attention of torch on the shapes of bench_heads.cu: what its speed-ups are beside a named peer.

32 query heads over 8 KV heads of 128, full attention, with the flash kernel (FlashAttention-2) and with cuDNN's; prints a line
for each length. Needs torch. Usage: peers_heads.py [MOST_TOKENS]      (default: 262144)
"""
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, DIM = 32, 8, 128


def median_ms(work, runs):
    times = []
    for i in range(runs + 1):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        if i:
            times.append(begun.elapsed_time(ended))
    return statistics.median(times)


def main():
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 262144
    tokens = 32768
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    while tokens <= most:
        q = torch.randn(1, HEADS, tokens, DIM, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn(1, KV_HEADS, tokens, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
            with torch.inference_mode(), sdpa_kernel(backend):
                ms = median_ms(lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), 3)
            rate = 4 * DIM * HEADS * tokens * (tokens + 1) / 2 / ms * 1e-9
            print(f"{name} {tokens:7d} tokens: {ms:9.2f} ms, {rate:3.0f} TFLOP/s", flush=True)
        tokens *= 2


main()
