"""``jhsae export``: a trained SAE in the files of another library, or as a folder to share.

Input norms and thresholds are folded where the format wants weights alone; what fires on a token stays what it was.
With a held-out store the L0 is measured, and for SAELens also that of what was written, read back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import MinLen
from jaxtyping import Float

from jhsae import evals
from jhsae.commands.last_line import command, last_line
from jhsae.config.trust import TrustedPackages
from jhsae.data import AbstractNormalizer, Store, opens_with_bos
from jhsae.data.manifest import NAME as MANIFEST
from jhsae.errors import UserError
from jhsae.features.origin import check_origin, language_model
from jhsae.files.bounded import read_lines, to_json
from jhsae.files.folders import local_folder, refuse_existing
from jhsae.files.forms import check
from jhsae.files.lock import owned
from jhsae.interop import circuit_tracer, delphi, hub, neuronpedia, plain, saelens, torch_hsae, torch_pursuit
from jhsae.ranges import Count, Words, ranged
from jhsae.sae import AbstractSAE, PursuitSAE
from jhsae.training.checkpoint import load_sae

READ_ROWS = 4096


@ranged
@dataclass(frozen=True)
class Export:
    """The SAE to export, the format, and where to."""

    run: Annotated[
        Words | Annotated[list[Words], MinLen(1)],
        "folder of a finished run (jhsae train), of an import or of a saved SAE; for circuit_tracer one for each layer",
    ]
    format: Annotated[
        Literal["saelens", "torch", "folder", "delphi", "neuronpedia", "circuit_tracer"],
        "saelens: flat SAEs; torch: H-SAEs and pursuits, also for SAEBench and SAELens; folder: our own, with a README"
        "; delphi and neuronpedia: codes of a store; circuit_tracer: flat transcoders of MLPs",
    ]
    out: Annotated[Words, "folder to write, must not exist"]
    store: Annotated[str | None, "store of held-out text: for delphi, neuronpedia and to measure the L0"] = None
    rows: Annotated[Count | None, "held-out activations to use; null for all"] = None
    lm: Annotated[str | None, "language model (neuronpedia); null for the one the store was harvested from"] = None
    push: Annotated[str | None, "hub repository to upload it to, such as org/name"] = None
    trust: TrustedPackages = field(default_factory=list)

    @property
    def runs(self) -> list[str]:
        """Every folder that is named."""
        return [self.run] if isinstance(self.run, str) else list(self.run)

    def __post_init__(self) -> None:
        if len(self.runs) > 1 and self.format != "circuit_tracer":
            raise UserError(f"run names {len(self.runs)} folders, but format {self.format} is of one SAE; write one")
        if self.format == "circuit_tracer" and self.store is not None:
            raise UserError("format is circuit_tracer, which is made of weights alone; leave store out")
        if self.store is None and self.format in ("delphi", "neuronpedia"):
            raise UserError(f"format is {self.format}, which is made of codes; write store=... of held-out text")
        if self.push is not None and self.format in ("delphi", "neuronpedia"):
            raise UserError(f"push is {self.push}, but {self.format} files hold text and codes, no SAE; leave push out")


class Job(NamedTuple):
    """The arguments of a writer: the config, the SAE and the opened store."""

    config: Export
    sae: AbstractSAE
    normalizer: AbstractNormalizer
    about: dict[str, Any]
    store: Store | None

    def prepend_bos(self) -> bool | None:
        """Whether sequences open with BOS in the given store, or the one of the training; None where unknown."""
        if self.store is not None:
            return opens_with_bos(self.store.manifest)
        trained_on = self.about.get("store") or {}
        path = trained_on.get("path")
        if path is None or not (Path(path) / MANIFEST).is_file():
            return None
        store = Store.open(path)
        return opens_with_bos(store.manifest) if store.is_known_as(trained_on.get("sha256")) else None

    def held_out(self) -> Store:
        """The store, where the config guarantees one."""
        assert self.store is not None
        return self.store


def run(config: Export) -> Path:
    """Writes the folder and returns it. Raises `UserError` before any compute for bad input."""
    out = local_folder(config.out)
    refuse_existing(out)
    job = _read(config)
    with owned(out, "export"):
        refuse_existing(out)  # again: somebody may have written it meanwhile
        FORMATS[config.format](job, out)
    if config.push is not None:
        print(f"pushed to {hub.push(out, config.push)}")
    made = f"{config.format}, {job.sae.features} features over {job.sae.embed} dimensions"
    print(last_line(out, [made], _next(config, out)))
    return out


def _next(config: Export, out: Path) -> str:
    """The next step with a folder of this format, a command where there is one."""
    match config.format:
        case "saelens" | "torch":
            module = "jhsae.interop.saelens.plugin, sae_lens" if config.format == "torch" else "sae_lens"
            return command(
                "python", "-c", f"import {module}; print(sae_lens.SAE.load_from_disk({to_json(str(out))}).cfg)"
            )
        case "folder":
            return command("jhsae", "evaluate", f"run={out}", "store=...", "lm=...", trust=config.trust)
        case "delphi":
            return f"delphi.latents.LatentDataset(raw_dir={str(out)!r}, ...) in Python"
        case "circuit_tracer":
            return f"circuit_tracer.utils.hf_utils.load_transcoder_from_hub in Python, of a repository that holds {out}"
        case "neuronpedia":
            return f"upload the folders in {out} with Neuronpedia's importer"


def _read(config: Export) -> Job:
    """Reads and checks the input, before anything is written, a lock included."""
    sae, normalizer, about = load_sae(config.runs[0], trust=config.trust)
    store = None if config.store is None else Store.open(config.store)
    if store is not None:
        check_origin(sae, about, store)
    return Job(config, sae, normalizer, about, store)


def _saelens(job: Job, out: Path) -> None:
    saelens.check(job.sae, job.normalizer)  # before the measurement, which may take long
    if job.store is None:
        saelens.write(out, job.sae, job.normalizer, job.about)
        return
    before, frequency = _fired(job.sae, job.normalizer, job.store, job.config.rows)
    saelens.write(out, job.sae, job.normalizer, job.about, frequency)
    written = saelens.read(out)
    after, _ = _fired(written.sae, written.normalizer, job.store, job.config.rows)
    print(f"L0 {before:.4f} before the export, {after:.4f} read back")


def _torch(job: Job, out: Path) -> None:
    TORCH.get(type(job.sae), torch_hsae.write)(out, job.sae, job.normalizer, job.about, job.prepend_bos())
    if job.store is not None:
        before, _ = _fired(job.sae, job.normalizer, job.store, job.config.rows)
        print(f"L0 {before:.4f} before the export; to compare, average (sae.encode(x) != 0).sum(-1) over the same rows")


def _folder(job: Job, out: Path) -> None:
    path = Path(job.config.runs[0]) / "results.jsonl"
    rows = read_lines(path) if path.exists() else []
    if rows:
        check(rows[-1], plain.RESULTS, path)
    plain.write(out, job.sae, job.normalizer, job.about, rows[-1] if rows else None)


def _circuit_tracer(job: Job, out: Path) -> None:
    others = [load_sae(run, trust=job.config.trust) for run in job.config.runs[1:]]
    circuit_tracer.write(out, [(job.sae, job.normalizer, job.about), *others])


def _delphi(job: Job, out: Path) -> None:
    delphi.write(out, job.sae, job.normalizer, job.about, job.held_out(), job.config.rows)


def _neuronpedia(job: Job, out: Path) -> None:
    store = job.held_out()
    model = language_model(job.config.lm, store)
    neuronpedia.write(out, job.sae, job.normalizer, job.about, store, job.config.rows, model)


TORCH: dict[type[AbstractSAE], Callable[..., None]] = {PursuitSAE: torch_pursuit.write}
FORMATS: dict[str, Callable[[Job, Path], None]] = {
    "saelens": _saelens,
    "torch": _torch,
    "folder": _folder,
    "delphi": _delphi,
    "neuronpedia": _neuronpedia,
    "circuit_tracer": _circuit_tracer,
}


def _fired(
    sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, rows: int | None
) -> tuple[float, Float[np.ndarray, "features"]]:
    """The L0 on the first `rows` of a store, and how often each feature fired."""
    count = min(rows or store.rows, store.rows)
    batches = (store.read(start, min(start + READ_ROWS, count)) for start in range(0, count, READ_ROWS))
    metrics, frequency = evals.fidelity(sae, normalizer, batches, store.manifest.mean)
    return metrics["l0"], frequency
