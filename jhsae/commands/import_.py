"""``jhsae import``: an SAE of another library as a run folder, which ``jhsae evaluate`` and `load_sae` read."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from jhsae import config as cfg
from jhsae.commands.last_line import command, last_line
from jhsae.config.trust import TrustedPackages
from jhsae.errors import UserError
from jhsae.files import bounded, tensor_files
from jhsae.files.folders import local_folder, refuse_existing, whole_folder
from jhsae.files.lock import owned
from jhsae.interop import dictionary_learning, gemma_scope, hub, imported, openai, saelens, sparsify
from jhsae.interop.imported import Imported
from jhsae.ranges import Natural, Words, ranged
from jhsae.training.checkpoint import load_sae


@ranged
@dataclass(frozen=True)
class Import:
    """The SAE to import, and how to read it."""

    source: Annotated[Words, "a folder or file, or hf://org/name[@revision][/subfolder]"]
    out: Annotated[Words, "run folder to write, must not exist"]
    format: Annotated[
        Literal["auto", "saelens", "dictionary_learning", "sparsify", "openai", "gemma_scope", "jhsae"],
        "whose files they are; auto tells by their names",
    ] = "auto"
    unpickle: Annotated[bool, "allow torch.load(weights_only=True) for .pt files"] = False
    model: Annotated[str | None, "language model that it reads, where the files say another name or none"] = None
    layer: Annotated[Natural | None, "blocks that have run before what it reads (blocks.5.hook_resid_post: 6)"] = None
    trust: TrustedPackages = field(default_factory=list)
    UNHASHED: ClassVar[frozenset[str]] = frozenset({"unpickle", "trust"})


def run(config: Import) -> Path:
    """Reads, writes ``{out}/sae`` and ``{out}/import.yaml``, and returns the run folder. `UserError` for bad input."""
    out = local_folder(config.out)
    refuse_existing(out)
    kind, found = _read(config)
    with owned(out, "import"):
        refuse_existing(out)  # again: somebody may have written it meanwhile
        with whole_folder(out) as partial:
            imported.save(found, partial / "sae")
            cfg.write(config, partial / "import.yaml")
    reads = found.about["reads"]
    if None in reads.values():
        print(
            f"it reads model {reads['model']}, layer {reads['layer']}, as far as the files say; to evaluate it, import "
            "it with model=... and layer=..."
        )
    made = kind, f"{found.sae.features} features over {found.sae.embed} dimensions"
    language_model = "..." if reads["model"] is None else reads["model"]
    following = command("jhsae", "evaluate", f"run={out}", "store=...", f"lm={language_model}", trust=config.trust)
    print(last_line(out, made, following))
    return out


def _read(config: Import) -> tuple[str, Imported]:
    """Reads and checks the input, before anything is written, a lock included; returns the format and the SAE."""
    where = hub.parse(config.source)
    path = Path(config.source) if where is None else hub.pull(*where)
    if not os.path.exists(path):
        raise UserError(f"no file or folder {path}; write one, or hf://org/name for the hub")
    if not os.path.isdir(path):
        bounded.regular_file(path)
    kind = detect(path) if config.format == "auto" else config.format
    found = _jhsae(path, config.trust) if kind == "jhsae" else READERS[kind](path, config.unpickle)
    return kind, _described(found, config)


def _described(found: Imported, config: Import) -> Imported:
    """`found` with what a run says of itself. An SAE of ours keeps what it was trained by."""
    about = {"config_hash": cfg.config_hash(config), **cfg.provenance()} | found.about
    about["source"] = about["source"] | {"path": config.source}  # not where the hub's cache happens to be
    given = {"model": config.model, "layer": config.layer}
    about["reads"] = about["reads"] | {key: value for key, value in given.items() if value is not None}
    return replace(found, about=about | {"name": Path(config.out).name})


def _jhsae(path: Path, trust: str | Iterable[str] = ()) -> Imported:
    sae, normalizer, about = load_sae(path, trust=trust)
    about |= {"source": about.get("source") or {"format": "jhsae", "path": str(path)}}
    return Imported(sae, about["sae"], about["normalize"], normalizer, about)


READERS: dict[str, Callable[[Path, bool], Imported]] = {
    "saelens": lambda path, unpickle: saelens.read(path),
    "dictionary_learning": dictionary_learning.read,
    "sparsify": lambda path, unpickle: sparsify.read(path),
    "openai": openai.read,
    "gemma_scope": lambda path, unpickle: gemma_scope.read(path),
    "jhsae": lambda path, unpickle: _jhsae(path),
}
# The files by which a folder is known; one of the sets is enough.
SIGNS: dict[str, tuple[set[str], ...]] = {
    "saelens": ({"cfg.json", "sae_weights.safetensors"},),
    "dictionary_learning": ({"ae.pt"}, {"ae.safetensors"}),
    "sparsify": ({"cfg.json", "sae.safetensors"},),
    "gemma_scope": ({"params.npz"}, {"params.safetensors"}),
    "jhsae": ({"sae.json", "sae.safetensors"},),
}


def detect(path: Path) -> str:
    """The format of the folder or file `path`, by names, and for a file of OpenAI's by what its header says.

    `UserError`: no format or more than one has such files.
    """
    if path.is_file() and _names_its_activation(path):
        return "openai"
    folder = path / "sae" if (path / "sae" / "sae.json").exists() else path
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else [path.name]
    plain = {re.sub(r"^ae_\d+\.", "ae.", name) for name in names}  # ae_1000.pt is a checkpoint of ae.pt
    found = [kind for kind, signs in SIGNS.items() if any(sign <= plain for sign in signs)]
    if len(found) == 1:
        return found[0]
    held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    what = f"{path} has the files of {' and '.join(found)}" if found else f"{path} has no files that tell their format"
    raise UserError(f"{what} ({held or 'it is empty'}); write format= one of {', '.join(READERS)}")


def _names_its_activation(file: Path) -> bool:
    if file.suffix != ".safetensors":
        return False
    return "activation" in tensor_files.tensor_metadata(file)
