"""``jhsae bench run``: both commands of a tiny run, and the errors of either."""

import json

import pytest

from jhsae.__main__ import main

SMALL = ["--rows", "600", "--steps", "4", "--batch", "64", "--width", "16"]
WORDS = ["harvest.context=16", "harvest.batch=8", "sae.route.k=4", "log_every=1"]
PHASE = {
    "tokens", "seconds", "cpu_seconds", "peak_rss", "running_tokens_per_second", "input_share",
    "tokens_per_second", "cpu_per_second",
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The result, its table and the work folder."""
    folder = tmp_path_factory.mktemp("bench")
    file, work = folder / "run.json", folder / "work"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        assert main(["bench", "run", *SMALL, "--work", str(work), "--json", str(file), *WORDS]) == 0
    return json.loads(file.read_text()), "\n".join(lines), work


def test_rates_follow_from_tokens_and_seconds(measured):
    result = measured[0]
    harvest, train, whole = (result["phases"][name] for name in ("harvest", "train", "whole"))
    assert all(set(phase) == PHASE for phase in result["phases"].values())
    assert harvest["tokens"] == 600 and train["tokens"] == whole["tokens"] == 4 * 64
    assert whole["seconds"] == pytest.approx(harvest["seconds"] + train["seconds"])
    assert whole["peak_rss"] == max(harvest["peak_rss"], train["peak_rss"]) > 2**20
    for phase in (harvest, train, whole):
        assert phase["tokens_per_second"] == pytest.approx(phase["tokens"] / phase["seconds"])
        assert phase["cpu_per_second"] == pytest.approx(phase["cpu_seconds"] / phase["seconds"])
    assert harvest["running_tokens_per_second"] > 0 and train["running_tokens_per_second"] > 0


def test_the_share_of_waiting_is_that_of_training_alone(measured):
    phases = measured[0]["phases"]
    assert 0 <= phases["train"]["input_share"] <= 1
    assert phases["harvest"]["input_share"] is None and phases["whole"]["input_share"] is None


def test_what_was_run_is_written_down(measured):
    result, table, work = measured
    assert result["shape"] == {"embed": 256, "experts": 16, "batch": 64, "steps": 4}
    assert result["settings"]["overrides"]["harvest"] == ["context=16", "batch=8", "rows=600"]
    assert {"commit", "load_before", "load_after", "versions"} <= result.keys()
    assert all(word in table for word in ("harvest", "train", "whole", "waits for input", "peak memory"))
    assert (work / "run" / "sae" / "sae.json").exists()  # a folder that is named stays


def test_a_folder_with_something_in_it_is_refused(measured, capsys):
    assert main(["bench", "run", *SMALL, "--work", str(measured[2])]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["sae.experts=0"], "experts"),
        (["sae.nothing=1"], "nothing"),
        (["recommended.yaml", "--width", "8"], "--width sets sae.experts or sae.features"),
    ],
)
def test_a_wrong_config_is_one_sentence_before_anything_runs(words, error, capsys, monkeypatch):
    monkeypatch.setattr("jhsae.bench.run.subprocess", None)
    assert main(["bench", "run", *words]) == 2
    assert error in capsys.readouterr().err


def test_a_command_that_fails_says_why(capsys):
    assert main(["bench", "run", "harvest.lm.path=there/is/none"]) == 2
    error = capsys.readouterr().err
    assert (
        "jhsae harvest ended with code 2: " in error
        and "there/is/none" in error
        and "jhsae: error: jhsae: " not in error
    )
