"""The page says what the files say, loads nothing, hides nothing, and overwrites nothing but itself."""

import json
import logging
import re
from collections import Counter

import pytest
from report_files import FIDELITY, FLAT_ROW, TEACHER, TREE_ROW, Page, context, feature, two_runs, write_run, write_store

from jhsae.commands.report import Report, run
from jhsae.errors import UserError
from jhsae.report import drawing, judging, reading
from jhsae.report.cards import groups
from jhsae.report.figures import asked_for, boundaries, terms, weights


@pytest.fixture
def two(tmp_path):
    """Runs that a test may change."""
    return two_runs(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report that was made already."""
    config = two_runs(tmp_path_factory.mktemp("made"))
    run(config)
    return config


@pytest.fixture
def page(made):
    """Its page."""
    return Page(reading.Path(made.out).read_text())


def report(config):
    return Page(run(config).read_text())


def test_every_number_is_the_newest_of_results_jsonl(page):
    for metric, value in TREE_ROW.items():
        shown = page.values(metric)
        assert shown and set(shown) <= {repr(value), repr(FLAT_ROW.get(metric)), None}
        assert shown.count(repr(value)) >= 1
    assert "0.111" not in page.text


def test_results_jsonl_beside_the_page_holds_the_rows_as_they_stand(made):
    out = reading.Path(made.out)
    lines = (out.parent / "results.jsonl").read_text().splitlines()
    assert lines == [(reading.Path(f) / "results.jsonl").read_text().splitlines()[-1] for f in made.runs]
    assert all(json.loads(line)["config_hash"] in out.read_text() for line in lines)


def test_the_page_loads_nothing(page, made):
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset")]
    assert links and all(link.startswith("#") for link in links)
    html = reading.Path(made.out).read_text()
    assert "http" not in html and "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_every_inner_link_has_its_target(page, made):
    ids = Counter(attrs["id"] for _, attrs in page.tags if "id" in attrs)
    assert max(ids.values()) == 1
    targets = {v[1:] for _, attrs in page.tags for k, v in attrs.items() if k in ("href", "xlink:href")}
    targets |= set(re.findall(r"url\(#([^)]*)\)", reading.Path(made.out).read_text()))
    assert targets <= ids.keys()


def test_the_same_files_give_the_same_bytes(made):
    before = reading.Path(made.out).read_bytes()
    assert run(made).read_bytes() == before


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>"
    card = feature(1, context(1.0, evil, evil, evil), name=evil)
    name = "a<b>&c"
    folder = write_run(tmp_path, name, TREE_ROW | {"<i>": 1.0}, contexts=[card], stages=("one", "<u>"))
    (tmp_path / "teacher.json").write_text(json.dumps(TEACHER | {"provenance": {"x": evil}, "validation": {evil: 1}}))
    config = Report([folder], str(tmp_path / "r" / "report.html"), title=evil, notes=[evil], commands=[evil])
    page = report(Report(**vars(config) | {"teacher": str(tmp_path)}))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"b>", "u", "script>"} & {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 8
    assert name in page.text


def test_a_missing_number_is_na_with_its_reason(tmp_path):
    short = {k: v for k, v in FLAT_ROW.items() if k not in ("mse", "l0", "parameters")}
    page = report(Report([write_run(tmp_path, "flat", short)], str(tmp_path / "r.html")))
    cells = {attrs["data-metric"]: attrs for _, attrs in page.tags if attrs.get("class") == "n na"}
    assert "no parents" in cells["dead_experts"]["title"] and "results.jsonl" in cells["mse"]["title"]
    assert page.text.count("n/a:") == 2
    assert page.values("ev_r2")[0] == repr(FIDELITY["ev_r2"])


def test_figures_show_every_run_and_quote_its_last_value(page):
    assert "Last logged (step 200): scale 2.05; flat 2.05." in page.text  # explained_variance is 2 + 1/20
    assert "reconstruction: SquaredError" in page.text and "Weight: scale 0.5; flat 0.5." in page.text
    assert "scale: adapt" in page.text and "flat: adapt" not in page.text


def test_the_histogram_of_densities_is_drawn_and_stays_out_of_the_table(tmp_path):
    density = {"log10_edges": [-3.0, -2.0, -1.0, 0.0], "counts": [0, 5, 7]}
    runs = [
        write_run(tmp_path, "new", TREE_ROW | {"density": density, "l1": 2.5}),
        write_run(tmp_path, "old", FLAT_ROW),
    ]
    page = report(Report(runs, str(tmp_path / "r.html")))
    assert "which alone are drawn: new 12." in page.text and "Feature density" in page.text
    assert page.values("density") == [] and page.values("l1") == ["2.5", None]
    assert "Feature density" not in report(Report(runs[1:], str(tmp_path / "q" / "q.html"))).text


def test_a_histogram_without_a_live_feature_is_drawn():
    bins = [drawing.Bins("a", 0, [-2.0, -1.0, 0.0], [0, 0])]
    assert "<svg" in drawing.histograms(drawing.Labels("t", "u", "i"), bins)


def test_a_stage_begins_where_the_one_before_ends(made):
    assert boundaries(reading.read_runs(made.runs)) == {100: "scale: adapt"}


def test_a_weight_that_a_stage_overrides_is_told_for_every_stage(made):
    (one,) = reading.read_runs(made.runs[:1])
    one.config["stages"][1]["weights"] = {"reconstruction": {"_target_": "jhsae.schedule.Linear", "start": 0}}
    assert weights(one, "reconstruction") == "0.5 (freeze), Linear(start=0) (adapt)"


def test_thinning_a_curve_keeps_both_ends():
    n = 10 * drawing.MOST_POINTS + 3
    axes = drawing.Figure().subplots()
    line = drawing._line(axes, drawing.Series("a", 0, range(n), range(n)))
    kept = line.get_xdata()
    assert kept[0] == 0 and kept[-1] == n - 1 and len(kept) <= drawing.MOST_POINTS + 1


def test_labels_of_any_script_draw_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        svg = drawing.curves(
            drawing.Labels("木 $x_1$", "", ""), [drawing.Series("_λ", 0, [1, 2], [1.0, 2.0])], {1: "é"}, None
        )
    assert not caplog.records and svg.isascii() and "$x_1$" in svg


def test_contexts_mark_the_firing_token_with_its_space_and_strength(two):
    card = context(2.0, "<bos>", " big", " dog\n", " barks", at=2)
    (own,) = groups(reading.read_run(two.runs[0]))[0].cards[:1]
    assert own.title == "expert 3" and own.headwords == "dog" and own.atoms[0].title == "atom 1"
    path = reading.Path(two.runs[0]) / "contexts.json"
    path.write_text(json.dumps([feature(3, card, card | {"value": 1.0}), feature(4)]))
    first, empty = groups(reading.read_run(two.runs[0]))[0].cards
    line, weaker = first.lines
    assert (line.left, line.token, line.right) == ([(True, "<bos>"), (False, " big")], " dog↵", [(False, " barks")])
    assert (line.intensity, weaker.intensity, line.value) == (1.0, 0.5, "2.00")
    assert empty.lines == []


def test_an_expert_is_not_called_a_feature(page):
    assert "expert 3" in page.text and "feature 3" not in page.text


def test_the_table_of_what_is_matched_tells_like_from_unlike(tmp_path):
    runs = [
        write_run(tmp_path, "a", FLAT_ROW),
        write_run(tmp_path, "b", FLAT_ROW | {"l0": 16.5, "parameters": 300_000}, seed=1),
        write_run(tmp_path, "c", {k: v for k, v in FLAT_ROW.items() if k != "rows"}),
    ]
    verdicts = {m.name: m for m in judging.matches(reading.read_runs(runs))}
    assert verdicts["L0"].verdict == "within 2%" and verdicts["L0"].same
    assert verdicts["parameters"].verdict == "differs by 143%" and not verdicts["parameters"].same
    assert verdicts["held-out tokens"].verdict == "unknown" and not verdicts["held-out tokens"].same
    assert verdicts["seed"].verdict == "differs" and verdicts["training tokens"].values == ["12,800"] * 3


def test_cautions_follow_from_the_files(tmp_path):
    store = write_store(tmp_path, "train")
    bad = TREE_ROW | {"dead": 0.75, "parent_child_off_90": 5.0}
    runs = reading.read_runs([write_run(tmp_path, "bad", bad, heldout=store, commit="c0ffee-dirty")])
    said = " ".join(judging.cautions(runs, judging.matches(runs)))
    assert all(word in said for word in ("nothing of it is held out", "No commit records", "75%", "no more orthogonal"))
    manifest = tmp_path / "train" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}}))
    (changed,) = reading.read_runs([str(tmp_path / "bad")])
    assert any("no longer the one that bad was trained on" in doubt for doubt in judging._doubts(changed))
    fine = reading.read_runs([write_run(tmp_path, "fine", TREE_ROW)])
    assert len(judging.cautions(fine, judging.matches(fine))) == 1


def test_the_teacher_is_shown_with_its_nulls(two, tmp_path):
    (tmp_path / "teacher.json").write_text(json.dumps(TEACHER))
    page = report(Report(**vars(two) | {"teacher": str(tmp_path)}))
    shown = {attrs.get("data-value") for _, attrs in page.tags}
    assert {"2.125", "8.5", "0.625", "0.015625"} <= shown
    assert "2 parent concepts with 1 children" in page.text and "owl.n.01 (1)" in page.text


def test_runs_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    one, other = write_run(tmp_path, "same", FLAT_ROW), write_run(tmp_path / "x", "same", FLAT_ROW)
    assert [r.name for r in reading.read_runs([one, other])] == [one, other]


def test_a_store_that_moved_away_is_unknown_not_an_error(two, tmp_path):
    for name in ("train", "heldout"):
        (tmp_path / name / "manifest.json").unlink()
    assert "an unknown language model" in report(two).text


def test_the_page_may_be_written_again_and_with_more_runs(two):
    run(Report(two.runs[:1], two.out))
    run(two)
    with pytest.raises(UserError, match="reports flat, which runs does not list"):
        run(Report(two.runs[:1], two.out))


@pytest.mark.parametrize("name", ["report.html", "results.jsonl"])
def test_nothing_else_is_overwritten(two, name):
    out = reading.Path(two.out)
    out.parent.mkdir()
    (out.parent / name).write_text("mine")
    with pytest.raises(UserError, match="another out="):
        run(two)
    assert [p.read_text() for p in out.parent.iterdir()] == ["mine"]


def test_a_report_in_a_run_folder_would_overwrite_its_results(two):
    with pytest.raises(UserError, match="inside the run folder"):
        run(Report(two.runs, f"{two.runs[0]}/report.html"))


def break_run(folder, name, text):
    path = reading.Path(folder) / name
    path.unlink() if text is None else path.write_text(text)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("results.jsonl", None, "has not been evaluated; run jhsae evaluate"),
        ("results.jsonl", "", "has not been evaluated; run jhsae evaluate"),
        ("results.jsonl", '{"name": \n', "results.jsonl, line 1, cannot be read as JSON"),
        ("results.jsonl", '{"config_hash": "other", "metrics": {}}', "was trained again since"),
        ("run.json", None, "is not a run folder"),
        ("run.json", "{", "run.json cannot be read as JSON"),
        ("metrics.jsonl", None, "is not a run folder"),
    ],
)
def test_a_broken_run_is_named(two, name, text, message):
    break_run(two.runs[1], name, text)
    with pytest.raises(UserError, match=message) as error:
        run(two)
    assert two.runs[1] in str(error.value) and not reading.Path(two.out).exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"runs": []}, r"runs is \[\], expected at least one entry"),
        ({"runs": ["nowhere"]}, "nowhere is not a run folder"),
        ({"out": "report"}, "write out=report/report.html"),
        ({"teacher": "nowhere"}, "no teacher in nowhere"),
    ],
)
def test_a_wrong_config_says_what_to_write(two, change, message):
    with pytest.raises(UserError, match=message):
        run(Report(**vars(two) | change))


def test_terms_that_share_a_name_alone_are_drawn_apart(made):
    one, other = reading.read_runs(made.runs)
    other.config["objective"]["reconstruction"] = {"_target_": "jhsae.losses.SquaredError", "m": {"_target_": "a.B"}}
    first, second = terms([one, other])
    assert first.label == second.label == "reconstruction: SquaredError"
    assert "flat" not in first.caption and "scale" not in second.caption
    assert not set(re.findall(r'id="([^"]*)"', first.svg)) & set(re.findall(r'id="([^"]*)"', second.svg))


def test_an_angle_that_was_asked_for_is_no_discovery(made):
    one, other = reading.read_runs(made.runs)
    one.config["objective"]["o"] = {"_target_": "jhsae.losses.CausalOrthogonality"}
    one.config["init"] = [{"_target_": "jhsae.init.FromTeacher", "path": "t"}]
    assert asked_for([one, other]) == ["scale (CausalOrthogonality, FromTeacher)"]
