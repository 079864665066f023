#!/usr/bin/env python3
"""LongBench's questions over a million tokens: every English context one behind the other, in a random order, as the text of each.

  long_rows.py DATA OUT [SEED [BYTES]]      writes OUT/h1 and OUT/h2: every other row of each task, from the first and from the second on

With BYTES a row's text is its own context among so many others as come to that length, drawn for each row.

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


def all_texts(data):
    return sorted({row["context"] for task in ASKED + BESIDE for row in rows_of(data, task)})


def drawn(texts, own, size, draw):
    """`own` and as many others as come to `size` bytes together."""
    left = size - len(own.encode())
    for text in draw.sample(texts, len(texts)):
        n = len(text.encode()) + 2
        if text != own and n <= left:
            left -= n
            yield text
    yield own


def haystack(texts, draw):
    texts = list(texts)
    draw.shuffle(texts)
    return "\n\n".join(texts)


def own_answers(row, text):
    """Those that stand in the row's context only; `text` is lower case."""
    own = row["context"].lower()
    answers = (answer.strip().rstrip(".") for answer in row["answers"])
    return [a for a in answers if len(a.encode()) > 3 and 0 < own.count(a.lower()) == text.count(a.lower())]


def own_haystack(texts, row, seed, size):
    draw = random.Random(f"{seed} {row['_id']}")
    return haystack(drawn(texts, row["context"], size, draw), draw)


def long_row(row, text):
    """Its line; none where no answer is its own."""
    own = own_answers(row, text.lower())
    if own:
        yield json.dumps(dict(row, answers=own, context=text), ensure_ascii=False) + "\n"


def main():
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    data, out = map(pathlib.Path, sys.argv[1:3])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    size = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    texts = all_texts(data)
    whole = None if size else haystack(texts, random.Random(seed))
    for half in (1, 2):
        folder = out / f"h{half}"
        folder.mkdir(parents=True, exist_ok=True)
        for task in ASKED:
            rows = rows_of(data, task)[half - 1::2]
            lines = [line for row in rows for line in long_row(row, whole or own_haystack(texts, row, seed, size))]
            if lines:
                (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
                print(f"half {half}, {task}: {len(lines)} rows")


main()
