"""Identity of the language model of some activations: comparing two names of it.

A store that records the hash of its model's content (`jhsae.lm.identity`) is compared by that alone, wherever the model
is now. An older one records the name alone: a hub name, or a path as it was written. Then two names are the same model
if they are equal or resolve to one folder; a relative path is looked up from the working directory and from the folders
around the store.
"""

from pathlib import Path
from typing import Any, NamedTuple

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny_lm"


class ModelName(NamedTuple):
    """A language model, as far as it is known.

    Args:
        name: The name as it was written.
        sha256: The hash of its content (`jhsae.lm.identity`), or None.
        path: Its folder, or None.
    """

    name: str
    sha256: str | None = None
    path: str | None = None

    def record(self) -> dict[str, str | None]:
        """The entry ``tokenizer.model`` of a store's manifest."""
        return {"sha256": self.sha256, "path": self.path}

    def reads(self, layer: int | None) -> dict[str, Any]:
        """The entry ``reads`` of the ``sae.json`` of an SAE trained on this model's activations."""
        known = {} if self.sha256 is None else {"model_sha256": self.sha256}
        return {"model": self.name, "layer": layer, **known}

    @classmethod
    def of(cls, name: str, sha256: str | None) -> "ModelName":
        """The name of a model that was just loaded."""
        folder = Path(name)
        return cls(name, sha256, str(folder.resolve()) if name != "embedded" and folder.is_dir() else None)

    @classmethod
    def recorded(cls, manifest: Any) -> "ModelName":
        """The name in a manifest."""
        about = manifest.tokenizer.get("model")
        about = about if isinstance(about, dict) else {}
        sha256, path = (about.get(key) for key in ("sha256", "path"))
        return cls(manifest.model, sha256 if isinstance(sha256, str) else None, path if isinstance(path, str) else None)

    def folders(self, store: str | None = None) -> list[Path]:
        """Existing folders that this model may be in, the most likely first."""
        if self.name == "embedded":
            return [BUNDLED]
        around = Path(store).resolve().parents if store is not None and "://" not in store else []
        tried = [Path(self.name), *([Path(self.path)] if self.path else [])]
        tried += [] if Path(self.name).is_absolute() else [folder / self.name for folder in around]
        return [folder.resolve() for folder in tried if folder.is_dir()]


def same_model(one: ModelName, other: ModelName, store: str | None = None) -> bool:
    """Whether two names mean the same language model.

    Args:
        one: A name.
        other: Another.
        store: The folder of the store that a bare name was read from; relative paths are resolved around it.
    """
    if one.sha256 is not None and other.sha256 is not None:
        return one.sha256 == other.sha256
    return one.name == other.name or bool(set(one.folders(store)) & set(other.folders(store)))
