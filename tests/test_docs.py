"""The API pages build without a warning and have a section for every public name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jhsae

pytest.importorskip("pdoc")
ROOT = Path(__file__).parents[1]
DOCUMENTED = ("sae", "sparsify", "losses", "data", "ops", "teacher", "lm", "worlds")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-W", "error::DeprecationWarning:jhsae", str(ROOT / ".ci" / "docs"), str(folder)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "Warning" not in ran.stderr
    return folder


def test_every_public_name_has_a_section(pages):
    top = (pages / "jhsae.html").read_text()
    missing = [name for name in jhsae.__all__ if f'<section id="{name}">' not in top]
    for package in DOCUMENTED:
        page, module = (pages / "jhsae" / f"{package}.html").read_text(), getattr(jhsae, package)
        names = [name for name, value in vars(module).items() if isinstance(value, type) and name[0] != "_"]
        assert len(names) >= 3, f"jhsae.{package} exports nothing"
        missing += [f"{package}.{name}" for name in names if f'<section id="{name}">' not in page]
    assert not missing
    assert '<section id="fit">' in (pages / "jhsae" / "training" / "fit.html").read_text() + top


def test_annotations_read_as_in_the_source(pages):
    page = (pages / "jhsae" / "sae.html").read_text()
    assert "jaxlib" not in page and "Float" in page and "batch embed" in page
