"""300 changed files over all readers, 75 of them by default: each is read, or refused in one sentence with code 2."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import KINDS, quick
from cases import Cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Iterator[Cases]:
    with quick():
        yield Cases(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_is_read(cases: Cases, kind: str, tmp_path: Path):
    outcome = cases.untouched(kind, tmp_path)
    assert outcome.word == "right", outcome


@pytest.mark.parametrize("number", [n if n % 4 == 0 else pytest.param(n, marks=pytest.mark.slow) for n in range(300)])
def test_a_changed_file_is_read_or_refused(cases: Cases, number: int, tmp_path: Path):
    case = cases.run(number, tmp_path)
    assert case.outcome.fine, str(case)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(300, 2300, 100))
def test_a_hundred_more(cases: Cases, start: int, tmp_path: Path):
    found = []
    for number in range(start, start + 100):
        (tmp_path / str(number)).mkdir()
        found.append(cases.run(number, tmp_path / str(number)))
    assert not [str(case) for case in found if not case.outcome.fine]
