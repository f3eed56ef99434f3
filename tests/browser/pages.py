"""Reads a page of `jhsae browse` back, for its tests."""

import base64
import gzip
import json
from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags with their attributes, and the text of every script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self):
        """What the page's own script reads."""
        kind = next(attrs["type"] for tag, attrs in self.tags if tag == "script" and attrs.get("id") == "data")
        text = self.scripts[0]
        return json.loads(gzip.decompress(base64.b64decode(text)) if kind == "application/gzip" else text)
