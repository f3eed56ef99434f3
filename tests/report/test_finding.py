"""The finding follows from the numbers, whatever the order of the rows; its figure names points apart."""

import itertools
import re

import numpy as np
import pytest
from report_files import FLAT_ROW, TREE_ROW, context, feature, write_run, write_store
from scipy.optimize import isotonic_regression

from jhsae.commands.report import Report, run
from jhsae.errors import UserError
from jhsae.report import drawing, finding, page, reading, scatter, svg

EV = {"tree": 0.9, "low": 0.5, "flat": 0.8, "other": 0.7}


@pytest.fixture
def made(tmp_path):
    """Makes runs of given changes, in this order."""

    times = itertools.count()

    def make(**changes):
        root = tmp_path / str(next(times))
        root.mkdir()
        card = feature(3, context(2.0, "a", " b"), atoms=[feature(9, context(1.0, "a", " b")) | {"atom": 1}])
        rows = {
            name: (FLAT_ROW if name in ("flat", "other") else TREE_ROW) | {"ev_r2": EV[name]} | change
            for name, change in changes.items()
        }
        return reading.read_runs([write_run(root, name, row, contexts=[card]) for name, row in rows.items()])

    return make


def test_two_sentences_of_any_order_are_the_same(made):
    runs = made(tree={"ce_recovered": 0.97}, low={}, flat={"ce_recovered": 0.95}, other={})
    told = {tuple(finding.sentences(list(order))) for order in itertools.permutations(runs)}
    assert told == {
        (
            "At an L0 of 16.2, tree explains the largest share of the variance of held-out activations, 0.900, before "
            "flat (0.800), other (0.700) and low (0.500).",
            "tree, the best hierarchical SAE, is 0.100 above flat, the best flat one, matched in training tokens, L0 "
            "and parameters, in about its training time; cross-entropy recovered has the same order (0.970 and 0.950).",
        )
    }


def test_a_hierarchy_that_loses_is_below_and_what_differs_is_told(made):
    runs = made(low={"ev_r2": 0.7004, "l0": 8.0, "train_seconds": 150.0}, flat={})
    first, second = finding.sentences(runs)
    assert (
        first.startswith("At an L0 of 8.0 to 16.2, flat explains the largest share") and "before low (0.700)" in first
    )
    assert "low, the best hierarchical SAE, is 0.100 below flat, the best flat one" in second
    assert "not matched in L0 (8.0 and 16.2), in 2.0 times its training time" in second


def test_cross_entropy_that_disagrees_says_so(made):
    runs = made(tree={"ce_recovered": 0.9}, flat={"ce_recovered": 0.95})
    assert "cross-entropy recovered has the opposite order (0.900 and 0.950)." in finding.sentences(runs)[1]
    same = made(tree={"ce_recovered": 0.95}, flat={"ce_recovered": 0.95})
    assert "cross-entropy recovered is the same (0.950)." in finding.sentences(same)[1]


def test_values_shown_alike_share_a_place(made):
    runs = made(tree={"ev_r2": 0.80004}, flat={"ev_r2": 0.80001}, other={})
    first, second = finding.sentences(runs)
    assert "tree and flat explain the largest share" in first and "0.800 each, before other (0.700)" in first
    assert "is level with flat" in second
    assert "explain the same share" in finding.sentences(runs[:2])[0]


def test_without_a_hierarchy_the_best_two_are_compared(made):
    assert "flat is 0.100 above other, the next, " in finding.sentences(made(other={}, flat={}))[1]


def test_one_run_and_none(made):
    (one,) = made(flat={})
    first, second = finding.sentences([one])
    assert first == "At an L0 of 16.2, flat explains 0.800 of the variance of held-out activations."
    assert "recovers 0.905 of the cross-entropy" in second
    (bare,) = made(flat={"ce_recovered": None, "ev_r2": 0.8})
    assert "was not measured" in finding.sentences([bare])[1]
    (nothing,) = made(flat={"ev_r2": None})
    assert finding.sentences([nothing]) == [] and finding.figure([nothing]) is None


def test_a_run_without_a_value_is_left_out_and_said(made):
    first, _ = finding.sentences(made(tree={}, flat={}, other={"ev_r2": None}))
    assert "(where it was measured)" in first and "other" not in first


def test_runs_on_other_tokens_are_not_ranked(tmp_path):
    store = write_store(tmp_path, "elsewhere", rows=64)
    runs = [write_run(tmp_path, "a", FLAT_ROW), write_run(tmp_path, "b", TREE_ROW | {"rows": 64}, heldout=store)]
    first, second = finding.sentences(reading.read_runs(runs))
    assert "is 0.712 (a) and 0.712 (b)" in first and "not ranked" in second


def test_the_figure_joins_the_parents_to_the_whole(made):
    runs = made(tree={}, flat={})
    caption = finding.figure(runs).caption
    assert "tree 0.900 at 16.2; flat 0.800 at 16.2" in caption and "Hollow" in caption and "squares" in caption
    assert "Hollow" not in finding.figure(runs[1:]).caption


@pytest.mark.parametrize("seed", range(5))
def test_names_are_apart_and_as_near_to_their_points_as_can_be(seed):
    """Least squares under a least distance is isotonic regression of the heights less their rows."""
    wanted, row = np.random.default_rng(seed).random(9) * 0.6 + 0.2, 0.04
    found = np.array(scatter.apart(wanted.tolist(), row))
    order = np.argsort(wanted)
    steps = row * np.arange(len(wanted))
    np.testing.assert_allclose(found[order], isotonic_regression(wanted[order] - steps).x + steps, atol=1e-9)
    assert scatter.apart([], row) == [] and scatter.apart([0.3], row) == [0.3]
    assert scatter.apart([0.5, 0.1], row) == [0.5, 0.1]


def test_names_stay_within_the_figure_where_there_is_room():
    assert max(scatter.apart([1.0, 1.0, 1.0], 0.1)) == 1.0
    assert min(scatter.apart([0.0, 0.0, 0.0], 0.1)) == 0.0


def test_every_colour_of_a_figure_is_a_variable_that_both_themes_define(made, tmp_path):
    runs = made(tree={}, low={}, flat={}, other={})
    report = run(Report([r.folder for r in runs], str(tmp_path / "out" / "r.html"))).read_text()
    style = (page.FOLDER / "style.css").read_text()
    dark = style[style.index("prefers-color-scheme: dark") : style.index("* { box-sizing")]
    drawn = re.findall(r"(?:fill|stroke): ([^;\"]+)", "".join(re.findall(r"<svg.*?</svg>", report, re.DOTALL)))
    variables = {found[1] for colour in drawn if (found := re.fullmatch(r"var\((--[\w-]+), #[0-9a-f]{6}\)", colour))}
    assert {colour for colour in drawn if not colour.startswith("var(")} == {"none"}
    assert {"--run-0", "--run-3", "--back"} <= variables <= set(svg.VARIABLES.values())
    light, printed = style[: style.index("@media")], style[style.index("@media print") :]
    assert not [name for name in svg.VARIABLES.values() for theme in (light, dark, printed) if f"{name}:" not in theme]
    assert not re.search(r"#[0-9a-f]{3}", style[style.index("* { box-sizing") : style.index("@media print")])


@pytest.mark.parametrize("log", [False, True])
def test_stage_names_are_above_every_curve(log):
    steps = list(range(1, 101))
    series = [
        drawing.Series(name, place, steps, [k + 1e-3 + float(step) ** 2 for step in steps])
        for place, (name, k) in enumerate({"a": 0.0, "b": 1.0}.items())
    ]
    text = drawing.curves(drawing.Labels("t", "u", "i"), series, {30: "a: adapt", 80: "b: cool"}, None, log)
    names = [float(y) for y in re.findall(r'translate\([\d.]+ ([\d.]+)\)"[^>]*>[ab]: \w+</text>', text)]
    names = names or [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>[ab]: \w+</text>', text)]
    lines = [path for path in re.findall(r'<path d="(M[^"]*)"[^>]*stroke: var\(--run-', text) if path.count("L") > 50]
    highest = min(float(y) for path in lines for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path))
    assert len(names) == 2 and len(lines) == 2 and max(names) < highest


def browser(path, name):
    path.write_text(f'<!doctype html><meta name="jhsae-browser" content="{name}">')
    return str(path)


def test_the_page_links_to_feature_browsers(made, tmp_path):
    runs = made(tree={}, flat={})
    pages = [browser(tmp_path / "a:b ü.html", "tree")]
    out = run(Report([r.folder for r in runs], str(tmp_path / "out" / "r.html"), browsers=pages)).read_text()
    assert 'href="../a%3Ab%20%C3%BC.html">what the latents of tree do' in out
    assert 'href="../a%3Ab%20%C3%BC.html#e3"' in out and 'href="../a%3Ab%20%C3%BC.html#e3/a1"' in out


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (lambda root: str(root / "no.html"), "there is no feature browser"),
        (lambda root: browser(root / "other.html", "else"), "shows the latents of else; write the page of one of flat"),
        (lambda root: str((root / "x.html").write_text("x") and root / "x.html"), "is no page of jhsae browse"),
    ],
)
def test_a_wrong_browser_is_refused_before_anything_is_written(made, tmp_path, page, message):
    (one,) = made(flat={})
    with pytest.raises(UserError, match=message):
        run(Report([one.folder], str(tmp_path / "out" / "r.html"), browsers=[page(tmp_path)]))
    assert not (tmp_path / "out").exists()
