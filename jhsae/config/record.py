"""Provenance of a run: resolved config, config hash, commit and versions.

The hash is the first 12 digits of the sha256 of canonical JSON (sorted keys, no spaces) of every key that affects the
result.
"""

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from jhsae.config import plain_yaml
from jhsae.config.aliases import with_current_names, with_published_names
from jhsae.config.schema import plain
from jhsae.config.trust import OURS

PACKAGES = (
    "jhsae",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "numpy",
    "orbax-checkpoint",
    "grain",
    "transformers",
)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain data, as `write` stores it."""
    return plain(config)


def write(config: Any, path: str | Path) -> None:
    """Writes a config as YAML, defaults included; ``load(type(config), path)`` is its inverse.

    Args:
        config: A config dataclass.
        path: The file.
    """
    Path(path).write_text(to_yaml(config), encoding="utf-8")


def to_yaml(config: Any) -> str:
    """The YAML text that `write` stores."""
    return plain_yaml.text(to_dict(config))


def packages(config: Any) -> tuple[str, ...]:
    """Packages other than jhsae whose parts a config names; the user who wrote it trusts them."""
    roots = (str(v).partition(".")[0] for k, v in _flat(to_dict(config)) if k.endswith("_target_"))
    return tuple(dict.fromkeys(root for root in roots if root != OURS))


def config_hash(config: Any) -> str:
    """12 hex digits over every key except `out` and those listed in `UNHASHED` by the config's classes.

    A part that has moved, and a key that its class lists in `RENAMED`, are hashed under their published names. A key
    that was added later is listed in `LATER` (``data.streams`` for one inside a section) with its previous behaviour
    as value, and is not hashed at that value: older hashes stay valid.
    """
    published = {new: old for old, new in getattr(type(config), "RENAMED", {}).items()}
    hashed = {published.get(key, key): value for key, value in with_published_names(_hashed(config)).items()}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def diff(there: Any, here: Any) -> list[str]:
    """Differences of two configs, one clause per hashed key: ``stages.0.steps is 100 there, 200 here``.

    Args:
        there: A config.
        here: Another of the same class.
    """
    a, b = (dict(_flat(with_current_names(_hashed(config)))) for config in (there, here))
    return [
        f"{key} is {a.get(key, 'absent')!s} there, {b.get(key, 'absent')!s} here"
        for key in dict.fromkeys([*a, *b])
        if key not in a or key not in b or a[key] != b[key]
    ]


def provenance() -> dict[str, Any]:
    """The commit of the repository that holds this package (None without one), versions and devices."""
    return {
        "commit": _commit(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
    }


def _hashed(config: Any) -> dict[str, Any]:
    left_out = {"out"} | getattr(type(config), "UNHASHED", frozenset())
    hashed = {key: value for key, value in to_dict(config).items() if key not in left_out}
    for path, value in getattr(type(config), "LATER", {}).items():
        *sections, key = path.split(".")
        section = reduce(lambda found, name: found[name], sections, hashed)
        if section[key] == value:
            del section[key]
    return hashed


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from _flat(inner, f"{path}.{key}" if path else str(key))
    if not entries:
        yield path, value


def _commit(folder: Path) -> str | None:
    """HEAD, with ``-dirty`` when a tracked file differs; None unless git tracks the package's own files."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> tuple[int, str]:
        done = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip()

    tracked, _ = ask("ls-files", "--error-unmatch", "__init__.py")
    failed, head = ask("rev-parse", "HEAD")
    if tracked or failed:
        return None
    return head + ("-dirty" if ask("status", "--porcelain", "--untracked-files=no")[1] else "")


def _version(package: str) -> str | None:
    """None for a package that is not installed: jhsae itself, when it runs from its repository."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
