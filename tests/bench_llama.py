#!/usr/bin/env python3
"""llama.cpp's speed by llama-cpp-python, as JSON; and the table of both engines.

  bench_llama.py MODEL THREADS          one measurement: {"prefill_2048": tok/s, "prefill_8192": …, "decode": …}
  bench_llama.py --table FILE...        means, standard deviations and ratios of pcomp.* and llama.* files

Prefill: n tokens into an empty context, n_batch 512 (llama.cpp's default), f16 KV, one warm-up before.
Decode: 64 greedy tokens after a prompt of 2,048. pcomp's side is `pcomp bench --format json`.
"""
import json
import os
import statistics
import sys
import time

NAMES = ("prefill_2048", "prefill_8192", "decode")


def measure(model, threads):
    from llama_cpp import Llama

    llm = Llama(model, n_ctx=8192, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    text = b"The whale swam on through the long grey swell, and the men watched it from the deck. " * 700
    tokens = llm.tokenize(text, add_bos=False)

    def prefill(n):
        llm.reset()
        begin = time.perf_counter()
        llm.eval(tokens[:n])
        return n / (time.perf_counter() - begin)

    prefill(512)
    rates = {"prefill_8192": prefill(8192), "prefill_2048": prefill(2048)}
    n = 64
    begin = time.perf_counter()
    for _ in range(n):
        llm.eval([llm.sample(temp=0.0)])
    rates["decode"] = n / (time.perf_counter() - begin)
    return rates


def pcomp_rates(data):
    """name -> tok/s of the rows that both engines have."""
    found = {}
    for row in data["rows"]:
        words = row["shape"].split()  # "2048 tokens", "after 2048 tokens"
        if row["test"] == "prefill":
            found["prefill_" + words[0]] = row["rate"]
        elif row["test"] == "decode" and "2048" in words:
            found["decode"] = row["rate"]
    return found


def table(paths):
    runs = {"pcomp": [], "llama": []}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if os.path.basename(path).startswith("pcomp"):
            runs["pcomp"].append(pcomp_rates(data))
        else:
            runs["llama"].append(data)
    print("| tokens a second | pcomp | llama.cpp | ratio |")
    print("|---|---|---|---|")
    for name in NAMES:
        sides = [[run[name] for run in runs[side] if name in run] for side in ("pcomp", "llama")]
        if not all(sides):
            print(f"| {name} | not measured | | |")
            continue
        cells = [f"{statistics.mean(s):.1f} ± {statistics.stdev(s) if len(s) > 1 else 0:.1f}" for s in sides]
        ratio = statistics.mean(sides[0]) / statistics.mean(sides[1])
        print(f"| {name} | {cells[0]} | {cells[1]} | {ratio:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--table":
        table(sys.argv[2:])
    elif len(sys.argv) == 3:
        json.dump(measure(sys.argv[1], int(sys.argv[2])), sys.stdout)
        print()
    else:
        sys.exit(__doc__)
