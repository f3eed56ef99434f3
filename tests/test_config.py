"""Configs: what is right loads as written, what is wrong is one sentence with file, key and remedy."""

import functools
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from config_parts import GOOD, HERE, AbstractPick, Data, Held, Net, Run, Stage, Top

from jhsae import config
from jhsae.config import Supplied
from jhsae.config import record as record_module
from jhsae.errors import UserError


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path, "good.yaml", GOOD)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(Run, path, overrides)
    return str(caught.value)


def test_values_get_the_types_of_their_hints(good: Path):
    run = config.load(Run, good, ["stages=[{steps: 5, rate: 1}]", "weight=2", "shape=[3, 4]", "notes={a: {b: [1]}}"])
    assert run.data == Data(Path("somewhere"), 8)
    assert run.stages == (Stage(5, 1.0),) and isinstance(run.stages[0].rate, float)
    assert run.weight == 2.0 and isinstance(run.weight, float)
    assert run.shape == (3, 4) and run.notes == {"a": {"b": [1]}}
    assert run.net["pick"]["sizes"] == (1, 2)
    assert run.pick == {"_target_": f"{HERE}.Top", "k": 3}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stpes=3"], ["stpes is not a key of Run", "Run; did you mean 'stages'"]),
        (["data.bacth=3"], ["data.bacth is not a key of Data", "did you mean 'batch'"]),
        (["data.batch=many"], ["data.batch is 'many' (str), expected int"]),
        (["data.batch=true"], ["data.batch is True (bool), expected int"]),
        (["data.batch=1e3"], ["data.batch is 1000.0 (float), expected int"]),
        (["data=3"], ["data is 3 (int), expected Data"]),
        (["mode=medium"], ["mode is 'medium'", "'fast' or 'slow'"]),
        (["shape=[1]"], ["shape is [1]", "list of 2: int, int"]),
        (["shape=[4, 3]"], ["shape falls; write it rising"]),
        (["stages.0.rate=x"], ["stages.0.rate is 'x'", "float"]),
        (["stages.7.rate=1"], ["override stages.7.rate=1 cannot be applied", "out of range"]),
        (["stages=[{rate: 1}]"], ["stages.0.steps is missing", "optimizer steps", "stages.0.steps=..."]),
        (["data.store=???"], ["data.store is missing, expected Path (folder of the store)"]),
        (["data.batch"], ["override 'data.batch' sets nothing, expected key=value"]),
        (["=3"], ["override '=3' sets nothing"]),
        (["data.batch=[1"], ["override data.batch=[1 cannot be applied"]),
        (["out=${nowhere}"], ["out cannot be resolved", "'nowhere'"]),
        (["weight=x"], ["weight is 'x'", "float or part (AbstractPick) or null", "_target_"]),
        (["pick=null"], ["pick is None", "expected part"]),
        (["pick={k: 3, q: 1}"], ["pick.q is not an argument", "Top"]),
        (["terms.l1.weight=3"], ["terms.l1 is {'weight': 3}", "_target_"]),
        (["pick.kk=3"], ["pick.kk is not an argument", "did you mean 'k'"]),
        (["pick.k=3.5"], ["pick.k is 3.5 (float), expected int"]),
        (["pick.sizes=[1, x]"], ["pick.sizes.1 is 'x'"]),
        ([f"pick={{_target_: {HERE}.Top}}"], ["pick.k is missing", "Top needs it: int"]),
        ([f"pick._target_={HERE}.Tpo"], ["pick._target_ is", "has no Tpo; did you mean 'Top'"]),
        (["pick._target_=nopackage.Top"], ["there is no package nopackage"]),
        (["pick._target_=jhsae.eror.UserError"], ["jhsae has no eror; did you mean 'errors'"]),
        (["pick._target_=jhsae.errors"], ["is jhsae.errors, which is a module"]),
        ([f"pick._target_={HERE}.AbstractLoud"], ["AbstractLoud, which is abstract"]),
        (["pick._target_=3"], ["pick._target_ is 3, expected a dotted path"]),
        (["net.key=3"], ["net.key is an argument", "the program supplies"]),
        (["net.pick.k=x"], ["net.pick.k is 'x'"]),
        (["net.pick=3"], ["net.pick is 3", "AbstractPick", "_target_"]),
        ([f"net.pick={{_target_: {HERE}.Net, embed: 1}}"], ["net.pick._target_ is", "expected AbstractPick"]),
        (
            ["net.pick={_target_: jhsae.schedule.Constant, value: 1}"],
            ["net.pick._target_", "expected AbstractPick"],
        ),
        ([f"net.more=[{{_target_: {HERE}.Top, k: x}}]"], ["net.more.0.k is 'x'"]),
        (
            [f"net={{_target_: {HERE}.Top, k: 1}}"],
            ["net._target_", "expected Net or a class derived from Net"],
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_file_its_key_and_what_would_be_right(good: Path, overrides, expected):
    message = refusal(good, *overrides)
    assert message.startswith(str(good))
    for part in expected:
        assert part in message


def test_the_message_names_whoever_wrote_the_value(tmp_path: Path):
    written(tmp_path, "low.yaml", GOOD + "out: 3\n")
    high = written(tmp_path, "high.yaml", "base: low.yaml\nlog_every: x\n")
    assert refusal(high).startswith(f"{tmp_path / 'low.yaml'}: out is 3")
    assert refusal(high, "out=y").startswith(f"{high}: log_every is 'x'")
    assert refusal(high, "out=y", "log_every=z").startswith(f"{high}, override log_every=z: log_every is 'z'")


def test_a_missing_required_section_names_its_first_missing_key(tmp_path: Path):
    assert "net is missing, expected part (Net) (the network)" in refusal(
        written(tmp_path, "a.yaml", "data: {store: x}")
    )
    assert "data.store is missing" in refusal(written(tmp_path, "b.yaml", ""))


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "- 1", "just words", "\tb: 1"])
def test_what_is_no_yaml_mapping_is_refused_with_the_file(tmp_path: Path, text: str):
    assert refusal(written(tmp_path, "bad.yaml", text)).startswith(str(tmp_path / "bad.yaml"))


def test_a_missing_file_gets_the_nearest_name(good: Path):
    assert "did you mean 'good.yaml'" in refusal(good.with_name("goood.yaml"))


def test_bases_chain_and_state_only_the_difference(tmp_path: Path, good: Path):
    written(
        tmp_path,
        "mid.yaml",
        f"base: good.yaml\nterms: {{a: {{_target_: {HERE}.Top, k: 1}}, b: {{_target_: {HERE}.Top, k: 2}}}}",
    )
    top = written(tmp_path, "top.yaml", "base: mid.yaml\nterms: {a: null, b: {k: 5}}\ndata: {batch: 2}")
    run = config.load(Run, top)
    assert run.data == Data(Path("somewhere"), 2)
    assert run.terms == {"b": {"_target_": f"{HERE}.Top", "k": 5}}


def test_a_slot_that_names_a_class_replaces_the_slot_below(tmp_path: Path, good: Path):
    top = written(tmp_path, "top.yaml", f"base: good.yaml\npick: {{_target_: {HERE}.Soft}}")
    assert config.load(Run, top).pick == {"_target_": f"{HERE}.Soft"}
    assert config.load(Run, top, [f"pick={{_target_: {HERE}.Top, k: 1}}"]).pick == {
        "_target_": f"{HERE}.Top",
        "k": 1,
    }


def test_a_base_that_is_missing_or_its_own_is_refused(tmp_path: Path):
    written(tmp_path, "a.yaml", "base: b.yaml")
    assert "circle" in refusal(written(tmp_path, "b.yaml", "base: a.yaml"))
    assert "did you mean 'a.yaml'" in refusal(written(tmp_path, "c.yaml", "base: aa.yaml"))


def test_interpolation_sees_other_keys_defaults_and_the_resolver(good: Path):
    run = config.load(
        Run, good, ["weight=${rsqrt:${net.embed}}", "log_every=${data.batch}", "stages.0.steps=${net.embed}"]
    )
    assert run.weight == 0.5 and run.log_every == 8 and run.stages[0].steps == 4


def test_a_class_with_a_key_called_base_is_a_programming_error(good: Path):
    @dataclass(frozen=True)
    class Wrong:
        base: str

    with pytest.raises(TypeError, match="'base'"):
        config.load(Wrong, good)


def test_a_written_config_loads_as_an_equal_one(good: Path, tmp_path: Path):
    run = config.load(Run, good, [f"terms.a={{_target_: {HERE}.Soft, temperature: 2}}", "stages.0.rate=1e-5"])
    config.write(run, tmp_path / "config.yaml")
    again = config.load(Run, tmp_path / "config.yaml")
    assert again == run
    assert config.config_hash(again) == config.config_hash(run)
    assert config.diff(run, again) == []


def test_the_hash_covers_what_decides_the_result_and_no_more(good: Path):
    run = config.load(Run, good)
    assert len(config.config_hash(run)) == 12 and int(config.config_hash(run), 16) >= 0
    assert config.config_hash(replace(run, out="elsewhere", log_every=1)) == config.config_hash(run)
    assert config.config_hash(replace(run, mode="slow")) != config.config_hash(run)
    assert config.config_hash(config.load(Run, good, ["pick.k=4"])) != config.config_hash(run)


def test_diff_names_each_changed_key_with_both_values(good: Path):
    there = config.load(Run, good, ["stages.0.steps=100", "out=a"])
    here = config.load(Run, good, ["stages.0.steps=200", "net.pick.sizes=[1]", "notes={a: 1}"])
    assert config.diff(there, here) == [
        "net.pick.sizes.1 is 2 there, absent here",
        "stages.0.steps is 100 there, 200 here",
        "notes is {} there, absent here",
        "notes.a is absent there, 1 here",
    ]


def test_build_makes_the_part_with_tuples_as_tuples(good: Path):
    run = config.load(Run, good, [f"net.more=[{{_target_: {HERE}.Top, k: 1}}, {{_target_: {HERE}.make_top}}]"])
    net = config.build(run.net, key=jax.random.key(0))
    assert isinstance(net, Net) and net.weight.shape == (4,)
    assert net.pick == Top(2, (1, 2)) and net.more == (Top(1), Top(2))


def test_build_passes_modules_and_arrays_through_untouched():
    pick, weight = Top(1), jnp.ones(2)
    made = config.build({"_target_": f"{HERE}.Held"}, Held, pick=pick, weight=weight)
    assert made.pick is pick and made.weight is weight


def test_a_constructor_that_refuses_is_a_user_error_with_the_dotted_key(good: Path):
    run = config.load(Run, good, ["pick.k=0"])
    with pytest.raises(UserError, match=r"yaml, override pick.k=0: pick: k is below 1; write 1 or more"):
        config.build(run.pick)
    for override, key in [
        ("net.pick.k=0", "net.pick"),
        (f"net.more=[{{_target_: {HERE}.Top, k: 0}}]", "net.more.0"),
    ]:
        run = config.load(Run, good, [override])
        with pytest.raises(UserError, match=f": {key}: k is below 1"):
            config.build(run.net, key=jax.random.key(0))
    with pytest.raises(UserError, match=f"^{HERE}.Top: k is below 1"):
        config.build({"_target_": f"{HERE}.Top", "k": 0}, AbstractPick)


def test_a_slot_from_another_file_is_checked_like_those_of_a_config():
    def read(slot, **more):
        return config.checked(slot, "run/sae.json", Supplied("key", kind=AbstractPick), trust=HERE, **more)

    assert config.build(read({"_target_": f"{HERE}.Top", "k": 1, "sizes": [2, 3]})) == Top(1, (2, 3))
    with pytest.raises(UserError, match=r"^run/sae.json: kk is not an argument of .*did you mean 'k'"):
        read({"_target_": f"{HERE}.Top", "kk": 1})
    with pytest.raises(UserError, match=r"^run/sae.json: pick is \{'k': 1\} \(dict\), expected part \(AbstractPick\)"):
        read({"k": 1}, key="pick")


def test_a_bug_in_a_constructor_is_not_hidden(good: Path):
    for override in (f"pick={{_target_: {HERE}.explode}}", f"net.more=[{{_target_: {HERE}.Broken}}]"):
        run = config.load(Run, good, [override])
        with pytest.raises(KeyError, match="a bug"):
            config.build(run.pick), config.build(run.net, key=jax.random.key(0))


def test_find_takes_a_path_then_a_shipped_config(good: Path, tmp_path: Path, monkeypatch):
    assert config.find(str(good)) == good
    monkeypatch.setattr("jhsae.config.reading.__file__", str(tmp_path / "jhsae" / "config" / "reading.py"))
    (tmp_path / "configs" / "reference").mkdir(parents=True)
    shipped = written(tmp_path / "configs" / "reference", "topk.yaml", "")
    for name in ("reference/topk.yaml", "reference/topk", "configs/reference/topk.yaml"):
        assert config.find(name) == shipped
    with pytest.raises(UserError, match=r"did you mean 'reference/topk.yaml'"):
        config.find("reference/top.yaml")


def test_describe_lists_every_key_with_type_default_and_help():
    rows = {name: (kind, default, text) for name, kind, default, text in config.describe_keys(Run)}
    assert rows["data.store"] == ("Path", "required", "folder of the store")
    assert rows["stages.N.steps"] == ("int", "required", "optimizer steps")
    assert rows["net"] == ("part (Net)", "required", "the network")
    assert rows["weight"] == ("float or part (AbstractPick) or null", "null", "")
    assert rows["terms"] == ("mapping of part (AbstractPick)", "{}", "")
    assert rows["data"] == ("section", "", "activations")


def test_provenance_names_versions_and_devices():
    found = config.provenance()
    assert found["versions"]["jax"] == jax.__version__ and found["platform"] == "cpu"
    assert found["device_count"] == jax.device_count()


def test_the_commit_is_that_of_a_repository_that_tracks_the_package(tmp_path: Path, monkeypatch):
    git = functools.partial(subprocess.run, check=True, cwd=tmp_path, capture_output=True, text=True)
    git(["git", "init", "-q"])
    written(tmp_path, "__init__.py", "")
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"])
    assert record_module._commit(tmp_path) is None  # inside a repository that does not hold the package
    git(["git", "add", "__init__.py"])
    git(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "y"])
    head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
    assert record_module._commit(tmp_path) == head
    written(tmp_path, "__init__.py", "x = 1")
    assert record_module._commit(tmp_path) == head + "-dirty"
    monkeypatch.setattr(record_module, "shutil", SimpleNamespace(which=lambda _: None))
    assert record_module._commit(tmp_path) is None
