"""Which language model activations come from, and whether two of them are the same under different names.

A store that knows the hash of its model's content (`jhsae.lm.identity`) is compared by it alone, wherever the model
lies now. An older one knows the name alone: a hub name, or a path as it was written. Then two names are the same model
if they are equal or lead to one folder; a relative path is looked up from the working directory and from the folders
around the store.
"""

from pathlib import Path
from typing import Any, NamedTuple

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny_lm"


class ModelName(NamedTuple):
    """A language model: `name` as it was written, the hash of its content and the folder it lay in, as far as known."""

    name: str
    sha256: str | None = None
    path: str | None = None

    def record(self) -> dict[str, str | None]:
        """What the manifest of a store holds under ``tokenizer.model``."""
        return {"sha256": self.sha256, "path": self.path}

    def reads(self, layer: int) -> dict[str, Any]:
        """What ``sae.json`` says under ``reads`` of an SAE that was trained on this model's activations."""
        known = {} if self.sha256 is None else {"model_sha256": self.sha256}
        return {"model": self.name, "layer": layer, **known}

    @classmethod
    def of(cls, name: str, sha256: str | None) -> "ModelName":
        """That of a model which has just been read by this name."""
        folder = Path(name)
        return cls(name, sha256, str(folder.resolve()) if name != "embedded" and folder.is_dir() else None)

    @classmethod
    def recorded(cls, manifest: Any) -> "ModelName":
        """That which a manifest names."""
        about = manifest.tokenizer.get("model")
        about = about if isinstance(about, dict) else {}
        sha256, path = (about.get(key) for key in ("sha256", "path"))
        return cls(manifest.model, sha256 if isinstance(sha256, str) else None, path if isinstance(path, str) else None)

    def folders(self, store: str | None = None) -> list[Path]:
        """The folders that this model may lie in, those that exist, the most likely first."""
        if self.name == "embedded":
            return [BUNDLED]
        around = Path(store).resolve().parents if store is not None and "://" not in store else []
        tried = [Path(self.name), *([Path(self.path)] if self.path else [])]
        tried += [] if Path(self.name).is_absolute() else [folder / self.name for folder in around]
        return [folder.resolve() for folder in tried if folder.is_dir()]


def same_model(one: ModelName, other: ModelName, store: str | None = None) -> bool:
    """Are these the same language model? `store` is where one that knows no more than a name was read from."""
    if one.sha256 is not None and other.sha256 is not None:
        return one.sha256 == other.sha256
    return one.name == other.name or bool(set(one.folders(store)) & set(other.folders(store)))
