"""Escapes untrusted text in Markdown and HTML: names, paths and concepts never become markup.

Markdown is read by renderers that also take HTML, so both are escaped; control characters are written out, so that
no quoted text starts a new line. HTML pages are escaped by their templates; the content security
policy here allows the page's own script only.
"""

import base64
import hashlib
import re
import unicodedata

SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
SHAPELESS = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats, lone surrogates, line and paragraph separators


def escaped(text: object) -> str:
    """`text` in a paragraph, a heading, a list or a table."""
    shown = SPECIAL.sub(lambda found: "\\" + found[0], visible(str(text)))
    shown = "".join(ENTITIES.get(c, c) for c in shown)
    return re.sub(r"(?i)(https?|ftp|www)(?=:|\.)", r"\1&#8203;", shown)  # URLs do not become links


def visible(text: str) -> str:
    """`text` with a visible escape for every invisible character except spaces."""
    return "".join(SIGNS.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) in SHAPELESS else c) for c in text)


def code(text: object) -> str:
    """`text` as inline code, delimited by as many backticks as it needs."""
    shown = visible(str(text)) or " "
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    ticks, pad = "`" * (longest + 1), " " * (longest > 0)
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def literal(text: object) -> str:
    """`text` as a Python string inside of a fenced block, which it cannot end."""
    return '"' + str(text).encode("unicode_escape").decode().replace('"', '\\"').replace("`", "\\x60") + '"'


def script_hash(script: str) -> str:
    """The source expression of a content security policy that allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
