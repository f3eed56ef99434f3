"""Names, concepts, tokens and paths of others never become markup: in Markdown, in HTML pages, in figures."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import pytest
from browser.pages import Page as BrowserPage
from markdown_it import MarkdownIt
from report_files import TEACHER, TREE_ROW, context, feature, write_run

from jhsae.browser import page as browser_page
from jhsae.commands.ablate import table
from jhsae.commands.report import Report, run
from jhsae.config import to_dict
from jhsae.files.escaping import code, escaped, literal, visible
from jhsae.interop.plain import card
from jhsae.report import drawing
from jhsae.report.overview import commands
from jhsae.report.page import render
from jhsae.report.reading import read_run
from jhsae.sae import FlatSAE
from jhsae.sparsify import ReLU

HOSTILE = [
    "</script><script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "<!--<script>",
    "'\" onmouseover=alert(1) x='",
    "]]></svg><script>document.title='ran'</script>",
    "{{ 7 * 7 }}{% raw %}",
    "${alert(1)}`",
    "a\u2028b\u2029c\u202e\x00\x1bd",
    "\ud800",
    "[x](javascript:alert(1)) ![x](http://x.example/a.png)",
    "| a | b |\n|---|---|\n# head\n- item\n```\n</style><style>*{display:none}",
    "https://evil.example",
    '=HYPERLINK("x")',
]
READABLE = [text for text in HOSTILE if text != "\ud800"]  # of a JSON file: one with half a character is refused
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def check(html):
    """One script, the page's own, which its policy names by its hash; no handler in any attribute."""
    found = Tags(html).tags
    scripts = [attrs for tag, attrs in found if tag == "script" and attrs.get("type") is None]
    own = SCRIPT.findall(html)
    assert len(scripts) == len(own) == 1
    assert not any(name.startswith("on") for _, attrs in found for name in attrs)
    assert not {tag for tag, _ in found} & {"img", "iframe", "object", "embed", "base", "form"}
    policy = next(a["content"] for _, a in found if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none';")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run whose every name is hostile, and its folder."""
    root = tmp_path_factory.mktemp("report")
    cards = [feature(i, context(1.0, text, text, text), name=text) for i, text in enumerate(READABLE)]
    folder = write_run(root, "run", TREE_ROW, contexts=cards, stages=HOSTILE[:3], hashed=HOSTILE[0])
    about = json.loads((root / "run" / "run.json").read_text())
    names = "".join(HOSTILE[:7])
    (root / "run" / "run.json").write_text(json.dumps(about | {"name": names, "versions": {HOSTILE[1]: HOSTILE[0]}}))
    concepts = [{"id": text, "name": text, "tokens": [1], "children": []} for text in READABLE]
    validation = {"orthogonality": {HOSTILE[1]: TEACHER["validation"]["orthogonality"]["measured"]}}
    (root / "teacher").mkdir()
    teacher = {"concepts": concepts, "validation": validation, "provenance": {HOSTILE[1]: HOSTILE[0]}}
    (root / "teacher" / "teacher.json").write_text(json.dumps(teacher))
    config = Report([folder], str(root / "report.html"), HOSTILE[0], str(root / "teacher"), HOSTILE, HOSTILE[:2])
    run(config)
    return root / "report.html"


def test_a_report_quotes_and_runs_nothing(report):
    html = report.read_text()
    check(html)
    assert "onerror=&#34;document" in html


def test_labels_of_figures_are_text():
    for text in HOSTILE:
        series = [drawing.Series(text, 0, [1, 2], [1.0, 2.0])]
        svg = drawing.curves(drawing.Labels(text, text, text), series, {1: text}, None)
        assert not {tag for tag, _ in Tags(svg).tags} & {"script", "img", "style"} - {"style"}
    odd = drawing.Series(' id="x version="2"', 0, [1], [1.0])
    named = drawing.curves(drawing.Labels("t", "u", "i"), [odd], {}, None)
    assert ' id="x version="2"' in named


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A page of the feature browser around hostile names and tokens."""
    density = {"kind": "latents", "log10_edges": [-1, 0], "counts": [1], "dead": 0, "all": 1}
    latent = {
        "id": "f0", "name": HOSTILE[1], "fired": 1, "mean": 1.0, "high": 1.0, "low": 0.0, "histogram": [1], "norm": 1.0,
        "tokens": [[i, 0.5, 1.0, 1] for i in range(len(HOSTILE))], "first": [[0, 1, 1.0, [0, 1.0]]], "below": [],
        "top": [[0, 1.0]], "bottom": [[1, -1.0]], "near": [],
    }  # fmt: skip
    every, shown = list(range(len(HOSTILE))), [visible(text) for text in HOSTILE]
    data = {
        "latents": [latent], "search": {text: [1, 0, 1.0, 1.0, 1] for text in HOSTILE}, "density": [density], "rows": 1,
        "window": [2, 2], "norm": 0.0, "sequences": [every], "unmeasured": [[]], "pieces": shown, "words": HOSTILE,
        "occurrences": [1] * len(every), "special": [],
    }  # fmt: skip
    words = ("name", "title", "reads", "measured", "unit", "store", "text", "normalizer", "shape")
    about = dict.fromkeys(words, HOSTILE[0]) | {"rows": 1, "stored": 1, "tree": False, "named": True}
    about |= {
        "residual": True,
        "logits": True,
        "deep": False,
        "partial": False,
        "trained_here": False,
        "origin": [(HOSTILE[1], HOSTILE[0])],
    }
    path = tmp_path_factory.mktemp("browser") / "page.html"
    path.write_bytes(browser_page.render(data, about).encode("utf-8", "backslashreplace"))
    return path, data


def test_a_feature_browser_quotes_and_runs_nothing(browser):
    path, data = browser
    html = path.read_text()
    check(html)
    assert BrowserPage(html).data == data
    assert not re.search("[\u2028\u2029]", SCRIPT.sub("", html))


def opened(address, folder):
    """The document as Chromium leaves it; a browser that crashes by itself is started again."""
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    for _ in range(5):
        done = subprocess.run([*words, "--virtual-time-budget=4000", address], capture_output=True, timeout=120)
        if done.returncode == 0:
            return done.stdout.decode()
    pytest.skip("the browser does not run here")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
@pytest.mark.slow
def test_no_foreign_script_runs_in_a_browser(report, browser, tmp_path):
    for path, address in ((report, ""), (browser[0], ""), (browser[0], "#f0"), (browser[0], "#q=%3C%2Fscript%3E")):
        page = opened(f"file://{path}{address}", tmp_path)
        title = re.search("<title>(.*?)</title>", page, re.DOTALL)[1]
        assert title != "ran" and "document.title" in title
        assert not re.search("<img|<script>document", page)
        if address == "#f0":  # the page's own script did run
            assert "onerror" in page and "Tokens it fires on" in page


def rendered(markdown):
    """HTML of GitHub's kind of Markdown, with HTML and tables on."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


@pytest.mark.parametrize("text", [*HOSTILE, "_a_ *b* ~c~ $d$ a_b", "``x``", ""])
def test_quoted_text_is_text_in_markdown(text):
    html = rendered(f"# {escaped(text)}\n\n- name: {escaped(text)}, commit {code(text)}\n")
    html += rendered(f"| a | b |\n|---|---|\n| {escaped(text)} | 1 |\n")
    allowed = {"h1", "ul", "li", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    tags = [tag for tag, _ in Tags(html).tags]
    assert set(tags) <= allowed and tags.count("td") == 2 and tags.count("h1") == 1 and tags.count("li") == 1


def test_a_literal_is_the_string_and_stays_in_its_fence():
    for text in HOSTILE:
        assert eval(literal(text)) == text
        assert rendered(f"```python\n{literal(text)}\n```\n").count("<pre>") == 1


def test_a_card_and_a_table_quote_names(tmp_path):
    sae = FlatSAE(4, 6, ReLU(), key=jax.random.key(0))
    for text in HOSTILE:
        slot = {"_target_": "jhsae.sae.FlatSAE", "note": text}
        about = {"reads": {"model": text, "layer": text}, "sae": slot, "normalize": slot, "commit": text}
        row = {"evaluation": {"store": text, "commit": text}, "metrics": {"rows": 5, "l0": 1.0, "ev_r2": None}}
        tags = {tag for tag, _ in Tags(rendered(card(text, sae, about, row))).tags}
        assert tags <= {"hr", "h1", "h2", "p", "ul", "li", "code", "pre"}
        lines = table([{"axis": text, "variant": text, "metrics": {text: 1.0}}], [text]).splitlines()
        cells = [tag for tag, _ in Tags(rendered("\n".join(lines))).tags if tag in ("td", "th")]
        assert len(lines) == 3 and len(cells) == 8


def test_commands_to_copy_quote_their_words(tmp_path):
    folder = write_run(tmp_path, "a; touch x $(id)", TREE_ROW, commit="c`id`")
    for line in commands([read_run(folder)]):
        first, *words = shlex.split(line)
        assert first in ("git", "jhsae") and not {"touch", "x", "$(id)"} & set(words)
    assert render(to_dict(Report([folder], "out.html")), [read_run(folder)], None)
