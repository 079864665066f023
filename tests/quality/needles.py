#!/usr/bin/env python3
"""Needles in a real book: does a method keep the right chunk, and does the model then answer exactly?

  needles.py --pcomp build/pcomp --model MODEL.gguf --book models/book.txt [--method parallelcomp] \
             [--lengths 16384,32768,65536,131072] [--depths 0,0.25,0.5,0.75,1] [--seed 1] [--out FILE.jsonl]

One sentence with a five-digit number is put between two lines of the book; the question asks for it, the answer's first
words are given. Names, numbers and the part of the book change with the seed. Lengths are in the model's tokens. A row
counts as exact when the answer begins with the number, as right when the chunk that holds the sentence was kept.
Anything after `--` goes to pcomp run.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile

NAMES = ("Queequeg", "Tashtego", "Daggoo", "Starbuck", "Bulkington", "Fedallah", "Elijah", "Peleg", "Bildad", "Flask")


def tokens_of(args, path):
    out = subprocess.run([args.pcomp, "plan", "-m", args.model, "-f", path, "-q", "x", "--method", "full", "--json"],
                         capture_output=True, text=True)
    return json.loads(out.stdout)["plan"]["n_context"]


def text_of_length(args, book, start, n_tokens, needle, depth):
    """Book text from `start`, with the needle at `depth`, within 0.2% of n_tokens; and the needle's byte offset."""
    size = int(n_tokens * 4.0)
    for _ in range(4):
        part = book[start:start + size]
        at = part.rfind("\n", 0, int(len(part) * depth)) + 1 if depth < 1 else part.rfind("\n") + 1
        text = part[:at] + needle + "\n" + part[at:]
        with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as f:
            f.write(text)
        n = tokens_of(args, f.name)
        if abs(n - n_tokens) <= n_tokens * 0.002:
            break
        size = int(size * n_tokens / n)
    return f.name, len(part[:at].encode()), n


def ask(args, path, name):
    question = f"What is the special magic number for {name} mentioned in the text?"
    prefix = f"The special magic number for {name} mentioned in the text is"
    cmd = [args.pcomp, "run", "-m", args.model, "-f", path, "-q", question, "--answer-prefix", prefix,
           "-n", "12", "--method", args.method, "--json", "--progress", "none"] + args.rest
    out = subprocess.run(cmd, capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    return json.loads(out.stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pcomp", default="build/pcomp")
    p.add_argument("--model", required=True)
    p.add_argument("--book", default="models/book.txt")
    p.add_argument("--method", default="parallelcomp")
    p.add_argument("--lengths", default="16384,32768,65536,131072")
    p.add_argument("--depths", default="0,0.25,0.5,0.75,1")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out")
    p.add_argument("rest", nargs="*")
    args = p.parse_args()
    rng = random.Random(args.seed)
    book = open(args.book, encoding="utf-8").read()
    out = open(args.out, "a", encoding="utf-8") if args.out else None
    for length in map(int, args.lengths.split(",")):
        right = exact = n = 0
        seconds = 0.0
        for depth in map(float, args.depths.split(",")):
            name, number = rng.choice(NAMES), str(rng.randint(10000, 99999))
            start = rng.randrange(0, max(1, len(book) - int(length * 4.6)))
            needle = f"One of the special magic numbers for {name} is: {number}."
            path, at, n_tokens = text_of_length(args, book, start, length, needle, depth)
            r = ask(args, path, name)
            kept = any(c["kept"] and c["byte_begin"] <= at < c["byte_end"] for c in r["chunks"])
            hit = r["text"].strip().startswith(number)
            right, exact, n, seconds = right + kept, exact + hit, n + 1, seconds + r["seconds"]["total"]
            row = {"model": r["model"]["name"], "method": args.method, "tokens": n_tokens, "depth": depth, "number": number,
                   "right_chunk": kept, "exact": hit, "text": r["text"], "seconds": r["seconds"]["total"], "rest": args.rest}
            if out:
                out.write(json.dumps(row) + "\n")
                out.flush()
        print(f"{args.method} {length}: right chunk {right}/{n}, exact {exact}/{n}, {seconds / n:.1f} s each", flush=True)


if __name__ == "__main__":
    main()
