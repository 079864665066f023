#!/usr/bin/env python3
"""Does a chunk score find the chunk that holds the answer? Judged from the prefill alone, on LongBench's question answering.

  hits.py --data FOLDER --model MODEL.gguf [--eval build/pcomp-eval] [--scores question,bm25,fusion] [--chunk 2048] [--keep 1] \
          [--split 2/2] [--tasks NAME,...] [--run FOLDER] [-- FLAGS of pcomp-eval]

Of each task's file those rows are run whose answer stands in the text (whatever its case, without a final stop, more than
three bytes); rows count whose answer stands in fewer than half of the chunks. hit@k: one of the k best chunks holds it. Chance is
what k chunks drawn blindly would do. hit@half: among the better half, which is what a --prefilter of as many would read. A score is a chunk_score or an arm of its own, NAME=SETTING=VALUE;SETTING=VALUE: chunks that it left
early come last. The run's folder is kept when given, and what it already has is not run again.
"""
import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

TASKS = "narrativeqa,qasper,multifieldqa_en,multifieldqa_zh,hotpotqa,2wikimqa,musique,triviaqa"


def spellings(row):
    """The row's answers as the text spells them."""
    found = set()
    for answer in row["answers"]:
        answer = answer.strip().rstrip(".。")
        if len(answer.encode()) > 3:
            found.update(m.group() for m in re.finditer(re.escape(answer), row["context"], re.IGNORECASE))
    return sorted(found)


def write_rows(args, folder):
    """The rows worth running, by task, with answers that pcomp-eval finds by their bytes."""
    first, step = map(int, args.split.split("/"))
    tasks = []
    for task in args.tasks.split(","):
        lines = (pathlib.Path(args.data) / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[first - 1::step]]
        rows = [dict(row, answers=spellings(row)) for row in rows if spellings(row)]
        if rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
            tasks.append(task)
    return tasks


def arms(args):
    """Names and settings: a chunk score, or NAME=SETTING=VALUE;SETTING=VALUE…"""
    for score in args.scores.split(","):
        name, _, settings = score.partition("=")
        yield name, settings.replace(";", ",") or f"chunk_score={name}"


def run(args, data, out):
    cmd = [args.eval, "longbench", "-m", args.model, "-d", str(data), "-o", str(out)]
    for name, settings in arms(args):
        cmd += ["--method", f"{name}:parallelcomp,{settings},chunk={args.chunk},keep={args.keep},max_tokens=1"]
    if subprocess.run(cmd + args.rest).returncode:
        sys.exit("pcomp-eval failed")


def blind(n, holders, k):
    """The chance that k of n chunks, drawn without looking, have one of the holders."""
    return 1 - math.comb(n - holders, k) / math.comb(n, k)


def count(lines):
    n = hit1 = hit2 = half = 0
    chance1 = chance2 = 0.0
    for line in lines:
        row = json.loads(line)
        scores, holders = row["chunk_score"], set(row["answer_chunks"])
        if not 0 < len(holders) < len(scores) / 2:
            continue
        order = sorted(range(len(scores)), key=lambda c: (scores[c] is None, scores[c] or 0, c))
        n += 1
        hit1 += bool(holders & set(order[:1]))
        hit2 += bool(holders & set(order[:2]))
        half += bool(holders & set(order[:(len(order) + 1) // 2]))
        chance1 += blind(len(scores), len(holders), 1)
        chance2 += blind(len(scores), len(holders), 2)
    return n, (hit1, hit2, half), (chance1, chance2)


def interval(hits, n):
    """Hits and Wilson's 95% interval of their share, in %."""
    z, n = 1.96, max(n, 1)
    p, d = hits / n, 1 + z * z / n
    mid, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return f"{hits} ({100 * p:.0f}%, {100 * max(0, mid - half):.0f}-{100 * min(1, mid + half):.0f})"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--eval", default="build/pcomp-eval")
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--tasks", default=TASKS)
    p.add_argument("--scores", default="question,bm25,fusion")
    p.add_argument("--chunk", type=int, default=2048)
    p.add_argument("--keep", type=int, default=1)
    p.add_argument("--split", default="1/1")
    p.add_argument("--run")
    p.add_argument("rest", nargs="*")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        data = pathlib.Path(temp, "data")
        data.mkdir()
        out = pathlib.Path(args.run or pathlib.Path(temp, "run"))
        tasks = write_rows(args, data)
        run(args, data, out)
        for i, (score, _) in enumerate(arms(args)):
            lines = [line for task in tasks for line in (out / score / f"{task}.jsonl").read_text().splitlines()]
            n, hits, chance = count(lines)
            name = f"{pathlib.Path(args.model).stem}, chunk {args.chunk}, rows {args.split}"
            if i == 0:
                print(f"{name}: chance hit@1 {chance[0]:.1f} hit@2 {chance[1]:.1f} of {n}")
            found = " ".join(f"hit@{k} {interval(h, n)}" for k, h in zip(("1", "2", "half"), hits))
            print(f"{name}: {score} {found} of {n}", flush=True)


if __name__ == "__main__":
    main()
