"""Runs as the report finds them, with numbers that differ in every digit, and the page that it made of them."""

import json
import re
from html.parser import HTMLParser

import yaml

from jhsae.commands.report import Report
from jhsae.report import reading

FIDELITY = {"ev_r2": 0.71234567891, "mse": 31.87654, "l0": 16.25, "dead": 0.125, "rows": 4096, "parameters": 123456}
LOSSES = {"ce": 4.8125, "ce_model": 4.37, "ce_zero": 9.01, "ce_recovered": 0.9047}
TREE = {
    "parents_only_ev_r2": 0.5,
    "l0_parents": 8.0,
    "l0_atoms": 8.25,
    "dead_experts": 0.0625,
    "dead_atoms": 0.25,
    "parent_child_off_90": 2.5,
    "parent_child_off_90_null": 4.5,
    "parent_child_off_90_euclidean": 3.5,
    "parent_child_off_90_null_euclidean": 5.5,
}
TIME = {"train_seconds": 75.0, "tokens_per_second": 20312.25}
FLAT_ROW = FIDELITY | LOSSES | TIME
TREE_ROW = FLAT_ROW | TREE
TEACHER = {
    "concepts": [
        {"id": "p", "name": "plant.n.02", "tokens": [1, 2, 3], "children": []},
        {"id": "q", "name": "bird.n.01", "tokens": [4], "children": [{"id": "r", "name": "owl.n.01", "tokens": [4]}]},
    ],
    "provenance": {"model": "tiny"},
    "validation": {
        "orthogonality": {
            "measured": {"median": 2.125, "quartile_1": 1.0, "quartile_3": 3.0, "n": 7},
            "shuffled": {"median": 8.5, "quartile_1": 7.0, "quartile_3": 9.0, "n": 7},
        },
        "projection": {"measured": {"heldout": 0.625, "auc": 0.9375}, "shuffled": {"heldout": 0.015625}},
    },
}


def context(value, *tokens, at=1):
    return {"value": value, "tokens": list(tokens), "at": at}


def feature(number, *contexts, **more):
    return {"feature": number, "frequency": 0.0125, "name": None, "contexts": list(contexts), "atoms": []} | more


def write_store(root, name, rows=4096):
    (root / name).mkdir(exist_ok=True)
    manifest = {
        "model": "tiny", "layer": 2, "dataset": {"source": "Words", "split": name}, "rows": rows, "embed": 8,
        "dtype": "float32", "sequences": 32, "context": 128, "config": {"seed": 5}, "config_hash": "feedfeedfeed",
        "files": {f"{name}/0": {"bytes": 64, "sha256": "ab" * 32}},
    }  # fmt: skip
    (root / name / "manifest.json").write_text(json.dumps(manifest))
    return str(root / name)


def write_run(
    root, name, metrics, *, contexts=(), seed=0, stages=("train",), commit="c0ffee", heldout=None, hashed="aa"
):
    """A run folder of 20 logged steps; its first row of results.jsonl is out of date."""
    folder = root / name
    folder.mkdir()
    store = write_store(root, "train")
    config = {
        "data": {"store": store, "batch": 64, "normalize": {"_target_": "jhsae.data.Identity"}},
        "objective": {"reconstruction": {"_target_": "jhsae.losses.SquaredError"}},
        "weights": {"reconstruction": 0.5},
        "stages": [{"name": stage, "steps": 100} for stage in stages],
        "seed": seed,
        "dead_window": 50,
    }
    about = {
        "name": name, "config_hash": hashed, "commit": commit, "versions": {"jax": "0.0.1"},
        "platform": "cpu", "device_kind": "cpu", "device_count": 1,
        "store": {"path": store, "sha256": reading.read_source(store).sha256},
    }  # fmt: skip
    numbers = ["loss", "reconstruction", "explained_variance", "l0", "dead", "learning_rate", "grad_norm"]
    steps = [{"step": 10 * i, "stage": "s"} | {n: j + 1 / i for j, n in enumerate(numbers)} for i in range(1, 21)]
    row = {
        "name": name, "config_hash": hashed, "commit": commit, "metrics": metrics,
        "evaluation": {"store": heldout or write_store(root, "heldout"), "lm": "tiny", "sequences": 32},
    }  # fmt: skip
    write_lines(folder / "results.jsonl", [row | {"metrics": {"ev_r2": 0.111}}, row])
    write_lines(folder / "metrics.jsonl", steps)
    write_lines(folder / "timing.jsonl", [{"step": 10 * i, "seconds": float(i)} for i in range(1, 21)])
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "contexts.json").write_text(json.dumps(list(contexts)))
    return str(folder)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))

    def values(self, metric):
        """The exact values shown for a metric, in order; None for a cell without one."""
        return [attrs.get("data-value") for _, attrs in self.tags if attrs.get("data-metric") == metric]


def two_runs(root):
    """The config of a report on a hierarchical and a flat run."""
    card = feature(
        3, context(2.0, "<bos>", " dog", " barks"), atoms=[feature(9, context(1.0, "a", " b")) | {"atom": 1}]
    )
    scale = write_run(root, "scale", TREE_ROW, contexts=[card], stages=("freeze", "adapt"))
    flat = write_run(root, "flat", FLAT_ROW, hashed="bb")
    return Report([scale, flat], str(root / "report" / "report.html"))
