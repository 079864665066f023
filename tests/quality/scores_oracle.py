#!/usr/bin/env python3
"""Our scorers against the packages that the official scripts call, on made pairs of texts. All must be equal, bit for bit.

  scores_oracle.py [--tool build/cpu/tests/score_tool] [--n 10000] [--seed 1] [NAME ...]
  scores_oracle.py --write tests/golden/scores.jsonl      a few of them, for the unit tests

Needs, for this python3 (3.11): rouge==1.0.1 rouge_score==0.1.2 fuzzywuzzy==0.18.0 jieba==0.42.1 numpy, and rapidfuzz for
the indel ratio. python-Levenshtein must not be there: fuzzywuzzy would take it in place of difflib.
"""
import argparse
import collections
import json
import logging
import random
import re
import string
import subprocess
import sys
import warnings

warnings.filterwarnings("ignore")
import jieba
import numpy
import rapidfuzz
import rouge
from difflib import SequenceMatcher
from fuzzywuzzy import fuzz
from rouge_score import rouge_scorer

jieba.setLogLevel(logging.ERROR)

# ==== What the originals give ====

# The list of the official scorers, by code point.
ZH_RANGES = [(0x2E, 0x2E), (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003),
             (0x300B, 0x3011), (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D),
             (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64)]
ZH_MARKS = {chr(c) for a, b in ZH_RANGES for c in range(a, b + 1)} | set(string.punctuation)


def normalize(s):
    kept = "".join(c for c in s.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def normalize_zh(s):
    return "".join("".join(c for c in s.lower() if c not in ZH_MARKS).split())


def f1(pred, truth):
    same = sum((collections.Counter(pred) & collections.Counter(truth)).values())
    if same == 0:
        return 0
    p, r = 1.0 * same / len(pred), 1.0 * same / len(truth)
    return (2 * p * r) / (p + r)


def qa_f1(pred, truth, _):
    return f1(normalize(pred).split(), normalize(truth).split())


def qa_f1_zh(pred, truth, _):
    words = [[w for w in map(normalize_zh, jieba.cut(t)) if w] for t in (pred, truth)]
    return f1(*words)


def calls_left(n=1):
    try:
        return calls_left(n + 1)
    except RecursionError:
        return n


def rouge_at(pred, truth, frames):
    """The official script has so many frames when it calls get_scores; the package gets what is left of 1000 here too."""
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(old + 1000 - frames - calls_left())
    try:
        return rouge.Rouge().get_scores([pred], [truth], avg=True)["rouge-l"]["f"]
    except Exception:
        return 0.0
    finally:
        sys.setrecursionlimit(old)


def rouge_l(pred, truth, _):
    return rouge_at(pred, truth, 3)


def rouge_zh(pred, truth, _):
    return rouge_at(" ".join(jieba.cut(pred)), " ".join(jieba.cut(truth)), 4)


def classes(pred, truth, all_classes):
    found = [c for c in all_classes if c in pred]
    for c in found:
        if c in truth and c != truth:
            found.remove(c)
    return 1.0 / len(found) if truth in found else 0.0


def numbers(pred, wanted):
    found = re.findall(r"\d+", pred)
    return sum(n == wanted for n in found) / len(found) if found else 0.0


def count(pred, truth, _):
    return numbers(pred, truth)


def retrieval(pred, truth, _):
    return numbers(pred, re.findall(r"Paragraph (\d+)", truth)[0])


def retrieval_zh(pred, truth, _):
    return numbers(pred, re.findall(r"段落(\d+)", truth)[0])


def code_line(pred):
    for line in pred.lstrip("\n").split("\n"):
        if not any(mark in line for mark in ("`", "#", "//")):
            return line
    return ""


def code_difflib(pred, truth, _):
    return fuzz.ratio(code_line(pred), truth) / 100


def code_indel(pred, truth, _):
    line = code_line(pred)
    if line == truth:
        return 1.0
    if not line or not truth:
        return 0.0
    return int(round(100 * rapidfuzz.distance.Indel.normalized_similarity(line, truth))) / 100


def best(metric, first_line=False):
    def score(row):
        pred = row["pred"].lstrip("\n").split("\n")[0] if first_line else row["pred"]
        return max([0.0] + [metric(pred, a, row["all_classes"]) for a in row["answers"]])
    return score


LSUM = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=False)


def ruler(part):
    def score(row):
        pred = re.sub(r"[\x00-\x1f]", "\n", row["pred"].strip()).strip().lower()
        hits = [1.0 if a.lower() in pred else 0.0 for a in row["answers"]]
        return max(hits) if part else sum(hits) / len(hits)
    return score


def as_int(s):
    try:
        return str(int(s))
    except ValueError:
        return ""


def joined(pieces):
    return "".join(p + "|" for p in pieces)


# ==== Made texts ====

LETTERS = ["abcdeXYZ", "абвгдЖЩѢ", "αβγςσΣΩάΐ", "的一是不了在人有我他中文段落", "ابتثجحخ", "אבגד", "अआइकिं", "ㄱ가나다", "あいうアイウｱ",
           "ßẞÅéÑİıŉǅﬁﬀΐKΩµ", "e\u0301a\u0308n\u0303", "😀👩\u200d💻🇨🇳✌🏽", "𝐀𝒷𝔘𐐀𐐨𞤀", "_aA1"]
DIGITS = ["0123456789", "٠١٢٣٤", "०१२३", "０１２", "𝟎𝟏𝟗", "²³¹½Ⅳ", "一二三"]
SPACES = [" ", " ", " ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u202f", "\u205f",
          "\u3000", "\u200b", "\ufeff"]
PUNCT = list(string.punctuation) + list("，。！？；：“”‘’（）《》、…—·～「」『』【】‐–­’«»¿؟।․") + [". ", ". ", ", ", "...", " . "]
ARTICLES = ["a", "an", "the", "The", "AN", "a-b", "the_", "a's", "thé", "a\u0301", "athe", "а"]
EDGES = ["\ud83d", "\udc00", "\x00", "\x7f", "\ufffd", "\U0010ffff", "ΑΣ", "Σ", "ΑΣ'", "Σ.Α", "ς", "'Σ"]


def word(rng):
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(ARTICLES)
    if kind < 0.2:
        letters = rng.choice(DIGITS)
    elif kind < 0.24:
        return rng.choice(EDGES)
    elif kind < 0.27:
        return chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000), rng.randrange(0x3000)]))
    else:
        letters = rng.choice(LETTERS)
    return "".join(rng.choice(letters) for _ in range(rng.choice([1, 1, 2, 3, 6])))


def text_of(rng, vocabulary, n):
    out = []
    for _ in range(n):
        out.append(rng.choice(vocabulary))
        out.append(rng.choice(PUNCT) if rng.random() < 0.2 else rng.choice(SPACES) if rng.random() < 0.9 else "")
    return "".join(out)


def mutate(rng, text):
    chars = list(text)
    for _ in range(rng.choice([1, 2, 5, 20])):
        at = rng.randrange(len(chars) + 1)
        if chars and rng.random() < 0.5:
            del chars[at:at + rng.choice([1, 1, 4])]
        else:
            chars[at:at] = rng.choice(chars or ["x"]) if rng.random() < 0.5 else word(rng)
    return "".join(chars)


def lone(text):
    """json.loads joins two halves of a surrogate pair, so a made text must not have them side by side."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def pair(rng, lengths=(0, 1, 2, 5, 12, 40, 120)):
    vocabulary = [word(rng) for _ in range(rng.choice([1, 2, 4, 10, 60]))]
    a = text_of(rng, vocabulary, rng.choice(lengths))
    b = mutate(rng, a) if rng.random() < 0.4 else text_of(rng, vocabulary, rng.choice(lengths))
    return lone(a), lone(b)


def row(pred, answers, all_classes=None):
    return {"pred": lone(pred), "answers": [lone(a) for a in answers], "all_classes": all_classes, "length": 1}


def any_rows(rng, n):
    for _ in range(n):
        a, b = pair(rng)
        yield row(a, [b] if rng.random() < 0.8 else [b, mutate(rng, b), mutate(rng, a)])


def deep_rows(rng, n):
    """And texts without a full stop, long enough that the original's recursion ends in an error, or just not."""
    yield from any_rows(rng, n)
    for size in range(988, 993):
        same = " ".join(map(str, range(size)))
        yield row(same, [same])
        yield row(same + " x. y", [same + " z. y"])
        for other in (1, 250, 256, 257, 300):
            yield row(" ".join("h%d" % i for i in range(size)) + ".end", [" ".join("r%d" % i for i in range(other)) + ".end"])
            yield row(" ".join("r%d" % i for i in range(other)) + ".end", [" ".join("h%d" % i for i in range(size)) + ".end"])
    for _ in range(8):
        words = [str(i) for i in range(rng.choice([5, 300]))]
        yield row(*[f(" ".join(rng.choice(words) for _ in range(rng.randint(300, 800)))) for f in (str, lambda t: [t])])


def class_rows(rng, n):
    for _ in range(n):
        names = [rng.choice(["Food", "Food item", "Order, rank", "Order", "item", "", "国际", "国际新闻", "新闻", "é", word(rng)])
                 for _ in range(rng.randint(1, 12))]
        pred = " ".join(rng.choice(names) for _ in range(rng.randint(0, 4)))
        yield row(("\n" if rng.random() < 0.3 else "") + pred + rng.choice(["", "\nFood", " x"]), [rng.choice(names + ["none"])], names)


def number_rows(mark):
    def rows(rng, n):
        for _ in range(n):
            figures = ["".join(rng.choice(d) for _ in range(rng.choice([1, 1, 2]))) for d in rng.choices(DIGITS[:5] + DIGITS[:1] * 5, k=3)]
            pred = "".join(rng.choice(figures + ["Paragraph ", "段落", " ", ", ", "²", "-", word(rng)]) for _ in range(rng.randint(0, 9)))
            before = rng.choice(["", "Paragraph x ", mark, mark[:-1]])
            yield row(pred, [before + mark + rng.choice(figures) + rng.choice(["", ".", " 7"])])
    return rows


def code_rows(rng, n):
    names = ["self", "value", "return", "if", "for", "in", "range", "(", ")", ":", "=", "==", " ", " ", " ", "    ", "x", "y", "[", "]", ".", "#", "//", "`", "\n", "\n"]
    for i in range(n):
        if i % 2:
            a, b = pair(rng, (0, 1, 5, 40, 120))
        else:
            size = rng.choice([3, 10, 30, 80, 200])
            b = "".join(rng.choice(names[:-5]) for _ in range(size))
            a = mutate(rng, b) if rng.random() < 0.6 else "".join(rng.choice(names) for _ in range(size))
        if rng.random() < 0.3:
            a = rng.choice(["\n\n", "\n", "# x\n", "// y\n", "```\n"]) + a
        yield row(a, [b])


def line_rows(rng, n):
    for r in code_rows(rng, n):
        yield row(r["pred"].replace("\n", " "), r["answers"])


def letter_rows(rng, n):
    """Every code point once, in a surrounding, then made texts."""
    for c in range(0x110000):
        if c % 64 == 0:
            yield row("".join("A" * (k % 3) + chr(k) + "Σ"[:k % 2] + "b" * (k % 5 == 0) for k in range(c, c + 64)), [""])
    yield from any_rows(rng, n)


def int_rows(rng, n):
    for _ in range(n):
        figures = "".join(rng.choice(rng.choice(DIGITS[:1] * 3 + DIGITS)) for _ in range(rng.randint(0, 6)))
        yield row("".join(rng.choice([figures, figures, rng.choice(SPACES), "_", "-", "+", "0", rng.choice(EDGES)]) for _ in range(rng.randint(0, 5))), [""])
    for k in (4299, 4300, 4301):
        yield from (row(c * k, [""]) for c in ("1", "0", "٣"))


def real_rows(most):
    def rows(rng, n):
        for _ in range(n):
            values = [rng.choice([rng.random() * 100, rng.randint(0, 40000) / 400, rng.randint(0, 10000) / 1000 + 0.005, rng.random()])
                      for _ in range(rng.randint(1, most))]
            yield {"pred": "", "answers": [repr(v) for v in values], "all_classes": None, "length": 1}
    return rows


def reals(r):
    return [float(a) for a in r["answers"]]


# NAME of score_tool: how rows are made, what the original says
NUMBERS = {
    "qasper": (any_rows, best(qa_f1)),
    "triviaqa": (any_rows, best(qa_f1, True)),
    "multifieldqa_zh": (any_rows, best(qa_f1_zh)),
    "gov_report": (deep_rows, best(rouge_l)),
    "samsum": (any_rows, best(rouge_l, True)),
    "dureader": (deep_rows, best(rouge_zh)),
    "trec": (class_rows, best(classes, True)),
    "passage_count": (number_rows(""), best(count)),
    "passage_retrieval_en": (number_rows("Paragraph "), best(retrieval)),
    "passage_retrieval_zh": (number_rows("段落"), best(retrieval_zh)),
    "lcc": (code_rows, best(code_difflib)),
    "lcc:indel": (code_rows, best(code_indel)),
    "difflib": (line_rows, lambda r: SequenceMatcher(None, r["pred"], r["answers"][0]).ratio()),
    "indel": (line_rows, lambda r: rapidfuzz.distance.Indel.normalized_similarity(r["pred"], r["answers"][0])),
    "rouge_lsum": (any_rows, lambda r: LSUM.score(r["answers"][0], r["pred"])["rougeLsum"].fmeasure),
    "ruler:vt": (any_rows, ruler(False)),
    "ruler:qa_1": (any_rows, ruler(True)),
    "round2": (real_rows(1), lambda r: round(reals(r)[0], 2)),
    "np_round2": (real_rows(1), lambda r: float(round(numpy.float64(reals(r)[0]), 2))),
    "np_mean": (real_rows(1000), lambda r: float(numpy.mean(reals(r)))),
}
TEXTS = {
    "lower": (letter_rows, str.lower),
    "upper": (letter_rows, str.upper),
    "strip": (letter_rows, str.strip),
    "split": (letter_rows, lambda s: joined(s.split())),
    "chars": (letter_rows, joined),
    "digits": (letter_rows, lambda s: joined(re.findall(r"\d+", s))),
    "int": (int_rows, as_int),
    "normalize": (letter_rows, normalize),
    "normalize_zh": (letter_rows, normalize_zh),
}


def check(args, name):
    made, original = (NUMBERS | TEXTS)[name]
    rows = list(made(random.Random(f"{args.seed} {name}"), args.n))
    text = "".join(json.dumps(r) + "\n" for r in rows)
    out = subprocess.run([args.tool, name], input=text, capture_output=True, text=True)
    ours = out.stdout.split("\n")[:-1]
    if out.returncode or len(ours) != len(rows):
        sys.exit(f"{name}: {len(ours)} answers for {len(rows)} rows; {out.stderr}")
    bad = 0
    for r, mine in zip(rows, ours):
        if name in TEXTS:
            right = original(r["pred"]).encode("utf-8", "surrogatepass").hex()
            same = mine == right
        else:
            right = original(r)
            same = mine != "error" and float(mine) == right
        if not same:
            bad += 1
            if bad <= 3:
                print(f"  {name}: ours {mine[:80]}, theirs {str(right)[:80]} for {json.dumps(r)[:600]}")
    print(f"{name:22} {len(rows) - bad:6} of {len(rows):6} equal")
    return bad


def write(args):
    """Rows as prediction lines: the scorer's name comes before the answers, and the score is the length."""
    with open(args.write, "w") as f:
        for name, (made, original) in NUMBERS.items():
            rng = random.Random(f"golden {name}")
            rows = [r for r in made(rng, 400) if len(json.dumps(r)) < 700]
            kept = [r for r in rows if original(r) not in (0, 1)][:16] + rng.sample(rows, 4)
            for r in kept:
                line = dict(r, answers=[name] + r["answers"], length=float(original(r)))
                f.write(json.dumps(line) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tool", default="build/cpu/tests/score_tool")
    p.add_argument("--n", type=int, default=10000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--write", metavar="FILE")
    p.add_argument("names", nargs="*", metavar="NAME")
    args = p.parse_args()
    if args.write:
        return write(args)
    bad = sum(check(args, name) for name in args.names or [*NUMBERS, *TEXTS])
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
