"""Whatever a token, a name or a title says, it stays text; data survives the way into the page and out of it."""

import pytest
from browser.pages import Page

from jhsae.browser import page, render
from jhsae.files.escaping import visible

EVIL = "</script><script>alert('&')</script><!--"


def about(**changes):
    """What a template needs around the data."""
    words = ("name", "title", "reads", "measured", "unit", "store", "text", "normalizer", "shape")
    rest = {
        "residual": True,
        "logits": True,
        "rows": 1,
        "stored": 1,
        "partial": False,
        "trained_here": False,
        "tree": True,
        "deep": True,
        "named": True,
    }
    return dict.fromkeys(words, "x") | rest | {"origin": [("run", "x")]} | changes


@pytest.mark.parametrize("padding", [0, page.PLAIN_BYTES], ids=["plain", "gzip"])
def test_no_text_becomes_markup(padding):
    data = {"pieces": [EVIL], "latents": [{"name": EVIL}], "padding": "x" * padding}
    html = render(data, about(title=EVIL, text=EVIL, name=EVIL + '"', origin=[("run", EVIL)]))
    shown = Page(html)
    assert shown.data == data
    assert [tag for tag, _ in shown.tags].count("script") == 2 and "alert('" not in shown.scripts[1]
    assert "<!--" not in shown.scripts[0]
    assert shown.text.count("alert('&')") == 4  # in the title, twice; in the footer, twice: as text


def test_characters_without_a_shape_are_made_visible():
    assert visible(" a\n\t\u200b\x07") == " a↵⇥\\x200b\\x07"
