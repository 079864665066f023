#!/usr/bin/env python3
"""Opens a report in a headless browser and checks that it shows what the data say.

Usage: report_browser.py RUN PAGE.html [SHOTS_FOLDER]
RUN is the run's folder, PAGE its report with the first method as baseline. Means, counts, shares, Wilson
intervals, differences and needle cells are worked out here again from the JSON lines and compared with the
text of the page as the browser has it. No scripts, no references to other places; drawings bear numbers.
With SHOTS_FOLDER the page must not scroll sideways at 1280, 800 and 400 pixels, and screenshots are made there.
"""
import html.parser
import json
import math
import os
import re
import subprocess
import sys
import tempfile

BROWSER = os.environ.get("CHROMIUM", "chromium")
problems = []


def check(good, what):
    if not good:
        problems.append(what)


def browse(*args):
    with tempfile.TemporaryDirectory() as home:
        return subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                               "--user-data-dir=" + home, *args], capture_output=True, timeout=120, check=True,
                              env={**os.environ, "HOME": home}).stdout.decode()


# ==== What the data say ====

def read_run(folder):
    """{method: {task: {id: line}}}, repeated keys settled: the last that is no error, else the last."""
    with open(os.path.join(folder, "run.json"), encoding="utf-8") as f:
        run = json.load(f)
    rows = {}
    for method in run["methods"]:
        rows[method] = {}
        for name in sorted(os.listdir(os.path.join(folder, method))):
            with open(os.path.join(folder, method, name), encoding="utf-8") as f:
                for text in f:
                    try:
                        line = json.loads(text)
                    except ValueError:
                        continue
                    task = rows[method].setdefault(line["task"], {})
                    if "error" not in line or line["id"] not in task:
                        task[line["id"]] = line
    return run, rows


def wilson(hits, n):
    z = 1.959963984540054
    p, d = hits / n, 1 + z * z / n
    half = z / d * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle = (p + z * z / (2 * n)) / d
    return (0 if hits == 0 else middle - half), (1 if hits == n else middle + half)


def scores(lines):
    return [line["score"] for line in lines.values() if line.get("score") is not None and "error" not in line]


def mean(values):
    return sum(values) / len(values)


# ==== The page, as the browser has it ====

class Page(html.parser.HTMLParser):
    """Cells of the matrix tables by section, row and column; texts of the needle maps; all attributes."""

    def __init__(self):
        super().__init__()
        self.section, self.cell, self.figure = None, None, None
        self.cells, self.needles, self.tags, self.attributes, self.title = {}, {}, set(), [], ""
        self.field, self.in_svg, self.ids, self.links = None, 0, set(), []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs.items()]
        if "id" in attrs:
            self.ids.add(attrs["id"])
        if tag == "a":
            self.links.append(attrs.get("href", ""))
        if tag == "section":
            self.section = attrs.get("id")
        elif tag == "td" and "data-row" in attrs:
            self.cell = self.cells.setdefault((self.section, attrs["data-row"], int(attrs["data-column"])), {})
        elif tag == "figure" and "needle" in attrs.get("class", "").split():
            self.figure = self.needles.setdefault(int(attrs["data-column"]), [])
        elif tag == "h1":
            self.field = "h1"
        if tag in ("b", "span") and self.cell is not None:
            self.field = attrs.get("class", "").split(" ")[0]
        if tag == "text" and self.figure is not None:
            self.field = "needle"

    def handle_endtag(self, tag):
        if tag == "td":
            self.cell = None
        if tag == "figure":
            self.figure = None
        if tag in ("b", "span", "text", "h1"):
            self.field = None

    def handle_data(self, data):
        if self.field == "h1":
            self.title += data
        elif self.field == "needle":
            self.figure.append(data)
        elif self.field and self.cell is not None:
            self.cell[self.field] = self.cell.get(self.field, "") + data


def numbers(text):
    return [float(x) for x in re.findall(r"[-+]?\d+\.\d+", text.replace("−", "-").replace("–", " "))]


def near(a, b):
    return abs(a - b) <= 0.00501


# ==== Checks ====

def check_scores(page, run, rows):
    for column, method in enumerate(run["methods"]):
        for task, lines in rows[method].items():
            cell, values = page.cells.get(("scores", task, column)), scores(lines)
            where = f"scores, {task}, {method}"
            if cell is None:
                check(False, f"{where}: no cell")
                continue
            check(near(numbers(cell["mean"])[0], 100 * mean(values)), f"{where}: mean {cell['mean']}")
            check(cell["n"] == f"n {len(values)}", f"{where}: {cell['n']} for {len(values)}")
            interval = numbers(cell["ci"])
            if len(values) == 1:
                check(cell["ci"] == "no interval", f"{where}: interval of one row")
            elif set(values) <= {0, 1}:
                low, high = wilson(sum(values), len(values))
                check(near(interval[0], 100 * low) and near(interval[1], 100 * high), f"{where}: {cell['ci']}")
            else:
                check(interval[0] <= 100 * mean(values) + 0.01 and interval[1] >= 100 * mean(values) - 0.01,
                      f"{where}: the mean is outside {cell['ci']}")
            check_shares(where, cell.get("shares", ""), lines)


def check_shares(where, text, lines):
    failed = sum("error" in line for line in lines.values())
    ran = [line for line in lines.values() if "error" not in line]
    check(("failed" in text) == (failed > 0), f"{where}: failed rows in '{text}'")
    if failed:
        check(f"{failed} of {len(lines)} failed" in text, f"{where}: '{text}'")
    for name, key in (("empty", "empty"), ("unparsed", "unparsed")):
        n = sum(bool(line.get(key)) for line in ran)
        found = re.search(name + r" ([\d.]+)%", text)
        check((found is not None) == (n > 0), f"{where}: {name} in '{text}'")
        if found:
            check(abs(float(found[1]) - 100 * n / len(ran)) <= 0.51, f"{where}: {name} in '{text}'")


def check_differences(page, run, rows):
    methods = list(run["methods"])
    for column, method in enumerate(methods[1:], 1):
        for task, lines in rows[method].items():
            base = rows[methods[0]].get(task, {})
            both = [lines[i]["score"] - base[i]["score"] for i in lines
                    if i in base and "error" not in lines[i] and "error" not in base[i]]
            cell = page.cells.get(("differences", task, column), {})
            where = f"differences, {task}, {method}"
            if not both or not cell:
                check(not both, f"{where}: no cell")
                continue
            check(near(numbers(cell["mean"])[0], 100 * mean(both)), f"{where}: mean {cell['mean']}")
            check(cell["n"] == f"n {len(both)}", f"{where}: {cell['n']}")
            ends = numbers(cell["ci"])
            decided = len(both) >= 6 and len(ends) == 2 and (ends[0] > 0 or ends[1] < 0)
            word = "undecided" if not decided else "better" if ends[0] > 0 else "worse"
            check(cell["verdict"].split()[-1] == word, f"{where}: {cell['verdict']} with {cell['ci']}")


def needle_texts(lines):
    """What one map must show: head, then a line for each depth."""
    cells = {}
    for line in lines.values():
        if "depth" in line and "error" not in line:
            cells.setdefault((line["depth"], line["target_tokens"]), []).append(line["score"])
    if not cells:
        return []
    texts = ["depth"] + [f"{length // 1024}K" for length in sorted({length for _, length in cells})]
    for depth in sorted({d for d, _ in cells}):
        texts.append(f"{100 * depth:.3g}%")
        texts += [f"{100 * mean(v):.0f}" for (d, _), v in sorted(cells.items()) if d == depth]
    return texts


def check_needles(page, run, rows):
    for column, method in enumerate(run["methods"]):
        want = [text for task in run["tasks"] for text in needle_texts(rows[method].get(task, {}))]
        texts = page.needles.get(column, [])
        check(texts == want, f"needles of {method}: {texts[:24]} for {want[:24]}")


def check_alone(page, dom):
    check("script" not in page.tags and "link" not in page.tags and "img" not in page.tags, "a script, link or picture")
    for tag, name, value in page.attributes:
        check(not name.startswith("on"), f"<{tag} {name}>")
        check(name not in ("src", "srcset", "data", "action", "poster", "xlink:href"), f"<{tag} {name}={value}>")
        check("url(" not in value and "://" not in value, f"<{tag} {name}={value}>")
    style = dom[dom.index("<style>"):dom.index("</style>")]
    check("url(" not in style and "@import" not in style and "://" not in style, "a reference in the style")
    check("http:" not in dom and "https:" not in dom, "an address in the page")
    for link in page.links:
        check(link.startswith("#") and link[1:] in page.ids, f"link to {link}")


def check_title(page, dom, run, rows):
    n = sum(max(len(rows[m].get(t, {})) for m in rows) for t in run["tasks"])
    official = sum(t.get("official_rows", 0) for t in run["tasks"].values())
    check(page.title.startswith(f"{n:,} row"), f"title '{page.title}' for {n} rows")
    if n < official:
        check(f"partial: {n:,} of {official:,}" in dom, "the page does not say how many of how many rows")
        check("LongBench" not in dom, "a part bears the benchmark's name")


def check_width(path, folder):
    """No sideways scrolling, wide or narrow: a copy of the page tells its own width."""
    copy = os.path.join(folder, "width.html")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    tell = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    with open(copy, "w", encoding="utf-8") as f:
        f.write(text.replace("</body>", tell))
    for width in (1280, 800, 400):
        title = re.search(r"<title>(\d+) of (\d+)</title>", browse(f"--window-size={width},900", "--dump-dom",
                                                                    "file://" + copy))
        check(title and int(title[1]) <= int(title[2]), f"at {width} pixels the page is {title and title[0]} wide")


def shoot(path, folder):
    for width, height in ((1280, 2400), (400, 3200)):
        for mode in ("light", "dark"):
            shot = os.path.join(folder, f"report-{width}-{mode}.png")
            dark = ["--blink-settings=preferredColorScheme=0"] if mode == "dark" else []
            browse(f"--window-size={width},{height}", *dark, "--screenshot=" + shot, "file://" + path)
            check(os.path.getsize(shot) > 20000, f"{shot} is nearly empty")


def main():
    folder, path = sys.argv[1], os.path.abspath(sys.argv[2])
    run, rows = read_run(folder)
    dom = browse("--dump-dom", "file://" + path)
    page = Page()
    page.feed(dom)
    check_title(page, dom, run, rows)
    check_scores(page, run, rows)
    check_differences(page, run, rows)
    check_needles(page, run, rows)
    check_alone(page, dom)
    if len(sys.argv) > 3:
        folder = os.path.abspath(sys.argv[3])
        check_width(path, folder)
        shoot(path, folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    n = sum(len(lines) for method in rows.values() for lines in method.values())
    print(f"{n} rows, {len(page.cells)} cells, {sum(map(len, page.needles.values()))} texts in maps, "
          f"{len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
