#!/usr/bin/env python3
"""Writes eval/pytext_tables.h: what CPython 3.11 (Unicode 14) knows of each code point.

  python3.11 eval/pytext_tables.py > eval/pytext_tables.h
"""
import sys
import unicodedata

assert unicodedata.unidata_version == "14.0.0", "wants the Unicode of CPython 3.11"
ALL = [chr(c) for c in range(0x110000)]


def ranges(has):
    out = []
    for c, ch in enumerate(ALL):
        if not has(ch):
            continue
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def cased(ch):  # the sigma after it is a final one
    return (ch + "\u03a3").lower()[-1] == "\u03c2"


def ignorable(ch):  # a sigma looks through it
    return not cased(ch) and ("A" + ch + "\u03a3").lower()[-1] == "\u03c2"


def maps(fold):
    """Runs (first, last, step, delta) of code points that map to one other."""
    out = []
    for c, ch in enumerate(ALL):
        to = fold(ch)
        if to == ch or len(to) != 1:
            continue
        delta = ord(to) - c
        if out and out[-1][3] == delta:
            first, last, step, _ = out[-1]
            gap = c - last
            if gap <= 2 and (first == last or gap == step):
                out[-1][1:3] = [c, gap]
                continue
        out.append([c, c, 1, delta])
    return out


def table(kind, name, rows, form):
    cells = [form(r) for r in rows]
    print(f"\nstatic const struct {kind} {name}[] = {{")
    line = "   "
    for cell in cells:
        if len(line) + len(cell) + 2 > 100:
            print(line)
            line = "   "
        line += " " + cell + ","
    print(line)
    print("};")


def pair(r):
    return f"{{0x{r[0]:X}, 0x{r[1]:X}}}"


def move(r):
    return f"{{0x{r[0]:X}, 0x{r[1]:X}, {r[2]}, {r[3]}}}"


def spell(r):
    return "{0x%X, {%s}}" % (r[0], ", ".join("0x%X" % ord(c) for c in r[1]))


print("/* pytext_tables.h - CPython 3.11's facts on code points; made by eval/pytext_tables.py, not by hand. */")
print("#ifndef PCOMP_PYTEXT_TABLES_H\n#define PCOMP_PYTEXT_TABLES_H\n\n#include <stdint.h>\n\n/* clang-format off */")
print("struct Range { uint32_t first, last; };")
print("struct Move { uint32_t first, last, step; int32_t delta; };")
print("struct Spell { uint32_t from, to[3]; };")
table("Range", "WORD_RANGES", ranges(str.isalnum), pair)
table("Range", "CASED_RANGES", ranges(cased), pair)
table("Range", "IGNORABLE_RANGES", ranges(ignorable), pair)
print("\n/* Each has the digits 0 to 9, in order, once or more. */", end="")
decimals = ranges(str.isdecimal)
assert all((b - a + 1) % 10 == 0 and all(unicodedata.decimal(chr(c)) == (c - a) % 10 for c in range(a, b + 1))
           for a, b in decimals)
table("Range", "DECIMAL_RANGES", decimals, pair)
table("Move", "LOWER_MOVES", maps(str.lower), move)
table("Move", "UPPER_MOVES", maps(str.upper), move)
longer = [(c, ch.upper()) for c, ch in enumerate(ALL) if len(ch.upper()) > 1]
table("Spell", "UPPER_SPELLS", longer, spell)
assert [c for c, ch in enumerate(ALL) if len(ch.lower()) > 1] == [0x130], "one lower mapping is spelt in pytext.c"
print("\n/* clang-format on */\n\n#endif")
sys.stdout.flush()
