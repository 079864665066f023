#!/usr/bin/env python3
"""LongBench's questions over a million tokens: every English context one behind the other, in a random order, as the text of each.

  long_rows.py DATA OUT [SEED]      writes OUT/h1 and OUT/h2: every other row of each task, from the first and from the second on

Rows count whose answer, more than three bytes long, stands in their own context and nowhere else. Then, for either half:

  hits.py --data OUT/h1 --tasks 2wikimqa,… --chunk 4096 --keep 2 --split 1/1 --model MODEL.gguf \
          --scores 'auto=chunk_score=auto,early=early=profile,words=prefilter=64'
"""
import json
import pathlib
import random
import sys

ASKED = "2wikimqa hotpotqa multifieldqa_en musique narrativeqa qasper triviaqa".split()
BESIDE = "passage_retrieval_en gov_report qmsum samsum trec multi_news passage_count lcc repobench-p".split()


def rows_of(data, task):
    return [json.loads(line) for line in (data / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def haystack(data, seed):
    texts = sorted({row["context"] for task in ASKED + BESIDE for row in rows_of(data, task)})
    random.Random(seed).shuffle(texts)
    return "\n\n".join(texts)


def own_answers(row, text):
    """Those that stand in the row's context only; `text` is lower case."""
    own = row["context"].lower()
    answers = (answer.strip().rstrip(".") for answer in row["answers"])
    return [a for a in answers if len(a.encode()) > 3 and 0 < own.count(a.lower()) == text.count(a.lower())]


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    data, out = map(pathlib.Path, sys.argv[1:3])
    text = haystack(data, int(sys.argv[3]) if len(sys.argv) == 4 else 1)
    low = text.lower()
    for half in (1, 2):
        folder = out / f"h{half}"
        folder.mkdir(parents=True, exist_ok=True)
        for task in ASKED:
            rows = [dict(row, answers=own_answers(row, low)) for row in rows_of(data, task)[half - 1::2]]
            lines = [json.dumps(dict(row, context=text), ensure_ascii=False) + "\n" for row in rows if row["answers"]]
            if lines:
                (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
                print(f"half {half}, {task}: {len(lines)} rows")


main()
