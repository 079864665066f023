#!/usr/bin/env python3
"""Writes made-up evaluation runs, the same for the same seed: for tests of `pcomp-eval report`.

Usage: make_run.py KIND FOLDER [SEED]
KIND: longbench (21 tasks, few rows), full (one whole small set), longbench-e, niah, ruler,
      infinitebench, hostile (texts, numbers and lines that must do no harm), empty, one.
"""
import json
import math
import os
import random
import sys

LONGBENCH = {
    "narrativeqa": ("qa_f1", 200), "qasper": ("qa_f1", 200), "multifieldqa_en": ("qa_f1", 150),
    "multifieldqa_zh": ("qa_f1_zh", 200), "hotpotqa": ("qa_f1", 200), "2wikimqa": ("qa_f1", 200),
    "musique": ("qa_f1", 200), "dureader": ("rouge_zh", 200), "gov_report": ("rouge", 200),
    "qmsum": ("rouge", 200), "multi_news": ("rouge", 200), "vcsum": ("rouge_zh", 200),
    "trec": ("classification", 200), "triviaqa": ("qa_f1", 200), "samsum": ("rouge", 200),
    "lsht": ("classification", 200), "passage_count": ("count", 200),
    "passage_retrieval_en": ("retrieval", 200), "passage_retrieval_zh": ("retrieval_zh", 200),
    "lcc": ("code_sim", 500), "repobench-p": ("code_sim", 500),
}
E_TASKS = ["qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa",
           "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"]
BINARY = {"classification", "retrieval", "retrieval_zh", "string_match_all"}
LAYERS, HEADS = 30, 3

SETTINGS = {
    "parallelcomp": {"method": "parallelcomp", "chunk_tokens": 1536, "keep": 2, "kv_cap": 1000, "kv_policy": "parallelcomp", "seed": 1},
    "full": {"method": "full", "chunk_tokens": 1536, "keep": "all", "kv_cap": "none", "kv_policy": "none", "seed": 1},
    "truncate": {"method": "truncate", "chunk_tokens": 1536, "keep": "all", "kv_cap": "none", "kv_policy": "none", "seed": 1},
    "snapkv": {"method": "parallelcomp", "chunk_tokens": 1536, "keep": 2, "kv_cap": 1000, "kv_policy": "snapkv", "seed": 1},
}
SKILL = {"parallelcomp": 0.12, "full": 0.0, "truncate": -0.22, "snapkv": 0.02}


def head(benchmark, tasks, methods, **more):
    return {"schema": "pcomp.eval.v1", "benchmark": benchmark, "profile": "official",
            "scorer": benchmark.split("@")[0] + "@v1 code_sim=difflib", "version": "0.1.0", "commit": "0123456789ab",
            "device": "cpu avx512vnni int16, 2 threads",
            "model": {"name": "SmolLM2 135M Instruct", "hash": "9f86d081884c7d65"},
            "data": {"name": benchmark.split("@")[0] + " test", "hash": "60303ae22b998861"},
            "tasks": tasks, "methods": {m: SETTINGS[m] for m in methods}, **more}


def chunks_of(rng, row, n_context, method):
    """Chunk scores (lower is better), what was kept, and where the answer lies."""
    n = max(1, math.ceil(n_context / 1536))
    if method in ("full", "truncate"):
        n = 1
    answer = min(n - 1, int(row["place"] * n))
    ends = [min(n_context, (i + 1) * -(-n_context // n)) for i in range(n)]
    if n == 1:
        cut = method == "truncate" and n_context > 6000 and 0.3 < row["place"] < 0.7
        return {"n_chunks": 1, "chunk_end": ends, "chunk_score": [None], "kept": [] if cut else [0],
                "answer_chunks": [0]}
    scores = [round(rng.gauss(3, 0.3), 4) for _ in range(n)]
    scores[answer] = round(scores[answer] - rng.random() * 0.9, 4)
    kept = sorted(sorted(range(n), key=lambda i: scores[i])[:max(2, n // 6)])
    return {"n_chunks": n, "chunk_end": ends, "chunk_score": scores, "kept": kept, "answer_chunks": [answer]}


def cost_of(rng, n_context, method, n_kept):
    by_head, seen = [], min(n_context, n_kept * 1536)
    for layer in range(LAYERS):
        share = 0.25 + 0.6 * math.exp(-layer / 9) if method != "full" and method != "truncate" else 1
        by_head.append([int(seen * min(1, share * rng.uniform(0.8, 1.2))) if share < 1 else seen for _ in range(HEADS)])
    kept = sum(map(sum, by_head))
    speed = {"full": 1400, "truncate": 2400}.get(method, 3100)
    prefill = n_context / speed * rng.uniform(0.9, 1.1) * (1 + (n_context / 60000 if method == "full" else 0))
    decode = rng.uniform(0.2, 0.6)
    return {"kv_in": seen * LAYERS * HEADS, "kv_kept": kept, "kv_kept_by_head": by_head,
            "seconds": {"tokenize": 0.02, "prefill": round(prefill, 3), "question": 0.1, "decode": round(decode, 3),
                        "total": round(prefill + decode + 0.12, 3)},
            "peak_bytes": int(2e8 + n_context * (23000 if method == "full" else 4000))}


def sample(rng, row, method):
    """One line: a score from the row's difficulty and the method's skill."""
    p = min(0.97, max(0.03, row["ease"] + SKILL[method] + rng.gauss(0, 0.1)))
    binary = row["metric"] in BINARY
    score = float(rng.random() < p) if binary else round(min(1, max(0, rng.gauss(p, 0.15))), 6)
    empty = rng.random() < 0.02
    line = {"schema": "pcomp.sample.v1", "id": row["id"], "key": f"{rng.getrandbits(64):016x}", "task": row["task"],
            "pred": "" if empty else "an answer", "answers": ["the answer"], "all_classes": None,
            "length": row["length"], "score": 0.0 if empty else score, "metric": row["metric"],
            "unparsed": not empty and score == 0 and rng.random() < 0.2, "empty": empty,
            "stop": "length" if rng.random() < 0.15 else "eos",
            "truncated": max(0, row["n_context"] - 8000) if method == "truncate" else 0,
            "n_context": min(8000, row["n_context"]) if method == "truncate" else row["n_context"], "n_question": 40}
    line.update(chunks_of(rng, row, row["n_context"], method))
    line.update(cost_of(rng, line["n_context"], method, len(line["kept"]) if line["n_chunks"] > 1 else 99))
    if row.get("target"):
        line["target_tokens"], line["depth"] = row["target"], row["depth"]
    return line


def write(folder, run, rows, methods, seed, prefix=""):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "run.json"), "w", encoding="utf-8") as f:
        json.dump(run, f, ensure_ascii=False, indent=1)
    for method in methods:
        os.makedirs(os.path.join(folder, method), exist_ok=True)
        rng = random.Random(f"{seed} {method}")
        files = {}
        for row in rows:
            line = sample(rng, row, method)
            if prefix:
                line["prediction"], line["ground_truth"] = line.pop("pred"), line.pop("answers")
            files.setdefault(row["task"], []).append(json.dumps(line, ensure_ascii=False))
        for task, lines in files.items():
            with open(os.path.join(folder, method, prefix + task + ".jsonl"), "w", encoding="utf-8") as f:
                f.write("\n".join(lines) + "\n")


def natural_rows(rng, tasks, count):
    rows = []
    for task, (metric, _) in tasks.items():
        ease = rng.uniform(0.25, 0.65)
        for i in range(count(task)):
            n = int(math.exp(rng.uniform(math.log(1500), math.log(20000))))
            rows.append({"id": f"{task}-{i:03d}", "task": task, "metric": metric, "n_context": n,
                         "length": int(n / 1.35), "ease": min(0.9, max(0.1, rng.gauss(ease, 0.15))),
                         "place": rng.random()})
    return rows


def grid_rows(rng, tasks, lengths, depths, repeats):
    rows = []
    for task in tasks:
        for target in lengths:
            for depth in depths:
                for i in range(repeats):
                    ease = 0.95 - 0.09 * math.log2(target / 2048) - (0.25 if 0.2 < depth < 0.7 else 0)
                    rows.append({"id": f"{task}-{target}-{depth:g}-{i}", "task": task, "metric": "string_match_all",
                                 "n_context": target - rng.randrange(60), "length": target, "ease": ease,
                                 "place": min(0.999, depth), "target": target, "depth": depth})
    return rows


def append(path, *lines):
    with open(path, "ab") as f:
        for line in lines:
            f.write(line if isinstance(line, bytes) else line.encode())


def make_hostile(folder, seed):
    bad = '</td><script>alert(1)</script>&"\'`|[x](javascript:1)'
    task, label = "ta\u202esk <b>&amp;", "m\"'<i>|`x"
    run = head("niah", {task: {"metric": "<u>m</u>", "rows": 9}, "never run": {"metric": "m", "rows": 3}}, [])
    run["methods"] = {label: {"set<ting>": "=1+1", "list": [1, {"a": None}]}, "../up": {}, "שלום עולם": {"a": True}}
    run["model"]["name"] = bad
    rng = random.Random(seed)
    write(folder, run, [], [], seed)
    for name in (label, "שלום עולם"):
        path = os.path.join(folder, name)
        os.makedirs(path, exist_ok=True)
        path = os.path.join(path, "lines.jsonl")

        def line(i, **more):
            text = {"schema": "pcomp.sample.v1", "id": f"{bad}{i}", "key": f"{i:016x}", "task": task}
            text.update(more)
            return json.dumps(text) + "\n"

        append(path, line(0, score=0.25), line(1, score=0.5, pred="\u0007\u001b[31m"), line(2, score=None),
               '{"schema":"pcomp.sample.v1","id":"nan","task":' + json.dumps(task) + ',"score":NaN}\n',
               line(4, score=7), line(5, error={"code": "memory<", "message": "\u0000\u001b]0;x\u0007" + bad}),
               "not json\n", "[1,2]\n", "\n", "[" * 5000 + "\n", b'{"id":"\xff\xfe","score":0.75,"task":"raw"}\n',
               line(0, score=1.0), line(0, error={"code": "late", "message": "after a good one"}),
               line(6, score=0.5, n_chunks=-3, kept="x", answer_chunks=[9, "a", -1], kv_kept_by_head=[[1], [1, 2]],
                    seconds="soon", depth=9, target_tokens="long", length=[]),
               line(7, score=rng.random(), kv_kept_by_head=[[1, 2], [3, 4]], kv_kept=10, kv_in=40),
               '{"schema":"other","id":"x","score":1}\n', '{"id":"torn","sco')


def main():
    kind, folder = sys.argv[1], sys.argv[2]
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    rng = random.Random(seed)
    if kind == "longbench":
        methods = ["parallelcomp", "full", "truncate", "snapkv"]
        rows = natural_rows(rng, LONGBENCH, lambda t: 8 if t in ("trec", "lcc", "qasper") else 1 if t == "vcsum" else 7)
        tasks = {t: {"metric": m, "rows": sum(r["task"] == t for r in rows), "official_rows": n}
                 for t, (m, n) in LONGBENCH.items()}
        write(folder, head("longbench", tasks, methods), rows, methods, seed)
        append(os.path.join(folder, "full", "trec.jsonl"),
               *(json.dumps({"schema": "pcomp.sample.v1", "id": f"trec-{i:03d}x", "key": f"{i:016x}", "task": "trec",
                             "error": {"code": "memory", "message": "needs 41.2 GiB, 38.0 free"}}) + "\n"
                 for i in range(2)), '{"schema":"pcomp.sample.v1","id":"trec-0')
    elif kind == "full":
        methods = ["parallelcomp", "full"]
        tasks = {t: {"metric": m, "rows": n, "official_rows": n} for t, (m, n) in LONGBENCH.items()}
        write(folder, head("longbench", tasks, methods), [], methods, seed)
        for method in methods:
            for task, (metric, n) in LONGBENCH.items():
                append(os.path.join(folder, method, task + ".jsonl"),
                       *(json.dumps({"schema": "pcomp.sample.v1", "id": f"{task}-{i}", "task": task,
                                     "score": round(rng.random(), 4)}) + "\n" for i in range(n)))
    elif kind == "longbench-e":
        methods = ["parallelcomp", "full"]
        own = {t: LONGBENCH[t] for t in E_TASKS}
        rows = natural_rows(rng, own, lambda t: 12)
        tasks = {t: {"metric": own[t][0], "rows": 12, "official_rows": 300} for t in own}
        write(folder, head("longbench-e", tasks, methods), rows, methods, seed)
    elif kind == "niah":
        methods = ["parallelcomp", "full", "truncate"]
        rows = grid_rows(rng, ["needle"], [4096, 8192, 16384, 32768, 65536, 131072],
                         [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1], 3)
        write(folder, head("niah", {"needle": {"metric": "string_match_all", "rows": len(rows)}}, methods), rows,
              methods, seed)
    elif kind == "ruler":
        methods = ["parallelcomp", "full"]
        names = ["niah_single_1", "niah_multikey_1", "niah_multiquery", "vt", "qa_1"]
        rows = grid_rows(rng, names, [4096, 8192, 16384, 32768], [0, 0.25, 0.5, 0.75, 1], 2)
        write(folder, head("ruler", {t: {"metric": "string_match_all", "rows": 40} for t in names}, methods), rows,
              methods, seed)
    elif kind == "infinitebench":
        methods = ["parallelcomp", "full"]
        own = {"passkey": ("first_int", 590), "kv_retrieval": ("word", 500)}
        rows = natural_rows(rng, own, lambda t: 10)
        tasks = {t: {"metric": m, "rows": 10, "official_rows": n} for t, (m, n) in own.items()}
        write(folder, head("infinitebench@2024-06", tasks, methods), rows, methods, seed, prefix="preds_")
    elif kind == "hostile":
        make_hostile(folder, seed)
    elif kind == "empty":
        write(folder, head("longbench", {"trec": {"metric": "classification", "rows": 5, "official_rows": 200}},
                           ["full"]), [], ["full"], seed)
    elif kind == "one":
        write(folder, {"schema": "pcomp.eval.v1", "benchmark": "longbench", "methods": {"full": {}}}, [], ["full"], seed)
        append(os.path.join(folder, "full", "trec.jsonl"), '{"schema":"pcomp.sample.v1","task":"trec","score":0.5}\n')
    else:
        sys.exit(f"make_run.py: unknown kind '{kind}'")


if __name__ == "__main__":
    main()
