#!/usr/bin/env python3
"""Short multiple-choice rows: questions of trec's rows, each after 24 others with their types, one of them of its own.

Usage: tests/quality/short_rows.py LONGBENCH_FOLDER OUT_FOLDER [N]   writes OUT_FOLDER/trec.jsonl, N rows (default 200),
which `pcomp-eval longbench -d OUT_FOLDER --tasks trec` reads. The same rows every time.
"""
import json
import os
import random
import re
import sys

EXAMPLES = 24
PAIR = re.compile(r"Question: (.*)\nType: (.*)\n?")


def pairs_of(rows):
    found = {}
    for row in rows:
        for question, kind in PAIR.findall(row["context"]):
            found.setdefault(question, kind)
    return sorted(found.items())


def main():
    source, out = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    with open(os.path.join(source, "trec.jsonl"), encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    pairs, draw = pairs_of(rows), random.Random(1)
    draw.shuffle(pairs)
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "trec.jsonl"), "w", encoding="utf-8") as f:
        for i in range(min(n, len(pairs))):
            asked, kind = pairs[i]
            others = pairs[:i] + pairs[i + 1:]
            same = [p for p in others if p[1] == kind]
            shown = draw.sample(others, EXAMPLES - 1) + draw.sample(same, min(1, len(same)))
            draw.shuffle(shown)
            context = "".join(f"Question: {q}\nType: {k}\n" for q, k in shown) + f"Question: {asked}"
            row = dict(rows[0], _id=f"short-{i}", answers=[kind], context=context)
            row["length"] = len(row["context"].split())
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
