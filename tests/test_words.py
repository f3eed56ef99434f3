"""Words: the glossary names things that exist, and phrases that were replaced do not come back."""

import ast
import dataclasses
import inspect
import re
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "jhsae" / "GLOSSARY.md"
NAME = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
ENDINGS = {".py", ".md", ".yaml", ".jinja", ".js"}
PHRASES = [
    r"part that may not move",
    r"(have|has|been|to|cannot|can) beg[iu]n anew",
    r"begun anew",
    r"have not waited yet",
    r"has waited one step longer",
    r"What a step knows besides",
    r"gives? way",
    r"hears of every one",
    r"dead are asked to explain|the living left over",
    r"made in its layout|computes its own part",
    r"a kill leaves as it was",
    r"by which a checkpoint that came back differently",
    r"ends this one with a sentence",
    r"waits? in vain",
    r"process that writes reports and speaks",
    r"whose it is, whether it is finished",
    r"whoever reads",
    r"What stands in for a store",
    r"know the source again|known again by",
    r"takes an entry out",
    r"that nobody has ends here",
    r"so much, of so much",
    r"picking cherries",
    r"user can mend",
    r"(is|are|was|were|be) not a number\b",
]
OPENING = re.compile(r"(What|Which|Where|Whether|How)\b")


def tracked() -> list[Path]:
    """Text files of the repository, without this one."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.splitlines()]
    return [f for f in files if f.suffix in ENDINGS and f.is_file() and f != Path(__file__)]


def resolve(name: str) -> Any:
    """The object at a dotted path: a module, a member of one, or a field of a class."""
    module, members = name, []
    while True:
        try:
            found: Any = import_module(module)
            break
        except ModuleNotFoundError:
            module, _, member = module.rpartition(".")
            members.insert(0, member)
    for member in members:
        fields = {f.name for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
        found = found if member in fields else inspect.getattr_static(found, member, None) or getattr(found, member)
    return found


@pytest.mark.parametrize("name", sorted(set(NAME.findall(GLOSSARY.read_text()))))
def test_every_name_in_the_glossary_exists(name: str):
    assert name.startswith("jhsae.") and resolve(name) is not None


def test_a_wrong_name_does_not_resolve():
    with pytest.raises(AttributeError):
        resolve("jhsae.sae.HierarchicalSAE.router")


@pytest.mark.parametrize("phrase", PHRASES)
def test_replaced_phrases_are_gone(phrase: str):
    wrong = [
        f"{file.relative_to(ROOT)}: {found[0]}"
        for file in tracked()
        if (found := re.search(phrase, " ".join(file.read_text().split())))
    ]
    assert not wrong, "\n".join(wrong)


def test_module_docstrings_state_a_subject():
    """Not "What ...": a noun, or a verb in the third person."""
    wrong = []
    for file in sorted((ROOT / "jhsae").rglob("*.py")):
        words = ast.get_docstring(ast.parse(file.read_text())) or ""
        if OPENING.match(words):
            wrong.append(f"{file.relative_to(ROOT)}: {words.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


PRIVATE = re.compile(r"jax\._src|jaxlib\._|pallas\.triton|pallas import triton")


def test_private_and_deprecated_apis_have_a_reason():
    """JAX's private modules and Pallas' Triton backend may go in any release: a comment above the import says why."""
    wrong = []
    for file in [f for f in tracked() if f.suffix == ".py"]:
        lines = file.read_text().splitlines()
        for i, line in enumerate(lines):
            first = next((j for j in range(i, -1, -1) if not PRIVATE.search(lines[j])), i)
            if PRIVATE.search(line) and not lines[first].lstrip().startswith("#") and "#" not in line:
                wrong.append(f"{file.relative_to(ROOT)}:{i + 1}: {line}")
    assert not wrong, "\n".join(wrong)
