"""Folders of SAEs to and from the Hugging Face hub, through huggingface_hub.

``hf://org/name``, ``hf://org/name/sub/folder`` and ``hf://org/name@revision/sub/folder`` name a folder there. Only
files of the kinds in `PATTERNS` travel, so that no pickle is ever pulled; nothing that is pulled is run.
"""

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jhsae.errors import UserError

REVISION = re.compile(r"\w[\w.+/-]*")
PATTERNS = ("*.safetensors", "*.json", "*.md", "*.py", "*.npz", "*SHA256SUMS", "*config.yaml")
SCHEME = "hf://"
LOG_IN = "log in with `hf auth login`"


class HubSource(NamedTuple):
    """A folder on the hub."""

    repo: str
    subfolder: str | None = None
    revision: str | None = None


def parse(source: str) -> HubSource | None:
    """The folder that ``hf://org/name[@revision][/subfolder]`` names; None for anything else, such as a local path.

    `UserError`: something that starts with ``hf://`` but is not of this form.
    """
    if not source.startswith(SCHEME):
        return None
    words = source.removeprefix(SCHEME).rstrip("/").split("/")
    if len(words) < 2 or any(word in ("", ".", "..") for word in words):
        raise UserError(f"'{source}' names no folder on the hub; write hf://org/name or hf://org/name/subfolder")
    name, at, revision = words[1].partition("@")
    if not name or (at and not revision):
        raise UserError(f"'{source}' has an empty name or revision; write hf://org/name@revision/subfolder")
    if any(not word.isprintable() or "\\" in word for word in words):
        raise UserError(f"{source!r} has a character that no name has; write hf://org/name@revision/subfolder")
    return HubSource(f"{words[0]}/{name}", "/".join(words[2:]) or None, revision or None)


def push(folder: str | Path, repo: str, private: bool = True) -> str:
    """Uploads every file of `folder` into the repository `repo`, made if there is none, and returns its address.

    `private` counts for a new repository alone; one that exists stays as it is. `UserError`: an empty or missing
    folder, a file of another kind than `PATTERNS`, no login, no right to write, no connection.
    """
    folder = Path(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if not files:
        raise UserError(f"no files in {folder}; write the folder of a saved or exported SAE")
    for file in files:
        if not _travels(file):
            raise UserError(f"{folder / file} is none of {', '.join(PATTERNS)}; push a folder of a saved SAE alone")
    with _sentences(repo):
        url = huggingface_hub.create_repo(repo, private=private, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(PATTERNS))
    return str(url)


def pull(repo: str, subfolder: str | None = None, revision: str | None = None) -> Path:
    """The local copy (in huggingface_hub's cache) of `repo`, or of one `subfolder` in it.

    `UserError`: no such repository, revision or subfolder, no login where one is needed, no connection and no copy,
    nothing there of the kinds in `PATTERNS`, a link that leaves the cache of this repository.
    """
    words = Path(subfolder).parts if subfolder else ()
    if ".." in words or (subfolder or "").startswith("/") or "\0" in (subfolder or ""):
        raise UserError(f"subfolder is {subfolder!r}, expected a folder inside of {repo}")
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UserError(f"revision is {revision!r}, expected a branch, tag or commit of {repo}")
    start = "".join(glob.escape(word) + "/" for word in words)
    with _sentences(repo):
        kinds = [start + pattern for pattern in PATTERNS]
        snapshot = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=kinds)
    folder = Path(snapshot).joinpath(*words)
    files = [path for path in folder.rglob("*") if path.is_file() and _travels(path.name)]
    _check_links(files, Path(snapshot), repo)
    if not files:
        where = f"folder '{subfolder}' of {repo}" if subfolder else repo
        raise UserError(f"nothing to read in {where}: no {', '.join(PATTERNS)} there (pickles are never pulled)")
    return folder


def _check_links(files: list[Path], snapshot: Path, repo: str) -> None:
    """`UserError` for a file that is not of this repository: its cache links snapshots/COMMIT/... to blobs/HASH."""
    snapshot = snapshot.resolve()
    cache = snapshot.parent.parent if snapshot.parent.name == "snapshots" else snapshot
    for file in files:
        if not file.resolve().is_relative_to(cache):
            raise UserError(f"{file} is a link out of the cache of {repo}, expected a file of it; it was not opened")


def _travels(file: str) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in PATTERNS)


@contextmanager
def _sentences(repo: str) -> Iterator[None]:
    """What goes wrong between here and the hub, as one sentence about `repo`."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"'{repo}' is no name of a repository; write it as org/name") from error
    except GatedRepoError as error:
        raise UserError(
            f"{repo} is gated; accept its conditions at https://huggingface.co/{repo}, and {LOG_IN}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"no repository {repo} on the hub, or it is private; mend the name, or {LOG_IN}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no such revision; write a branch, tag or commit of it") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"{repo} needs a login; {LOG_IN}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403):
            raise UserError(f"the hub refused {repo} with status {status}; try again later") from error
        raise UserError(
            f"the hub denied access to {repo} (status {status}); {LOG_IN} as one who may do this"
        ) from error
    except UserError:
        raise
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a name in the repository that leaves its folder
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"{repo} could not be fetched from or sent to the hub ({reason}); go online and retry"
        ) from error
