"""The whole pipeline on the embedded model with few rows and steps: every artifact, its numbers, a second call."""

import json

import pytest
import yaml

from jhsae.__main__ import main
from jhsae.config import find

NAMES = ("scale", "geometry", "topk", "pursuit")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the quickstart's configs, cut down."""
    folder = tmp_path_factory.mktemp("quickstart")
    small = {
        "harvest/embedded": {"rows": 4000},
        "harvest/embedded_heldout": {"rows": 1500},
        "quickstart/teach": {"parents": 12, "sub": 4},
        "quickstart/scale": {"stages": _stages(12), "sae": {"experts": 24}},
        "quickstart/geometry": {"stages": _stages(6, freeze=["up"]) + _stages(6), "sae": {"experts": 16, "sub": 4}},
        "quickstart/topk": {"stages": _stages(12)},
        "quickstart/pursuit": {"stages": _stages(12), "sae": {"levels": [24, 4]}},
        "quickstart/browse": {"examples": 2, "spread": 1, "rows": 500, "atoms": 2},
    }
    for name, changes in small.items():
        base, short = {"base": str(find(f"{name}.yaml"))}, name.split("/")[1]
        (folder / f"{short}.yaml").write_text(yaml.safe_dump(base | changes | _data(short)))
    top = {
        "base": str(find("quickstart.yaml")),
        "out": str(folder / "out"),
        "harvest": str(folder / "embedded.yaml"),
        "heldout": str(folder / "embedded_heldout.yaml"),
        "teach": str(folder / "teach.yaml"),
        "train": [str(folder / f"{name}.yaml") for name in NAMES],
        "browse": str(folder / "browse.yaml"),
        "sequences": 8,
        "coherent": 2,
    }
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(top))
    return folder


def _stages(steps, freeze=()):
    return [{"name": "short", "steps": steps, "learning_rate": 3e-3, "freeze": list(freeze)}]


def _data(name):
    return {"data": {"batch": 128}, "checkpoint_every": 6} if name in NAMES else {}


@pytest.fixture(scope="module")
def out(place):
    """The folder that the first call made."""
    assert main(["quickstart", str(place / "quickstart.yaml")]) == 0
    return place / "out"


def rows(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_the_report_and_its_numbers_are_there(out):
    page = (out / "report.html").read_text()
    assert "<html" in page and 'src="http' not in page and "<script src" not in page
    for row, name in zip(rows(out), NAMES, strict=True):
        assert row["name"] == name and len(row["config_hash"]) == 12 and "commit" in row
        assert row["config_hash"] in page
        assert row["metrics"]["rows"] == 1500


def test_every_run_has_the_same_data_and_steps(out):
    told = [json.loads((out / name / "run.json").read_text())["store"]["sha256"] for name in NAMES]
    assert len(set(told)) == 1
    last = [(out / name / "metrics.jsonl").read_text().splitlines()[-1] for name in NAMES]
    assert {json.loads(line)["step"] for line in last} == {12}


def test_splicing_and_geometry_are_measured_beside_their_controls(out):
    for row in rows(out):
        metrics = row["metrics"]
        assert metrics["ce_model"] < metrics["ce"] and metrics["ce_zero"] > metrics["ce_model"]
        hierarchical = row["name"] != "topk"
        assert ("parent_child_off_90_null" in metrics) == hierarchical


def test_contexts_show_the_token_that_fired(out):
    for name in NAMES:
        for entry in json.loads((out / name / "contexts.json").read_text()):
            assert entry["frequency"] > 0 and entry["contexts"]
            for context in entry["contexts"]:
                assert context["value"] > 0 and 0 <= context["at"] < len(context["tokens"])
    geometry = json.loads((out / "geometry" / "contexts.json").read_text())
    assert any(entry["name"] for entry in geometry)


def test_coherent_experts_stand_beside_evenly_spaced_ones(out):
    for name in NAMES:
        entries = json.loads((out / name / "contexts.json").read_text())
        coherent = [entry for entry in entries if entry["chosen"] == "coherence"]
        assert 0 < len(coherent) <= 2 and len(entries) > len(coherent)
        values = [entry["coherence"] for entry in coherent]
        assert values == sorted(values, reverse=True)
        assert all(len(entry["tokens"]) == 10 for entry in coherent)


def test_the_report_links_to_the_feature_browser_of_the_recommended_sae(out):
    page, features = (out / "report.html").read_text(), (out / "features.html").read_text()
    assert '<a href="features.html">' in page and 'content="pursuit"' in features
    entry = json.loads((out / "pursuit" / "contexts.json").read_text())[0]
    assert f'href="features.html#e{entry["feature"]}"' in page
    assert 'href="features.html#f' not in page  # of the other runs there is no browser


def test_the_report_opens_with_its_finding(out):
    page = (out / "report.html").read_text()
    lead = page[page.index('id="finding"') : page.index("</p>", page.index('id="finding"'))]
    best = max(rows(out), key=lambda row: row["metrics"]["ev_r2"])
    assert f"{best['name']} explains the largest share" in lead or "each" in lead
    assert all(f"{row['metrics']['ev_r2']:.3f}" in lead for row in rows(out))


def test_a_browser_of_no_run_is_refused(place, capsys):
    assert main(["quickstart", str(place / "quickstart.yaml"), "browsed=sacle"]) == 2
    assert "browsed is sacle, expected one of scale, geometry, topk, pursuit" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_call_reuses_what_is_finished(place, out, capsys):
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    assert main(["quickstart", str(place / "quickstart.yaml")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("nothing to do") == 7
    last = printed.splitlines()[-1]
    numbers = ", ".join(f"{row['name']} {row['metrics']['ev_r2']:.4f}" for row in rows(out))
    assert last.startswith(f"{out}/report.html: held-out explained variance {numbers}; next: open it in a browser")
    assert before == {f: f.stat().st_mtime_ns for f in out.rglob("*.safetensors")}
    assert [len((out / n / "results.jsonl").read_text().splitlines()) for n in ("scale", "topk")] == [1, 1]


def test_another_config_in_its_folder_is_refused(place, out, capsys):
    (place / "teach.yaml").write_text((place / "teach.yaml").read_text() + "seed: 5\n")
    assert main(["quickstart", str(place / "quickstart.yaml")]) == 2
    assert "another config" in capsys.readouterr().err
