"""Every verb that writes a folder owns it: while another process does, it ends at once and changes nothing."""

from pathlib import Path

import pytest
import runs
import yaml
from test_lock import holder
from test_saved_sae import FLAT, WHITEN, built

from jhsae import config
from jhsae.activations.config import Harvest, Source
from jhsae.commands import ablate, evaluate, export, harvest, import_, quickstart, teach, world
from jhsae.errors import UserError
from jhsae.training.checkpoint import save_sae
from jhsae.training.config import Train
from jhsae.training.run import train

ABOUT = {"name": "a", "reads": {"model": "array", "layer": 0}}


def begin(verb: str, place: Path, out: Path) -> None:
    """Runs a verb that writes `out`."""
    if verb == "train":
        train(config.load(Train, runs.train_config(place, place / "store", out)))
    elif verb == "harvest":
        text = {"_target_": "jhsae.data.TextFiles", "paths": [str(place / "a.txt")]}
        harvest.run(Harvest(str(out), Source("embedded", 1), text, rows=10))
    elif verb == "world":
        world.run(world.World(str(out), 8, features=4))
    elif verb == "teach":
        teach.run(teach.Teach(str(out), teach.Source("embedded")))
    elif verb == "evaluate":
        evaluate.run(evaluate.Evaluate(str(out), str(place / "store"), "embedded"))
    elif verb == "export":
        export.run(export.Export(str(place / "other"), "saelens", str(out)))
    elif verb == "import":
        import_.run(import_.Import(str(place / "other"), str(out)))
    elif verb == "ablate":
        base = runs.train_config(place, place / "store", place / "base")
        ablate.run(ablate.Ablate(str(out), str(base), {}, [0], str(place / "store"), "embedded"))
    elif verb == "quickstart":
        default = yaml.safe_load(config.find("quickstart.yaml").read_text())
        quickstart.run(quickstart.Quickstart(**default | {"out": str(out)}))


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "verb", ["train", "harvest", "world", "teach", "evaluate", "export", "import", "ablate", "quickstart"]
)
def test_a_folder_that_another_process_writes_is_left_alone(tmp_path, verb):
    out = tmp_path / "out"
    if verb in ("evaluate", "export", "import"):
        sae, normalizer = built(FLAT, WHITEN)
        save_sae((out if verb == "evaluate" else tmp_path / "other") / "sae", sae, FLAT, WHITEN, normalizer, ABOUT)
    process = holder(str(out))
    before = {path for path in tmp_path.rglob("*") if "jhsae" in path.name or out in path.parents}
    with pytest.raises(UserError, match=rf"out is being written by process {process.pid}"):
        begin(verb, tmp_path, out)
    assert before == {path for path in tmp_path.rglob("*") if "jhsae" in path.name or out in path.parents}
    process.communicate()
