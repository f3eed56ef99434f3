"""A config that is huge, deep, endless or of other types is one sentence, soon, and so are its overrides."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import config_parts
import equinox as eqx
import optax
import pytest
from config_parts import GOOD, HERE, AbstractPick, Run, Top

from jhsae import config
from jhsae.__main__ import main
from jhsae.config import Slot, Supplied, plain_yaml
from jhsae.errors import UserError

LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{i + 1}: &m{i + 1} {{<<: [*m{i}, *m{i}]}}\n" for i in range(40))
CHAIN = "".join(f"c{i}: ${{c{i + 1}}}\n" for i in range(5000))
DOUBLED = "d0: 0123456789\n" + "".join(f"d{i + 1}: ${{d{i}}}${{d{i}}}\n" for i in range(50))
BRANCHES = "b0: [x]\n" + "".join(f"b{i + 1}: ['${{b{i}}}', '${{b{i}}}']\n" for i in range(50))
FILES: dict[str, tuple[str | bytes, str]] = {
    "aliases": (LAUGHS, "more than 20,000 nodes when its aliases are expanded"),
    "merges": (MERGES, "more than 20,000 nodes when its aliases are expanded"),
    "alias in itself": ("a: &a [*a]", r"uses \*a before &a"),
    "no such alias": ("a: *a", r"uses \*a before &a"),
    "deep list": ("a: " + "[" * 100_000, "nested more than 64 deep"),
    "deep mapping": ("".join(" " * i + "a:\n" for i in range(500)), "nested more than 64 deep"),
    "large": ("a: " + "x" * 2_000_000, "2,000,003 bytes"),
    "long number": ("a: " + "9" * 5000, "a number of 5,000 digits, expected at most 1,000"),
    "no number": ("a: 0x_", "not valid YAML"),
    "tagged number": ("a: !!int ''", "not valid YAML"),
    "tagged bool": ("a: !!bool x", "not valid YAML"),
    "tagged date": ("a: !!timestamp 2020-99-99", "not valid YAML"),
    "bytes": ("a: !!binary eA==", "not valid YAML"),
    "set": ("a: !!set {x}", "not valid YAML"),
    "object": ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "path": ("a: !!python/object/apply:pathlib.Path [x]", "not valid YAML"),
    "latin-1": (b"a: \xe9", "not valid YAML"),
    "utf-16": ("a: 1".encode("utf-16"), "not valid YAML"),
    "half a letter": ('a: "\\ud800"', "not valid YAML"),
    "NUL": ("a: \0", "not valid YAML"),
    "list as key": ("? [1]\n: 2", "not valid YAML"),
    "key twice": ("a: 1\na: 2", "the key 'a' occurs twice"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "number as key": ("1: 2", "1 is not a key of Run"),
    "null as key": ("~: 2", "None is not a key of Run"),
    "number": ("3", "holds a int"),
    "its own base": ("base: x.yaml", "break the circle"),
    "base is a device": ("base: /dev/zero", "there is no file /dev/zero"),
    "base is long": ("base: " + "x" * 5000, "there is no file"),
    "base is a list": ("base: [x]", "there is no file"),
    "chain": (CHAIN, "more than 16 references follow each other"),
    "doubled text": (DOUBLED, "longer than 10,000 characters"),
    "doubled list": (BRANCHES, "nested more than|more than 20,000 values"),
    "itself": ("out: ${out}", "out cannot be resolved: it refers to itself"),
    "its section": ("data: {store: '${data}'}", "data.store cannot be resolved: it refers to itself"),
    "unclosed": ("out: '${a'", "out cannot be resolved: .* no closing brace"),
    "nested": ("out: '" + "${" * 500 + "}" * 500 + "'", "too deeply nested"),
    "no name": ("out: '${}'", "names no key"),
    "no such key": ("out: '${data.batsch}'", "there is no key 'data.batsch'; did you mean 'batch'"),
    "no function": ("out: '${os.system:ls}'", "there is no function 'os.system'"),
    "no root": ("out: '${rsqrt:0}'", "rsqrt:0 has no value"),
    "no variable": ("out: '${oc.env:NO_SUCH_VARIABLE_}'", "no variable NO_SUCH_VARIABLE_"),
    "section in a text": ("out: 'a${data}'", "a dict cannot be part of a text"),
}
OVERRIDES = {
    "pick=" + "[" * 100_000: "nested more than 64 deep",
    "pick=" + "[" * 40 + "1" + "]" * 40: "pick is ",
    ".".join("a" * 5000) + "=1": "5000 keys inside each other",
    "x" * 3_000_000 + "=1": "is not a key of Run",
    "out=" + "x" * 3_000_000: "3,000,000 characters",
    "log_every=" + "9" * 5000: "a number of 5,000 digits, expected at most 1,000",
    "weight=" + "9" * 400: r"weight is 9+\.\.\. \(int\), expected float",
    "out=&a [*a]": r"uses \*a before &a",
    "__class__=1": "__class__ is not a key of Run",
    "__class__.__init__.__globals__=1": "__class__ is not a key of Run",
    "pick.__class__=1": "pick.__class__ is not an argument",
    "data.__dict__.store=1": "data.__dict__ is not a key of Data",
    "a.b[0]=1": "a is not a key of Run",
    "stages[-1].steps=1": "out of range",
    "stages.²=1": "out of range",
    "stages." + "9" * 5000 + "=1": "out of range",
    "stages.0.steps.x=1": r"stages.0.steps is \{'x': 1\} \(dict\), expected int",
    "out=\0": "not valid YAML",
    "out=!!python/name:os.system": "not valid YAML",
    "base=good.yaml": "base is not a key of Run",
    "...=1": "sets nothing",
    "[[[=1": "sets nothing",
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path / "good.yaml"


def sentence(call: Any) -> str:
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        call()
    assert time.perf_counter() - start < 10
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700
    return text


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_one_sentence_with_its_name(name: str, tmp_path: Path):
    text, expected = FILES[name]
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = sentence(lambda: config.load(Run, path))
    assert found.startswith(str(path)), found
    with pytest.raises(UserError, match=expected):
        config.load(Run, path)
    assert sentence(lambda: config.read(Run, path)).startswith(str(path))


@pytest.mark.parametrize(("override", "expected"), OVERRIDES.items(), ids=lambda text: text[:20])
def test_a_hostile_override_is_one_sentence(override: str, expected: str, good: Path):
    assert sentence(lambda: config.load(Run, good, [override])).startswith(str(good))
    with pytest.raises(UserError, match=expected):
        config.load(Run, good, [override])


def test_a_chain_of_bases_ends(tmp_path: Path):
    for i in range(40):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml")
    assert "more than 16 files name each other" in sentence(lambda: config.load(Run, tmp_path / "0.yaml"))


def test_what_is_no_regular_file_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path / "fifo.yaml", tmp_path, Path("/dev/zero"), Path("x" * 5000)):
        assert "no config file" in sentence(lambda path=path: config.load(Run, path))
        assert main(["train", str(path)]) == 2 and main(["export", f"run={path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 8


def test_references_reach_what_they_always_did(good: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_FOLDER", "/data/${net.embed}")
    run = config.load(
        Run,
        good,
        [
            "out=${oc.env:SOME_FOLDER}/${data.batch}",
            "weight=${rsqrt:${stages.0.steps}}",
            "stages=[{steps: 16, rate: '${.steps}'}]",
            "terms={a: '${pick}', b: '${terms.a}'}",
            "notes={x: '${terms.b.k}', y: '${oc.env:NO_SUCH_, 7}'}",
        ],
    )
    assert run.out == "/data/${net.embed}/8"  # a variable is not read as a reference
    assert run.weight == 0.25 and run.stages[0].rate == 16.0
    assert run.terms == {"a": run.pick, "b": run.pick} and run.notes == {"x": 3, "y": "7"}


def test_an_anchor_is_not_shared_by_an_override(good: Path):
    good.write_text(GOOD + f"terms: {{a: &a {{_target_: {HERE}.Top, k: 1}}, b: *a}}\n")
    run = config.load(Run, good, ["terms.a.k=5"])
    assert (run.terms["a"]["k"], run.terms["b"]["k"]) == (5, 1)


LOOKALIKES = ("1e-3", "1e3", "2020-01-01", "true", "null", "~", "0o7", "1_000", "a: b", "é\u2028", "- x")


@pytest.mark.parametrize("value", LOOKALIKES)
def test_a_text_that_looks_like_something_else_stays_a_text(value: str):
    tree = {"a": value, "b": [value, {"c": value}], "d": 1e-5, "e": None, "f": True, "g": float("inf")}
    assert plain_yaml.parse(plain_yaml.text(tree), "f") == tree


def test_json_is_yaml():
    assert plain_yaml.parse('{"a": "\\ud83d\\ude00", "b": 1e-5, "c": [true, null]}', "f") == {
        "a": "😀",
        "b": 1e-5,
        "c": [True, None],
    }


class Structural(Protocol):
    """What anything with a `k` is."""

    k: int


@pytest.mark.parametrize("kind", [object, Structural, eqx.Module, Iterable, dict, int])
def test_a_kind_that_anything_is_of_is_a_programming_error(kind: Any):
    with pytest.raises(TypeError, match="expected the class that its parts are derived from"):
        Supplied(kind=kind)


@pytest.mark.parametrize("hint", [Slot, list[Slot], dict[str, Slot | float], Annotated[Slot | None, Supplied("key")]])
def test_a_slot_of_no_kind_is_a_programming_error(hint: Any, good: Path):
    namespace = {"__annotations__": {"pick": hint}, "__module__": __name__}
    cls = dataclass(frozen=True)(type("Open", (), namespace))
    with pytest.raises(TypeError, match=r"Open\.pick is a slot of no kind; write .*kind="):
        config.load(cls, good)
    with pytest.raises(TypeError, match="of no kind"):
        [*config.describe_keys(cls)]


def test_a_slot_of_a_script_needs_a_kind():
    slot = {"_target_": f"{HERE}.Top", "k": 1}
    with pytest.raises(TypeError, match="was not checked"):
        config.build(slot)
    assert config.build(slot, AbstractPick) == Top(1)
    with pytest.raises(UserError, match=r"a class derived from GradientTransformation or jhsae\.optimizer\.adam"):
        config.build(slot, Supplied(kind=optax.GradientTransformation, functions=("jhsae.optimizer.adam",)))


class HeldIterables(AbstractPick):
    """Arguments whose hints are classes, but none that parts are derived from."""

    def __init__(self, many: Iterable[Any] = (), one: object = None, free: dict[str, Any] | None = None, **more: Any):
        pass


WRAPS = {"bare": lambda s: s, "in a list": lambda s: [s], "deep": lambda s: {"a": [{"b": s}]}}


@pytest.mark.parametrize("word", ["many", "one", "free", "other"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_name_where_no_part_belongs_is_refused(word: str, wrap: str):
    inside = WRAPS[wrap]({"_target_": f"{HERE}.Top", "k": 1})
    no_part = rf"\.{word}[\w.]*\._target_ is {HERE}\.Top, but no part can stand|expected (mapping or null|Iterable)$"
    with pytest.raises(UserError, match=no_part):
        config.build({"_target_": f"{__name__}.HeldIterables", word: inside}, AbstractPick)


def test_a_function_counts_in_the_slots_that_list_it_alone(good: Path):
    assert config.build(config.load(Run, good, [f"pick={{_target_: {HERE}.make_top}}"]).pick) == Top(2)
    config_parts.other_name = config_parts.make_top
    for name in ("other_name", "explode"):
        with pytest.raises(UserError, match=rf"net\.pick\._target_ is {HERE}\.{name}, which is a function, expected"):
            config.load(Run, good, [f"net.pick={{_target_: {HERE}.{name}}}"])


def test_an_optimizer_of_another_package_is_a_class(good: Path):
    slot = {"_target_": f"{__name__}.Lion", "b1": 0.5}
    supplied = Supplied(kind=optax.GradientTransformation)
    assert isinstance(config.build(slot, supplied), optax.GradientTransformation)
    with pytest.raises(UserError, match="b1 is 'x'"):
        config.build(slot | {"b1": "x"}, supplied)


class Fussy(AbstractPick):
    """Its constructor fails in the way it is told."""

    def __init__(self, how: str = "") -> None:
        raise {"type": TypeError, "value": ValueError, "range": OverflowError, "bug": KeyError}[how]("no\nway")


def test_of_a_slot_that_was_read_a_constructor_that_fails_is_one_sentence():
    supplied = Supplied(kind=AbstractPick)
    for how in ("type", "value", "range"):
        slot = {"_target_": f"{__name__}.Fussy", "how": how}
        read = config.checked(slot, "x/sae.json", supplied, key="sae", trust=__name__)
        with pytest.raises(UserError, match=r"^x/sae\.json: sae: "):
            config.build(read)
    with pytest.raises(TypeError):
        config.build({"_target_": f"{__name__}.Fussy", "how": "type"}, AbstractPick)


def test_a_slot_that_was_read_is_bounded():
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for slot in ({"_target_": f"{HERE}.Top", "k": deep}, {"_target_": f"{HERE}.Top", "k": [0] * 300_000}):
        found = sentence(lambda slot=slot: config.checked(slot, "x/sae.json", Supplied(kind=AbstractPick), trust=HERE))
        assert found.startswith("x/sae.json is ")


class Lion(optax.GradientTransformation):
    """Its constructor is `__new__`, as in every named tuple."""

    def __new__(cls, b1: float = 0.9) -> "Lion":
        return super().__new__(cls, *optax.scale_by_lion(b1))
