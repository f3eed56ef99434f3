"""Trust: the packages that a `_target_` in a file may import.

A file that was read (sae.json, the config.yaml of a run folder, anything from a hub) may name parts of jhsae, and those
of packages that the user names for this call: ``trust=my_package``. A config that the user writes may name any package
on the path, except one that is found only because the working directory is on it.
"""

import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, NamedTuple

from jhsae.errors import UserError

OURS = "jhsae"
# The key `trust` of every verb that reads a run.
TrustedPackages = Annotated[str | list[str], "packages, beside jhsae, whose parts the run may be made of"]


class Trust(NamedTuple):
    """Packages that a file may name besides jhsae: `packages`, or every one on the path if the user wrote the file."""

    packages: tuple[str, ...] = ()
    written: bool = False


WRITTEN = Trust(written=True)


def trusted(packages: str | Iterable[str]) -> Trust:
    """The trust in files that were read: ``trust="my_package"``, or several names.

    Raises:
        UserError: something that is not the name of a top-level package.
    """
    names = (packages,) if isinstance(packages, str) else tuple(packages)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"trust is {name!r}, expected the name of a package without dots; write trust=my_package")
    return Trust(names)


def refusal(root: str, trust: Trust) -> str | None:
    """The reason why the package `root` may not be imported, as the end of a sentence; None where it may."""
    if root == OURS:
        return None
    if root in sys.stdlib_module_names:
        return f"but {root} belongs to Python and holds no parts; write one of {OURS} or of a package of your own"
    if not trust.written and root not in trust.packages:
        return (
            f"but a file that was read may name parts of {OURS} alone; write trust={root} (in Python "
            f"trust={root!r}) if you trust all code of the package {root}"
        )
    if root in sys.modules or _spec(root, _search_path()) is not None:
        return None
    if PathFinder.find_spec(root, sys.path) is not None:
        return (
            f"but the package {root} is found in the working directory alone, from which nothing is imported; install "
            "it, put its folder on PYTHONPATH as an absolute path, or import it in the script that calls jhsae"
        )
    return f"but there is no package {root}; install it or correct the name"


def import_inside(name: str) -> ModuleType:
    """The module `name`, whose package was admitted; never from the working directory."""
    root = name.partition(".")[0]
    if root not in sys.modules:
        _import_root(root)
    return importlib.import_module(name)


def _import_root(root: str) -> None:
    spec = _spec(root, _search_path())
    if spec is None:
        raise ModuleNotFoundError(f"there is no package {root}", name=root)
    if spec.submodule_search_locations is not None:  # of a namespace package it would grow with sys.path
        spec.submodule_search_locations = list(spec.submodule_search_locations)
    module = module_from_spec(spec)
    sys.modules[root] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(root, None)
        raise


def _spec(root: str, path: list[str]) -> ModuleSpec | None:
    """The spec of a top-level package if `path` were `sys.path`."""
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return next((spec for find in finders if find is not None and (spec := find(root, path)) is not None), None)


def _search_path() -> list[str]:
    """`sys.path` without entries of the working directory: '', relative entries, the directory itself.

    The directory stays where it was chosen: an absolute entry of PYTHONPATH, the place of an editable installation.
    """
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # the interpreter makes relative entries of PYTHONPATH absolute, so that sys.path does not tell them apart
    implied = {_real(entry) for entry in ("", *entries) if not os.path.isabs(entry)}
    chosen = {_real(entry) for entry in entries if os.path.isabs(entry)} | _installed()
    absolute = [entry for entry in sys.path if isinstance(entry, str) and os.path.isabs(entry)]
    return [entry for entry in absolute if _real(entry) not in implied - chosen]


def _installed() -> set[str]:
    """The folders of the interpreter, those of installed packages, and those that their .pth files add."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    found = {*folders, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
    for file in (file for folder in folders if Path(folder).is_dir() for file in Path(folder).glob("*.pth")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found |= {os.path.join(file.parent, line) for line in lines if line and not line.startswith(("#", "import"))}
    return {_real(folder) for folder in found}


def _real(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except OSError:  # the working directory is gone, and nothing can be found in it
        return folder
