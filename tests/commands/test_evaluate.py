"""`jhsae evaluate` on a world, on labels and without a language model: what it writes, and what it refuses."""

import json
import re

import equinox as eqx
import jax
import numpy as np
import pytest
import report_files
import runs
from held_out import harvested
from report_files import Page
from small_worlds import config as world_config
from small_worlds import world

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands import evaluate, report
from jhsae.commands.evaluate import Evaluate
from jhsae.data import AbstractNormalizer, Store
from jhsae.errors import UserError
from jhsae.evals import absorption, concept_labels, steered
from jhsae.evals.world import draws
from jhsae.features.decoder import decoder_in_lm_units
from jhsae.features.firings import firing_table
from jhsae.metric import causal
from jhsae.sae import AbstractSAE
from jhsae.teacher import Concept, Directions, Teacher, build
from jhsae.training.checkpoint import load_sae, save_sae
from jhsae.training.config import Train
from jhsae.training.run import train
from jhsae.worlds import Hierarchy, build_world, load_world, save_world, source

TREE = {
    "_target_": "jhsae.sae.HierarchicalSAE", "embed": 16, "experts": 12, "sub": 3, "atoms": 4,
    "route": {"_target_": "jhsae.sparsify.TopK", "k": 3}, "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
}  # fmt: skip
PLAIN = {"_target_": "jhsae.data.Identity"}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A world and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("known")
    built, generators = build_world(world_config(noise=0.1))
    save_world(built, folder / "world", generators)
    live = ["data.store=null", "data.live._target_=jhsae.worlds.WorldActivations", f"data.live.path={folder}/world"]
    changes = {"stages": [{"name": "all", "steps": 40, "learning_rate": 1e-2}]}
    file = runs.train_config(folder, folder / "none", folder / "run", **changes)
    train(cfg.load(Train, file, [*live, "sae.embed=24", "data.live.sample_rows=500"]))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A store of a language model, and a run whose SAE reads it."""
    folder = tmp_path_factory.mktemp("real")
    store, model = harvested(folder)
    save_run(folder, store.path, {"model": model.name, "layer": store.manifest.layer})
    return folder


def save_run(folder, store: str, reads: dict) -> None:
    report_files.write_run(folder, "run", {"ev_r2": 0.0})
    (folder / "run" / "timing.jsonl").unlink()
    sae = cfg.build(TREE, AbstractSAE, key=jax.random.key(1))
    about = {"name": "run", "config_hash": "aa", "commit": "c0ffee", "reads": reads}
    save_sae(folder / "run" / "sae", sae, TREE, PLAIN, cfg.build(PLAIN, AbstractNormalizer), about)


def newest(folder) -> dict:
    return json.loads((folder / "run" / "results.jsonl").read_text().splitlines()[-1])


def test_a_run_on_its_world(known, capsys):
    row = evaluate.run(Evaluate(str(known / "run"), truth=str(known / "world"), rows=600))
    assert row == newest(known) and row["metrics"]["rows"] == 600
    assert {"ev_r2", "mcc", "f1", "true_l0", "dead_experts"} <= row["metrics"].keys()
    assert "ce_recovered" not in row["metrics"] and not (known / "run" / "contexts.json").exists()
    assert [level["level"] for level in row["truth"]["levels"]] == [0, 1, 2]
    assert 0 <= row["truth"]["tree"]["share"] <= 1 and row["truth"]["tree"]["chance"] is not None
    said = capsys.readouterr().out
    assert re.search(r"MCC 0\.\d+, F1 0\.\d+", said) and "next: jhsae report" in said


def test_the_report_shows_what_was_recovered(known):
    row = evaluate.run(Evaluate(str(known / "run"), truth=str(known / "world"), rows=600))
    page = Page(report.run(report.Report([str(known / "run")], str(known / "report.html"))).read_text())
    for path, value in (
        ("metrics.mcc", row["metrics"]["mcc"]),
        ("truth.tree.share", row["truth"]["tree"]["share"]),
        ("truth.roots.parents.best_f1", row["truth"]["roots"]["parents"]["best_f1"]),
    ):
        assert repr(value) in page.values(path)
    assert row["truth"]["tree"]["sentence"] in page.text and "activations of the synthetic world" in page.text
    assert "residual stream of" not in page.text.partition("Before you trust")[0]


def test_a_recovery_that_is_no_number_is_refused_by_the_report(known):
    evaluate.run(Evaluate(str(known / "run"), truth=str(known / "world"), rows=600))
    row = newest(known)
    row["truth"]["tree"]["share"] = "<b>"
    with (known / "run" / "results.jsonl").open("a") as out:
        out.write(json.dumps(row | {"evaluation": {"hash": "other"}}) + "\n")
    with pytest.raises(UserError, match=r"'truth.tree.share' is '<b>', expected a number"):
        report.run(report.Report([str(known / "run")], str(known / "other.html")))


def test_held_out_tokens_are_none_of_training_and_the_same_for_every_run(known):
    w = load_world(known / "world")
    first, again = (np.concatenate([np.asarray(x) for x, _ in draws(w, 600, 0)]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), source.STREAM), 0)
    trained = np.asarray(eqx.filter_jit(source.activations)(w, jax.random.split(key, 64)))
    assert not (first[:, None] == trained[None]).all(axis=-1).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "names neither of store and truth"),
        ({"store": "a", "truth": "b"}, "names both of store and truth"),
        ({"truth": "b", "lm": "embedded"}, "a world has neither a language model nor labels"),
        ({"truth": "b", "labels": "wordnet"}, "a world has neither a language model nor labels"),
    ],
)
def test_keys_that_do_not_fit_together(given, message):
    with pytest.raises(UserError, match=message):
        Evaluate("run", **given)


def test_another_world_is_refused(known, tmp_path):
    save_world(world(Hierarchy.of_parents([-1, 0, 0]), noise=0.1), tmp_path / "small")
    other, generators = build_world(world_config(seed=2))
    save_world(other, tmp_path / "other", generators)
    before = (known / "run" / "results.jsonl").read_bytes()
    for name in ("small", "other"):
        with pytest.raises(UserError, match=f"was trained on .*, which is not the world in .*{name}; write truth="):
            evaluate.run(Evaluate(str(known / "run"), truth=str(tmp_path / name)))
    assert (known / "run" / "results.jsonl").read_bytes() == before


def test_a_store_without_a_language_model(real):
    row = evaluate.run(Evaluate(str(real / "run"), str(real / "store")))
    assert "ev_r2" in row["metrics"] and "ce_recovered" not in row["metrics"]
    assert "parent_child_off_90_euclidean" in row["metrics"] and "parent_child_off_90" not in row["metrics"]
    contexts = json.loads((real / "run" / "contexts.json").read_text())
    tokens = [token for one in contexts for context in one["contexts"] for token in context["tokens"]]
    assert tokens and all(re.fullmatch(r"<token \d+>", token) for token in tokens)


def test_an_array_has_no_contexts(tmp_path):
    save_run(tmp_path, str(tmp_path / "store"), {"model": "array", "layer": 0})
    runs.store(tmp_path / "store")
    row = evaluate.run(Evaluate(str(tmp_path / "run"), str(tmp_path / "store")))
    assert row["metrics"]["rows"] == 512 and not (tmp_path / "run" / "contexts.json").exists()


def test_labels_beside_permuted_ones(real):
    lines = [{"token": token, "class": "low" if token < 20 else "high"} for token in range(4, 40)]
    (real / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = evaluate.run(Evaluate(str(real / "run"), str(real / "store"), labels=str(real / "labels.jsonl")))
    assert 0 <= row["metrics"]["purity_parents"] <= 1 and row["metrics"]["purity_parents_null"] > 0
    assert 0 <= row["metrics"]["probe_all_k1"] <= 1
    sentences = row["labels"]["sentences"]
    assert any(s.startswith("purity of parents: not distinguishable from chance") for s in sentences)  # random weights
    page = Page(report.run(report.Report([str(real / "run")], str(real / "report.html"))).read_text())
    assert all(sentence in page.text for sentence in sentences)


def taught(folder, model: str) -> str:
    """A teacher of random directions, whose two concepts are the even and the odd tokens."""
    rng, width = np.random.default_rng(0), 16
    directions = Directions(rng.normal(size=(2, width)), tuple(rng.normal(size=(2, width)) for _ in range(2)))
    concepts = tuple(
        Concept(name, name, tuple(range(first, 40, 2)), tuple(Concept(f"{name}{i}", "k", (first,)) for i in range(2)))
        for name, first in (("even", 4), ("odd", 5))
    )
    geometry = causal(rng.normal(size=(50, width)))
    provenance = {"model": model}
    teacher = build(concepts, directions, geometry, sub=3, variance=1.0, seed=0, provenance=provenance, validation={})
    return str(teacher.save(folder))


def test_a_teacher_gives_labels_and_probes(real):
    folder = taught(real / "teacher", str(real / "lm"))
    row = evaluate.run(Evaluate(str(real / "run"), str(real / "store"), labels=folder))
    assert 0 <= row["metrics"]["f1_parents"] <= 1
    absorbed = row["labels"]["absorption"]
    assert absorbed["classes"] == ["even", "odd"] and absorbed["groups"].keys() == {"all", "parents"}
    store, (sae, normalizer, _) = Store.open(real / "store"), load_sae(real / "run")
    labels = concept_labels(Teacher.load(folder).concepts).on(store.index(0, store.rows))
    rows, readouts = store.read(0, store.rows), Teacher.load(folder).readouts
    dictionary = decoder_in_lm_units(sae, normalizer, store)
    fired = firing_table(sae, normalizer, store, store.rows)
    expected = absorption(fired, dictionary, rows, labels, readouts, sae.tree)["groups"]["parents"]
    assert row["metrics"]["absorption_parents"] == expected["full"]["mean"]
    assert row["metrics"]["absorption_fraction_parents"] == expected["fraction"]["mean"]
    other = taught(real / "stranger", "another model")
    with pytest.raises(UserError, match="was made from another model, but the store"):
        evaluate.run(Evaluate(str(real / "run"), str(real / "store"), labels=other))


def test_steering_in_the_language_model(real):
    row = evaluate.run(Evaluate(str(real / "run"), str(real / "store"), str(real / "lm"), sequences=8, steer=3))
    found, numbers = row["steering"]["details"], row["metrics"]
    assert len(found["target"]["units"]) == 3 and len(found["target"]["null"]) == 20
    assert numbers["steer_target"] > numbers["steer_target_null"]  # the tokens are those that the row itself raises
    assert numbers["steer_selectivity"] == pytest.approx(numbers["steer_target"] - numbers["steer_siblings"])
    assert [s.split(":")[0] for s in row["steering"]["sentences"]] == ["steering, target", "steering, selectivity"]
    page = Page(report.run(report.Report([str(real / "run")], str(real / "report.html"))).read_text())
    assert all(sentence in page.text for sentence in row["steering"]["sentences"])
    with pytest.raises(UserError, match="steer is 3, but there is no language model to steer in"):
        Evaluate(str(real / "run"), str(real / "store"), steer=3)


def test_where_nothing_fires_nothing_is_steered(real):
    store, model = Store.open(real / "store"), lm.load(real / "lm")
    sae, normalizer, _ = load_sae(real / "run")
    found = steered(sae, normalizer, store, model, [])
    assert found["sentences"] == [] and set(found["numbers"].values()) == {None} and len(found["numbers"]) == 8


def test_labels_that_do_not_cover_the_store(real):
    (real / "none.jsonl").write_text('{"token": 3000, "class": "a"}\n{"token": 3001, "class": "b"}\n')
    before = (real / "run" / "results.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"none.jsonl gives 0 of \d+ rows a class"):
        evaluate.run(Evaluate(str(real / "run"), str(real / "store"), labels=str(real / "none.jsonl")))
    with pytest.raises(UserError, match="labels=wordnet needs the tokenizer of the language model"):
        evaluate.run(Evaluate(str(real / "run"), str(real / "store"), labels="wordnet"))
    assert (real / "run" / "results.jsonl").read_bytes() == before
