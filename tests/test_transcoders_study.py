"""The page of experiments/transcoders is made of its rows, which are those of the configs as they are."""

import importlib.util
from pathlib import Path

from jhsae import config as cfg
from jhsae.training.config import Train

FOLDER = Path(__file__).parents[1] / "experiments" / "transcoders"
spec = importlib.util.spec_from_file_location("transcoders_study", FOLDER / "run.py")
assert spec is not None and spec.loader is not None
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_the_page_is_made_of_the_rows():
    assert study.page(study.rows()) == study.README.read_text()


def test_every_arm_has_its_seeds_and_the_hash_of_its_config():
    rows = study.rows()
    assert {(row["arm"], row["seed"]) for row in rows} == {(arm, seed) for arm in study.ARMS for seed in range(3)}
    for row in rows:
        file, overrides, _ = study.ARMS[row["arm"]]
        seeds = [f"seed={row['seed']}", f"data.seed={row['seed']}"]
        config = cfg.load(Train, study.CONFIGS / f"{file}.yaml", [*overrides, *seeds])
        assert row["config_hash"] == cfg.config_hash(config) and "dirty" not in row["commit"]


def test_what_the_page_says_of_trees_holds_in_every_seed():
    for flat, tree in study.PAIRS:
        for key in ("ev_r2", "ce_recovered"):
            one, other = (
                study.main_numbers([row for row in study.rows() if row["arm"] == arm], key) for arm in (flat, tree)
            )
            assert ((other > one) if flat.endswith("few") else (other < one)).all(), (flat, tree, key)
