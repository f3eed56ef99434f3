import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from foreign import EMBED, FEATURES, normal
from huggingface_hub import errors

import jhsae
from jhsae.errors import UserError
from jhsae.interop import hub, imported


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: one folder per repository, filtered as huggingface_hub filters."""
    root = tmp_path / "remote"

    def copy(source: Path, target: Path, patterns: list[str]) -> None:
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)

    def create_repo(repo: str, *, private: bool, exist_ok: bool) -> str:
        (root / repo).mkdir(parents=True, exist_ok=exist_ok)
        (root / repo / "private.txt").write_text(str(private))
        return f"https://huggingface.co/{repo}"

    def upload_folder(*, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
        copy(Path(folder_path), root / repo_id, allow_patterns)

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        target = tmp_path / "cache" / repo.replace("/", "--") / (revision or "main")
        target.mkdir(parents=True, exist_ok=True)
        copy(root / repo, target, allow_patterns)
        return str(target)

    for function in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return root


def saved(folder: Path) -> Path:
    leaves = {
        "W_enc": normal(FEATURES, EMBED, seed=1),
        "W_dec": normal(FEATURES, EMBED, seed=2),
        "b_enc": normal(FEATURES, seed=3),
        "b_dec": normal(EMBED, seed=4),
    }
    about = {"source": {"format": "test", "path": ""}, "reads": {"model": None, "layer": None}}
    imported.save(imported.assemble(imported.flat_slot(FEATURES, EMBED, imported.RELU), leaves, about, "f"), folder)
    return folder


def test_what_is_pushed_can_be_pulled_and_loaded(tmp_path: Path, remote: Path):
    assert hub.push(saved(tmp_path / "sae"), "org/name") == "https://huggingface.co/org/name"
    assert (remote / "org/name/private.txt").read_text() == "True"
    sae, _, _ = jhsae.load_sae(hub.pull("org/name"))
    np.testing.assert_array_equal(sae.W_dec, normal(FEATURES, EMBED, seed=2))


def test_a_subfolder_and_a_revision(tmp_path: Path, remote: Path):
    saved(remote / "org/name/layer_1 [a]/sae")
    saved(remote / "org/name/layer_1 a/sae")
    folder = hub.pull("org/name", "layer_1 [a]/sae", "v2")
    assert folder == tmp_path / "cache" / "org--name" / "v2" / "layer_1 [a]" / "sae"
    assert jhsae.load_sae(folder)[0].features == FEATURES
    assert not (folder.parents[1] / "layer_1 a").exists()


def test_pickles_are_never_pulled(remote: Path):
    saved(remote / "org/name/sae")
    for name in ("ae.pt", "sae/ae.pt", "model.bin", "x.pkl", "x.pth", "x.npy"):
        (remote / "org/name" / name).write_bytes(b"\x80\x04.")
    (remote / "org/name/params.npz").write_bytes(b"")
    pulled = {path.name for path in hub.pull("org/name").rglob("*") if path.is_file()}
    assert pulled == {"sae.json", "sae.safetensors", "SHA256SUMS", "params.npz"}


def test_only_pickles_there(remote: Path):
    (remote / "org/name/trainer_0").mkdir(parents=True)
    (remote / "org/name/trainer_0/ae.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"nothing to read in folder 'trainer_0' of org/name: .* never pulled"):
        hub.pull("org/name", "trainer_0")
    with pytest.raises(UserError, match="nothing to read in org/name"):
        hub.pull("org/name")


def test_a_link_out_of_the_cache_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Inside it links are how the cache is made: snapshots/COMMIT/file -> blobs/HASH."""
    cache = tmp_path / "models--org--name"
    snapshot = saved(cache / "snapshots" / "abc")
    (cache / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(cache / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    assert jhsae.load_sae(hub.pull("org/name"))[0].features == FEATURES
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match=r"more\.json is a link out of the cache of org/name"):
        hub.pull("org/name")


@pytest.mark.parametrize("revision", ["../x", "a/../b", "/etc", "", "a b", "a\nb"])
def test_a_revision_that_is_none(remote: Path, revision: str):
    with pytest.raises(UserError, match="expected a branch, tag or commit of org/name"):
        hub.pull("org/name", revision=revision)


@pytest.mark.parametrize("subfolder", ["../other", "a/../../b", "/etc", "a\0b"])
def test_a_subfolder_outside(remote: Path, subfolder: str):
    with pytest.raises(UserError, match="expected a folder inside of org/name"):
        hub.pull("org/name", subfolder)


def test_what_is_not_pushed(tmp_path: Path, remote: Path):
    with pytest.raises(UserError, match="no files in"):
        hub.push(tmp_path / "none", "org/name")
    folder = saved(tmp_path / "sae")
    (folder / "ae.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"ae\.pt is none of \*\.safetensors, \*\.json"):
        hub.push(folder, "org/name")
    assert not remote.exists()


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("hf://org/name", ("org/name", None, None)),
        ("hf://org/name/", ("org/name", None, None)),
        ("hf://org/name/layer_1/sae", ("org/name", "layer_1/sae", None)),
        ("hf://org/name@v1.0/sae", ("org/name", "sae", "v1.0")),
        ("runs/sae", None),
        ("org/name", None),
    ],
)
def test_addresses(source: str, parsed: tuple | None):
    assert hub.parse(source) == parsed


@pytest.mark.parametrize(
    "source", ["hf://", "hf://name", "hf://org/name/../x", "hf://org//x", "hf://org/@v1", "hf://a/b@"]
)
def test_addresses_that_are_refused(source: str):
    with pytest.raises(UserError, match="write hf://org/name"):
        hub.parse(source)


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.HFValidationError("bad"), "'org/name' is no name of a repository; write it as org/name"),
        (errors.GatedRepoError("no", response=response(403)), "org/name is gated; accept its conditions at https://"),
        (
            errors.RepositoryNotFoundError("no", response=response(404)),
            "no repository org/name on the hub, or it is private",
        ),
        (errors.RevisionNotFoundError("no", response=response(404)), "org/name has no such revision"),
        (errors.LocalTokenNotFoundError("no"), "org/name needs a login; log in with `hf auth login`"),
        (errors.HfHubHTTPError("no", response=response(401)), "denied access to org/name (status 401); log in"),
        (errors.HfHubHTTPError("no", response=response(500)), "the hub refused org/name with status 500"),
        (
            errors.OfflineModeIsEnabled("Offline mode.\nMore"),
            "could not be fetched from or sent to the hub (Offline mode);",
        ),
        (errors.LocalEntryNotFoundError("Not here.\nMore"), "could not be fetched from or sent to the hub (Not here);"),
        (
            ValueError("Invalid pointer path.\nMore"),
            "could not be fetched from or sent to the hub (Invalid pointer path);",
        ),
        (errors.HTTPError("Connection refused"), "could not be fetched from or sent to the hub (Connection refused);"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "create_repo", fail)
    for call in (lambda: hub.pull("org/name"), lambda: hub.push(saved(tmp_path / "sae"), "org/name")):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_bad_name_and_no_network_with_the_library_itself(tmp_path: Path):
    with pytest.raises(UserError, match="is no name of a repository"):
        hub.pull("a name with spaces")
    with pytest.raises(UserError, match="offline mode is enabled"):
        hub.push(saved(tmp_path / "sae"), "org/name")
    with pytest.raises(UserError, match="could not be fetched"):
        hub.pull("jhsae-no-such-organisation/name")
