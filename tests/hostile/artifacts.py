"""One small artifact of every kind that the library reads, and the doors through which each of them is read.

Everything is made once. A case copies the artifact of its kind, changes one file of it, and opens a door: the command
line itself wherever it reads files before it computes, else the function that the commands call.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import yaml
from basics import (
    ABOUT,
    ATOMS,
    EMBED,
    EXPERTS,
    FEATURES,
    FLAT,
    IDENTITY,
    ROWS,
    SCALE,
    SUB,
    TREE,
    command,
    lines,
    normal,
    write_json,
)
from foreign_files import dictionary, eleuther, gemma, imports, in_torch, openai, pickled, saelens_files, torch_files
from outcomes import as_command
from safetensors.numpy import save_file

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands.evaluate import Evaluate
from jhsae.data import AbstractNormalizer, Identity, Store, write_array
from jhsae.optimizer import adam
from jhsae.report import drawing
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.sparsify import TopK
from jhsae.teacher import Concept, Teacher
from jhsae.teacher.ontology import from_wordnet
from jhsae.training.checkpoint import Checkpoints, save_sae
from jhsae.training.config import Train
from jhsae.training.logs import RunLog
from jhsae.training.run import prepare
from jhsae.training.run_folder import check_owner, write_metadata
from jhsae.training.step import TrainState

NODE = '{:08d} 03 n 01 {} 0 {} | a thing; "an example"  \n'


class Kind(NamedTuple):
    """A kind of artifact, made and read in the working directory.

    `make` writes it, `files` are those that are changed, `door` prepares the call that reads it, and `out` is where
    that call may write.
    """

    make: Callable[[], None]
    files: tuple[str, ...]
    door: Callable[[], Callable[[], Any]]
    out: str = "out"


# saved SAEs and runs


def sae() -> None:
    """A hierarchical SAE with a fitted normaliser."""
    made = HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, TopK(2), TopK(1), key=jax.random.key(0))
    store()
    normalizer = cfg.build(SCALE, AbstractNormalizer).fit(Store.open("store"))
    shutil.rmtree("store")
    save_sae("run/sae", made, TREE, SCALE, normalizer, ABOUT)


def store() -> None:
    """Few rows in several chunks and shards."""
    write_array(Path("store"), normal(ROWS, EMBED), shard_rows=32, chunk_rows=8)


def train_config(**more: Any) -> Path:
    """A config of ``jhsae train`` on the store in `folder`."""
    top = {
        "out": "out/run",
        "data": {"store": "store", "batch": 8, "normalize": SCALE},
        "sae": FLAT,
        "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        "stages": [{"name": "a", "steps": 10, "learning_rate": 1e-2}],
    }
    path = Path("train.yaml")
    path.write_text(yaml.safe_dump(top | more))
    return path


def run() -> None:
    """A run folder as training and evaluation leave it, with its store."""
    store()
    config = cfg.load(Train, train_config(out="run"))
    write_metadata(Path("run"), config, Store.open(Path("store")))
    sae = FlatSAE(EMBED, FEATURES, TopK(3), key=jax.random.key(0))
    about = ABOUT | json.loads((Path("run/run.json")).read_text())
    save_sae(Path("run/sae"), sae, FLAT, IDENTITY, Identity(), about)
    steps = [{"step": i, "stage": "a", "loss": 1 / i, "l0": 3.0, "dead": 0.0} for i in range(1, 11)]
    lines(Path("run/metrics.jsonl"), steps)
    times = [{"step": i, "seconds": 0.1 * i, "tokens_per_second": 80.0} for i in range(1, 11)]
    lines(Path("run/timing.jsonl"), times)
    metrics = {"ev_r2": 0.5, "mse": 1.5, "l0": 3.0, "dead": 0.25, "rows": 64, "parameters": 200, "train_seconds": 1.0}
    metrics |= {"ce": 4.0, "ce_model": 3.5, "ce_zero": 9.0, "ce_recovered": 0.9, "tokens_per_second": 80.0}
    metrics["density"] = {"log10_edges": [-2.0, -1.0, 0.0], "counts": [4, 8]}
    row = {key: about[key] for key in ("name", "config_hash", "commit")}
    evaluation = {"store": "none", "lm": "none", "sequences": 8, "hash": cfg.config_hash(EVALUATE), "commit": "c0ffee"}
    lines(Path("run/results.jsonl"), [row | {"evaluation": evaluation, "metrics": metrics}] * 2)
    contexts = [{"value": 1.5, "tokens": ["<bos>", " a", "b"], "at": 1}]
    latent = {"feature": 3, "frequency": 0.1, "name": None, "contexts": contexts}
    write_json(Path("run/contexts.json"), [latent | {"atoms": [latent | {"atom": 1}]}])


EVALUATE = Evaluate("run", "none", "none")


def evaluated() -> Callable[[], int]:
    """An evaluation that the run folder says is done already."""
    return command("evaluate", "run=run", "store=none", "lm=none")


def reported() -> Callable[[], int]:
    Path("report.yaml").write_text("runs: [run]\nout: out/page.html\n")
    return command("report", "report.yaml")


def resumed() -> Callable[[], int]:
    """Everything that ``jhsae train`` reads of a run that it continues, but for its checkpoints."""
    path = train_config(out="run")
    shutil.rmtree("run/sae")

    def again() -> None:
        config = cfg.load(Train, path)
        check_owner("run", config)
        write_metadata(Path("run"), config, Store.open("store"))
        RunLog(Path("run"), (), 5, {})

    return as_command(again)


def checkpoint() -> None:
    """Two checkpoints of one run."""
    state = state_of()
    with Checkpoints(Path("checkpoints")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(eqx.tree_at(lambda s: s.step, state, jax.numpy.int32(step)), {"step": step})


def state_of() -> TrainState:
    sae = FlatSAE(EMBED, FEATURES, TopK(3), key=jax.random.key(0))
    return TrainState.init(sae, adam(), jax.random.key(1))


def restored() -> Callable[[], int]:
    def restore() -> None:
        with Checkpoints(Path("checkpoints")) as checkpoints:
            checkpoints.resume(eqx.filter_eval_shape(state_of))

    return as_command(restore)


def checked(**more: Any) -> Callable[[], int]:
    """What ``jhsae train`` does before it computes, and then every row of the store."""
    path = train_config(**more)

    def check() -> None:
        store = prepare(cfg.load(Train, path)).store
        store.read(0, store.rows)
        store.index(0, store.rows)
        store.tokens()

    return as_command(check)


def teacher() -> None:
    """A teacher of two parents, and a store of its model."""
    store()
    unit = np.eye(EMBED, dtype=np.float32)
    children = tuple(Concept(f"c{i}", f"child{i}.n.01", (7 + i,), ()) for i in range(2))
    concepts = tuple(Concept(f"p{i}", f"parent{i}.n.01", (1, 2), children) for i in range(2))
    Teacher(
        parents=unit[:2], readouts=unit[:2], lengths=np.ones(2, np.float32), deltas=normal(2, 2, EMBED),
        up=np.stack([unit[2:4], unit[4:6]]), down=np.stack([unit[2:4], unit[4:6]]), atoms=normal(2, 2, SUB),
        counts=np.array([2, 2], np.int32), sigma=unit, concepts=concepts,
        provenance={"model": Store.open(Path("store")).manifest.model, "config_hash": "abc"},
        validation={"orthogonality": {"measured": {"median": 2.0, "quartile_1": 1.0, "quartile_3": 3.0}}},
    ).save(Path("teacher"))  # fmt: skip


def taught() -> Callable[[], int]:
    path = "teacher"
    tree = TREE | {"experts": 2, "atoms": 2, "route": {"_target_": "jhsae.sparsify.TopK", "k": 1}}
    init = [{"_target_": "jhsae.init.FromTeacher", "path": path}, {"_target_": "jhsae.init.UnitDecoder"}]
    return checked(teacher=path, sae=tree, init=init)


# language models, ontologies, golden numbers, pages


def language_model() -> None:
    """A random Gemma-2 of two blocks, its weights in two shards with an index."""
    from safetensors.numpy import load_file
    from small_lm import save_language_model

    save_language_model(Path("lm"))
    whole = Path("lm/model.safetensors")
    tensors = load_file(whole)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, Path("lm") / file)
    whole.unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, held in halves.items() for n in held}}
    write_json(Path("lm/model.safetensors.index.json"), index)


def loaded() -> Callable[[], int]:
    return as_command(lambda: lm.load(Path("lm")))


def wordnet() -> None:
    """Six nouns under one."""
    words = [("entity", [])] + [(f"word{i}", [1]) for i in range(2, 8)]
    data = "  1 licence\n" + "".join(
        NODE.format(i, f"{word} 0", f"{len(above):03d}" + "".join(f" @ {a:08d} n 0000" for a in above))
        for i, (word, above) in enumerate(words, start=1)
    )
    index = "  1 licence\n" + "".join(f"{word} n 1 1 @ 1 0 {i:08d}  \n" for i, (word, _) in enumerate(words, start=1))
    Path("data.noun").write_text(data)
    Path("index.noun").write_text(index)


def ontology() -> Callable[[], int]:
    return as_command(lambda: from_wordnet(Path()).upwards)


def golden() -> None:
    """Golden numbers of SAELens, of one architecture."""
    here = Path(__file__).parents[1] / "golden" / "saelens.npz"
    with np.load(here) as file:
        kept = {key: file[key] for key in file.files if key.split("/")[0] in ("x", "dead_mask", "standard")}
    np.savez(Path("golden.npz"), **kept)


def parity() -> Callable[[], int]:
    """A table in which rows fail, which is exit code 1, says what it is asked for."""
    compare = command("parity", "golden.npz")
    return lambda: 0 if (code := compare()) == 1 else code


def page() -> None:
    """A page that stands where a report is to be written."""
    run()
    marked = '<!doctype html>\n<meta name="jhsae-report" content="[&#34;run&#34;]">\n'
    (Path("page.html")).write_text(marked)
    lines(Path("results.jsonl"), [{}])


def over_page() -> Callable[[], int]:
    Path("out").mkdir()
    for name in ("page.html", "results.jsonl"):
        if os.path.lexists(name):
            shutil.move(name, Path("out") / name)
    return reported()


RUN = tuple(f"run/{name}" for name in ("results.jsonl", "timing.jsonl", "sae/sae.json", "sae/sae.safetensors"))
LOGS = tuple(f"run/{name}" for name in ("results.jsonl", "metrics.jsonl", "contexts.json", "run.json", "config.yaml"))
KINDS = {
    "saved SAE": Kind(
        sae,
        ("run/sae/sae.json", "run/sae/sae.safetensors", "run/sae/normalizer.safetensors"),
        lambda: command("export", "run=run", "format=folder", "out=out/export"),
    ),
    "evaluated run": Kind(run, RUN, evaluated),
    "reported run": Kind(run, (*LOGS, "run/timing.jsonl", "store/manifest.json"), reported),
    "resumed run": Kind(
        run, ("run/config.yaml", "run/run.json", "run/metrics.jsonl", "run/timing.jsonl"), resumed, "run"
    ),
    "checkpoint": Kind(checkpoint, ("checkpoints/2/**/*",), restored, "checkpoints"),
    "store": Kind(store, ("store/manifest.json", "store/**/*"), checked),
    "teacher": Kind(teacher, ("teacher/teacher.json", "teacher/teacher.safetensors"), taught),
    "SAELens": Kind(saelens_files, ("sae/cfg.json", "sae/sae_weights.safetensors"), imports("sae")),
    "dictionary_learning": Kind(dictionary, ("sae/config.json", "sae/ae.safetensors"), imports("sae")),
    "pickle": Kind(pickled, ("sae/ae.pt",), imports("sae", "unpickle=true")),
    "sparsify": Kind(
        eleuther, ("sae/config.json", "sae/layers.3/cfg.json", "sae/layers.3/sae.safetensors"), imports("sae/layers.3")
    ),
    "OpenAI": Kind(openai, ("sae.safetensors",), imports("sae.safetensors")),
    "Gemma Scope": Kind(gemma, ("layer_3/width/params.npz",), imports("layer_3/width")),
    "torch module": Kind(torch_files, ("sae/cfg.json", "sae/sae_weights.safetensors"), in_torch),
    "language model": Kind(language_model, ("lm/*",), loaded),
    "WordNet": Kind(wordnet, ("data.noun", "index.noun"), ontology),
    "golden numbers": Kind(golden, ("golden.npz",), parity),
    "page": Kind(page, ("page.html",), over_page),
}


def undrawn(figure: Any, name: str) -> str:
    """In place of the figures of a report, whose drawing takes longer than all else."""
    return "<svg></svg>"


@contextmanager
def quick() -> Iterator[None]:
    """Lets reports be made without their figures, for a while."""
    drawn = drawing.svg
    drawing.svg = undrawn
    try:
        yield
    finally:
        drawing.svg = drawn
