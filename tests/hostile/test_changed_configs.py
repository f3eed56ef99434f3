"""500 changed training configs, 125 of them by default: each is right, or refused before anything is computed."""

from pathlib import Path

import pytest
from small_configs import FILES, Configs


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Configs:
    return Configs(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("file", FILES)
def test_what_is_right_passes(configs: Configs, file: str, tmp_path: Path):
    outcome = configs.untouched(file, tmp_path)
    assert outcome.word == "right", outcome


@pytest.mark.parametrize("number", [n if n % 4 == 0 else pytest.param(n, marks=pytest.mark.slow) for n in range(500)])
def test_a_changed_config_is_right_or_refused(configs: Configs, number: int, tmp_path: Path):
    case = configs.run(number, tmp_path)
    assert case.outcome.fine, str(case)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(500, 2500, 100))
def test_a_hundred_more(configs: Configs, start: int, tmp_path: Path):
    found = []
    for number in range(start, start + 100):
        (tmp_path / str(number)).mkdir()
        found.append(configs.run(number, tmp_path / str(number)))
    assert not [str(case) for case in found if not case.outcome.fine]
