"""``jhsae steer``: page and table hold the effects, nothing is markup, and what cannot be is refused."""

import re

import jax
import numpy as np
import pytest
from browser.pages import Page
from small_lm import LAYER, save_language_model

import jhsae
from jhsae import evals, lm
from jhsae.__main__ import main
from jhsae.commands.steer import Steer, run
from jhsae.data.normalize import UnitNorm
from jhsae.errors import UserError
from jhsae.sae import HierarchicalSAE
from jhsae.sae.io import save_sae
from jhsae.sparsify import TopK

PROMPTS = ["w5 w6 w7 w8", "w9 w10"]
EVIL = "</script><script>alert(1)</script><img src=x>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A language model and a saved H-SAE of its layer 1, trained on normalised rows as far as the file says."""
    folder = tmp_path_factory.mktemp("steer")
    save_language_model(folder / "lm")
    model = lm.load(folder / "lm")
    sae = HierarchicalSAE(16, 6, 3, 4, TopK(3), TopK(1), key=jax.random.key(0))
    slot = {
        "_target_": "jhsae.sae.HierarchicalSAE", "embed": 16, "experts": 6, "sub": 3, "atoms": 4,
        "route": {"_target_": "jhsae.sparsify.TopK", "k": 3}, "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
    }  # fmt: skip
    about = {"name": EVIL, "reads": {"model": model.name, "layer": LAYER, "model_sha256": model.sha256}}
    save_sae(folder / "run", sae, slot, {"_target_": "jhsae.data.UnitNorm"}, UnitNorm(), about)
    return folder


def steer(place, out="page.html", **changes):
    given = {"run": str(place / "run"), "lm": str(place / "lm"), "prompts": PROMPTS, "out": str(place / out)}
    return run(Steer(**given | {"controls": 40, "continuation": 2, "attributed": 3} | changes))


def test_the_page_holds_the_numbers_and_loads_nothing(place, capsys):
    page = steer(place, latents=["e1", "e2/a3"], tokens=["w7", 9]).read_text()
    said = capsys.readouterr().out
    inside = jhsae.with_sae(lm.load(place / "lm"), jhsae.load_sae(place / "run"))
    assert inside.layer == LAYER and isinstance(inside.normalizer, UnitNorm)
    for name in ("e1", "e2/a3"):
        found = evals.steer(inside, PROMPTS, name, evals.AddShare(0.5), [7, 9], controls=40)
        estimate = found.comparison().estimate
        value = float(re.search(rf'>{name}</a>.*?title="([^"]+)"', page, re.DOTALL)[1])
        assert value == pytest.approx(estimate, rel=1e-5)
        assert re.search(rf"^{name} +{re.escape(f'{estimate:+.3g}')} ", said, re.MULTILINE)
    one = evals.attribute(inside, PROMPTS[0])
    assert f"add up to {one.sum:+.3g}" in page and f"attributed {one.sum:+.3g} of {one.effect:+.3g}" in said
    read = Page(page)
    assert not read.scripts and not {"img", "iframe", "object"} & {tag for tag, _ in read.tags}
    links = [v for tag, attrs in read.tags for k, v in attrs.items() if k in ("href", "src")]
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert EVIL in read.text and "default-src 'none'" in page
    assert re.search(r"2 latents on 2 prompts, .* MB; next: python -m webbrowser", said)


def test_every_edit_from_the_command_line(place, capsys):
    words = [f"run={place / 'run'}", f"lm={place / 'lm'}", 'prompts=["w5 w6", "w8"]', f"out={place / 'words.html'}"]
    words += ["controls=40", "continuation=0", "attributed=0", "latents=[e0/a1,7]"]
    target = "edit._target_=jhsae.evals."
    for edit, said in (
        (["edit={_target_: jhsae.evals.Ablate}"], "edit: Ablate"),
        (["edit={_target_: jhsae.evals.Set, value: 2.0}"], "edit: Set, value 2.0"),
        (["edit={_target_: jhsae.evals.Add, value: -2}", "norm=kept", "positions=last"], "norm of the stream kept"),
        (["edit.share=1.0", "edit.within._target_=jhsae.evals.TimesParent"], "within TimesParent"),
        (["error=dropped"], "error term dropped"),
    ):
        assert main(["steer", *words, *edit]) == 0, capsys.readouterr().err
        page = (place / "words.html").read_text()
        assert said in page and "e0/a1" in page and "continuation</th>" not in page and target not in page


def test_latents_that_write_most_are_the_default(place):
    page = steer(place, "most.html", most=2, attributed=0).read_text()
    inside = jhsae.with_sae(lm.load(place / "lm"), jhsae.load_sae(place / "run"))
    read = inside.run(PROMPTS)
    codes = np.abs(np.asarray(read.read.codes.dense())) * np.asarray(read.prompts.live).reshape(-1, 1)
    order = np.argsort(-codes.sum(axis=0) * np.linalg.norm(np.asarray(inside.sae.dictionary()), axis=1))
    names = re.findall(r'href="#latent-\d+">([^<]+)<', page)
    assert names == [name_of(row) for row in order[:2]]


def name_of(row):
    return f"e{row}" if row < 6 else f"e{(row - 6) // 4}/a{(row - 6) % 4}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"out": "page.txt"}, "expected the name of an HTML file"),
        ({"latents": ["e9"]}, "this SAE has e0 to e5"),
        ({"latents": ["f1"]}, "this SAE is hierarchical"),
        ({"layer": 2}, "layer is 2, but the SAE reads layer 1; write layer=1"),
        ({"layer": 7}, "layer is 7, but"),
        ({"prompts": ["w5", " "]}, "prompt 1 is empty"),
        ({"tokens": ["w5 w6"]}, "which is not one token of this model"),
        ({"token": "w5", "than": 5}, "token and than are both token 5"),
        ({"lm": "embedded"}, "reads vectors of 16 numbers, but the residual stream of embedded has 256"),
        ({"run": "nowhere"}, "no trained SAE in nowhere"),
        (
            {"latents": ["e1"], "edit": {"_target_": "jhsae.evals.Add", "value": 1.0,
                                         "within": {"_target_": "jhsae.evals.TimesParent"}}},
            "latent e1 has no latent above it",
        ),
        ({"edit": {"_target_": "jhsae.evals.Everywhere"}}, "Everywhere"),
        ({"edit": {"_target_": "jhsae.evals.Add"}}, "value"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence_and_writes_nothing(place, changes, said):
    before = sorted(place.iterdir())
    with pytest.raises(UserError) as refused:
        steer(place, **{"out": "none.html"} | changes)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1
    assert sorted(place.iterdir()) == before


def test_another_file_is_not_overwritten_and_values_are_checked(place):
    (place / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match=r"mine\.html exists and is no page of jhsae steer"):
        steer(place, "mine.html")
    for changes, said in (
        ({"controls": 5}, "controls is 5, expected at least 40"),
        ({"prompts": []}, "prompts is"),
        ({"norm": "half"}, "norm is 'half'"),
        ({"latents": [1.5]}, "latents.0 is 1.5"),
    ):
        with pytest.raises(UserError, match=said):
            steer(place, **changes)


def test_keys_have_help(capsys):
    with pytest.raises(SystemExit):
        main(["steer", "--help"])
    said = capsys.readouterr().out
    assert "usage: jhsae steer [CONFIG.yaml] [key=value ...]" in said and "random directions per latent" in said
