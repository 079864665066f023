#!/usr/bin/env python3
"""What a user of transformers has today, on the card that pcomp is measured on: Llama-3-8B's shape with random weights.

Prefill of 131,072 tokens with full attention, the naive form of the method (16 chunks of 8,192 in batches of 4), and the
time of a token after the full prefill. Needs torch and transformers; prints one line each.
"""
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

TOKENS, CHUNK, BATCH = 131072, 8192, 4


def seconds(work):
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def main():
    config = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=TOKENS + 256,
                         rms_norm_eps=1e-5, rope_theta=500000.0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    weights = torch.cuda.memory_allocated()
    ids = torch.randint(0, 128256, (1, TOKENS), device="cuda")

    def peak():
        return (torch.cuda.max_memory_allocated() - weights) / 2**30

    with torch.inference_mode():
        chunks = ids.view(-1, CHUNK)

        def naive():
            for i in range(0, len(chunks), BATCH):
                model(chunks[i:i + BATCH], use_cache=True, logits_to_keep=1)

        naive()
        torch.cuda.reset_peak_memory_stats()
        print(f"transformers, {TOKENS // CHUNK} chunks of {CHUNK} in batches of {BATCH}: {seconds(naive):.2f} s,"
              f" {peak():.1f} GiB above the weights", flush=True)
        cache = DynamicCache()
        torch.cuda.reset_peak_memory_stats()
        full = seconds(lambda: model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1))
        print(f"transformers, full attention: {full:.2f} s, {peak():.1f} GiB above the weights", flush=True)
        token = ids[:, :1]
        model(token, past_key_values=cache)
        steps = 8
        took = seconds(lambda: [model(token, past_key_values=cache) for _ in range(steps)])
        print(f"transformers, a token after it: {1e3 * took / steps:.1f} ms")


main()
