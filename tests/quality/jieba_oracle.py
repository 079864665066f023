#!/usr/bin/env python3
"""Cuts texts with our segmenter and with the jieba of PyPI (0.42.1, installed for this python3) and compares the words.

  jieba_oracle.py [--tool build/cpu/tests/jieba_tool] [--folder models/jieba] [--n 20000] [--seed 1] [FILE.jsonl ...]

Texts are made: words of the dictionary in a row, single characters of every kind, mixes, hostile strings; and every string
in the given JSON lines, however deep. All must be equal, word for word.
"""
import argparse
import json
import logging
import random
import subprocess
import sys
import time

import jieba

HAN = [chr(c) for c in range(0x4E00, 0x9FD6)]
COMMON = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
TRADITIONAL = "臺灣電腦軟體資訊網路開發標準測試語言國際學習專業關係問題時間對應變數據庫處理結構組織環境製造業務經濟貿易應該認識愛說話聽見這個為什麼們"
ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SIGNS = "+#&._%-"
PUNCT = "，。！？；：“”‘’（）《》、…—·～「」『』【】,.!?;:'\"()[]{}<>/\\|@$^*=~`"
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000\ufeff\u200b"
EDGES = "\u4dff\u4e00\u9fd5\u9fd6\u9fff\u3400\u4dbf\uf900\uff21\uff11\u0661\u0967\xb2\u2236\xb5\xe9\xdf\u0130\ufffd\x00\x7f\x80\ud83d\udc00"
ASTRAL = "\U00020000\U0002a6df\U0001f600\U0001f468\u200d\U0001f469\U0001f1e8\U0001f1f3\U0010ffff\u2764\ufe0f"
QUIRKS = ["\r\n", "\n\r\r\n", "3.14", "1.5%", "50%", "a.5b", "1.2.3", "v1.0.2-beta", "C++", "c#", "AT&T", "T恤", "4S店", "B超", "江南style",
          "γ射线", "1号店", "阿Q", "..", "%%", "a%b", "9.", ".9", "-1", "e-mail", "foo_bar", "100.00%", "Ａ", "２０２４年", "１．５％"]


def dictionary_words(rng):
    with open(jieba.get_module_res(jieba.DEFAULT_DICT_NAME).name, encoding="utf-8") as f:
        words = [line.split(" ")[0] for line in f]
    rng.shuffle(words)
    return words


def made_texts(n, seed):
    rng = random.Random(seed)
    words = dictionary_words(rng)
    any_char = [lambda: rng.choice(HAN), lambda: rng.choice(COMMON), lambda: rng.choice(TRADITIONAL), lambda: rng.choice(ALNUM),
                lambda: rng.choice(SIGNS), lambda: rng.choice(PUNCT), lambda: rng.choice(SPACES), lambda: rng.choice(EDGES),
                lambda: rng.choice(ASTRAL), lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])),
                lambda: rng.choice(QUIRKS), lambda: rng.choice(words)]
    kinds = [lambda: rng.choice(COMMON), lambda: rng.choice(HAN), lambda: rng.choice(words), lambda: rng.choice(COMMON + TRADITIONAL),
             lambda: rng.choice(ALNUM + SIGNS), lambda: rng.choice(ALNUM + SIGNS + COMMON), lambda: rng.choice("0123456789.%a-"),
             lambda: rng.choice(SPACES + COMMON), lambda: rng.choice(QUIRKS), lambda: rng.choice(any_char)(),
             lambda: rng.choice(words)[:rng.randint(1, 3)], lambda: rng.choice(words)[-2:]]
    yield from ["", " ", "\n", "\r\n", "的", "a", *QUIRKS, *HAN, "的" * 5000, "一" * 999 + "a" * 999, "".join(HAN), "中国" * 3000, "1" * 4000 + "%"]
    yield from words[:n // 4]
    for _ in range(n):
        kind = rng.choice(kinds)
        yield "".join(kind() for _ in range(rng.choice([1, 2, 3, 5, 8, 20, 60, 200])))


def strings_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from strings_of(v)


def file_texts(paths):
    for path in paths:
        with open(path, encoding="utf-8") as f:
            for line in f:
                if line.strip():
                    yield from strings_of(json.loads(line))


def ours(args, texts):
    data = [t.encode("utf-8", "surrogatepass") for t in texts]
    request = b"".join(b"%d\n%s" % (len(d), d) for d in data)
    done = subprocess.run([args.tool, args.folder], input=request, stdout=subprocess.PIPE, check=True)
    for d, line in zip(data, done.stdout.split(b"\n")):
        words, at = [], 0
        for length in map(int, line.split()):
            words.append(d[at:at + length])
            at += length
        yield words


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tool", default="build/cpu/tests/jieba_tool")
    p.add_argument("--folder", default="models/jieba")
    p.add_argument("--n", type=int, default=20000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("files", nargs="*")
    args = p.parse_args()
    jieba.setLogLevel(logging.WARNING)
    if jieba.__version__ != "0.42.1":
        sys.exit(f"jieba_oracle: needs jieba 0.42.1, not {jieba.__version__}")
    jieba.initialize()
    texts = list(made_texts(args.n, args.seed))
    n_made = len(texts)
    texts += file_texts(args.files)
    differ, n_words, begin = 0, 0, time.monotonic()
    for text, have in zip(texts, ours(args, texts), strict=True) if texts else ():
        want = [w.encode("utf-8", "surrogatepass") for w in jieba.cut(text)]
        n_words += len(want)
        if want != have:
            differ += 1
            at = next((i for i, (a, b) in enumerate(zip(want, have)) if a != b), min(len(want), len(have)))
            if differ <= 10:
                print(f"differs at word {at} of {text[:60]!r}: jieba {want[at:at + 4]}, ours {have[at:at + 4]}")
    print(f"{n_made} made texts, {len(texts) - n_made} from {len(args.files)} files, {n_words} words: "
          f"{differ} texts differ ({time.monotonic() - begin:.0f} s)")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
