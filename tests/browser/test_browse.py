"""The page holds what the codes say, loads nothing, lets no token become markup, and refuses what does not fit."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from browser.pages import Page
from pursuits import with_rows
from reference.search import search_by_token

from jhsae.browser import Limits, contexts, gather, page
from jhsae.commands import browse, harvest
from jhsae.commands.browse import Browse
from jhsae.config import build, find, load
from jhsae.data import AbstractNormalizer, Identity, Store
from jhsae.errors import UserError
from jhsae.features.contexts import children
from jhsae.features.firings import Firings
from jhsae.features.latents import token_profile
from jhsae.features.origin import check_origin
from jhsae.features.token_text import token_ids, token_text
from jhsae.files.escaping import visible
from jhsae.lm import load as load_lm
from jhsae.sae import AbstractSAE, mixture_of_experts_v2
from jhsae.training.checkpoint import load_sae, save_sae

ROWS = 900
EVIL = "</script><script>alert('&')</script><!--"


SLOTS = {
    "scale": {
        "_target_": "jhsae.sae.HierarchicalSAE", "embed": 256, "experts": 24, "sub": 2, "atoms": 5,
        "route": {"_target_": "jhsae.sparsify.OffsetTopK", "k": 3, "offset": 0.0625},
        "pick": {"_target_": "jhsae.sparsify.TopK", "k": 1},
    },
    "forest": {
        "_target_": "jhsae.sae.PursuitSAE", "embed": 256, "levels": [16, 3, 2],
        "budget": {"_target_": "jhsae.sparsify.ExactL0", "k": 12, "extra": 2},
    },
    "jump": {
        "_target_": "jhsae.sae.FlatSAE", "embed": 256, "features": 150,
        "sparsifier": {"_target_": "jhsae.sparsify.JumpReLU", "initial": 2.2},
    },
}  # fmt: skip
NORMALIZE = {
    "scale": {"_target_": "jhsae.data.UnitNorm"},
    "forest": {"_target_": "jhsae.data.CenterScale"},
    "jump": {"_target_": "jhsae.data.CenterScale"},
}
EMPTY = {"forest": [40, 150, 151]}  # slots of a row of zeros


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a held-out store of the embedded model and SAEs with random weights, sparse and dense."""
    folder = tmp_path_factory.mktemp("browse")
    words = [f"out={folder / 'heldout'}", f"rows={ROWS}", "batch=8"]
    harvest.run(load(harvest.Harvest, find("harvest/embedded_heldout.yaml"), words))
    store = Store.open(folder / "heldout")
    for name, slot in SLOTS.items():
        told = {"name": name, "config_hash": f"{name}-hash", "commit": "c0ffee", "store": {"sha256": "ab"}}
        told |= {"reads": {"model": "embedded", "layer": 2}}
        sae, normalizer = (
            build(slot, AbstractSAE, key=jax.random.key(0)),
            build(NORMALIZE[name], AbstractNormalizer).fit(store),
        )
        if name in EMPTY:
            sae = with_rows(sae, sae.rows.at[jnp.array(EMPTY[name])].set(0.0))
        (folder / name).mkdir()
        save_sae(folder / name / "sae", sae, slot, NORMALIZE[name], normalizer, told)
    return folder


def config(place, name, **changes):
    """The config of a page about one of the runs."""
    given = {"run": str(place / name), "store": str(place / "heldout"), "lm": "embedded"}
    return Browse(**given | {"out": str(place / f"{name}.html"), "examples": 5, "spread": 2} | changes)


@pytest.fixture(scope="module", params=list(SLOTS))
def made(request, place):
    """A run, its page, and its dense codes on the held-out store."""
    out = browse.run(config(place, request.param))
    sae, normalizer, _ = load_sae(place / request.param)
    store = Store.open(place / "heldout")
    inside, _ = normalizer(jnp.asarray(store.read(0, store.rows)))
    dense = np.asarray(sae.encode(inside).dense())
    return sae, Page(out.read_text()), dense, store


def feature(sae, name):
    """The feature that a name of the page stands for."""
    found, *atoms = [int(number) for number in re.findall(r"\d+", name)]
    for atom in atoms:
        found = children(sae.forest, found)[atom]
    return found


def test_every_live_latent_is_on_the_page_with_its_numbers(made):
    sae, shown, dense, _ = made
    latents = {feature(sae, latent["id"]): latent for latent in shown.data["latents"]}
    assert set(latents) == set(np.flatnonzero((dense != 0).any(axis=0)))
    for i, latent in latents.items():
        own = dense[dense[:, i] != 0, i]
        assert latent["fired"] == len(own) == sum(latent["histogram"])
        assert (latent["mean"], latent["high"]) == pytest.approx((own.mean(), own.max()), rel=2e-3)


def test_contexts_show_the_strongest_firings_and_the_tokens_around(made):
    sae, shown, dense, store = made
    data, index = shown.data, store.index(0, store.rows)
    value_at = {(s, p): dense[row] for row, (s, p, _) in enumerate(index.tolist())}
    tokens, words = store.tokens(), load_lm("embedded").tokenizer
    sequences = {tuple(one): place for place, one in enumerate(data["sequences"])}
    assert len(sequences) == len(data["sequences"])
    text = {tuple(words.convert_ids_to_tokens(row.tolist())): s for s, row in enumerate(tokens)}
    number = [text[tuple(data["pieces"][t].replace(" ", "▁") for t in one)] for one in data["sequences"]]
    for latent in data["latents"]:
        i = feature(sae, latent["id"])
        assert latent["first"][0][2] == pytest.approx(latent["high"], rel=1e-2)
        seen = []
        for sequence, position, value, around, *_ in latent["first"] + latent["below"]:
            here = number[sequence]
            assert value == pytest.approx(value_at[here, position][i], rel=1e-2)
            expected = {
                p - position: value_at[here, p][i]
                for p in range(position - 16, position + 11)
                if (here, p) in value_at and value_at[here, p][i] != 0
            }
            assert dict(zip(around[::2], around[1::2], strict=True)) == pytest.approx(expected, rel=1e-2)
            assert position not in data["unmeasured"][sequence]
            assert all(s != here or not -16 <= position - p <= 10 for s, p in seen)
            seen.append((here, position))
        strengths = [context[2] for context in latent["first"] + latent["below"]]
        assert strengths == sorted(strengths, reverse=True)


def test_an_expert_says_which_of_its_atoms_took_its_firings(made):
    sae, shown, dense, _ = made
    latents, occupied = {latent["id"]: latent for latent in shown.data["latents"]}, np.asarray(sae.occupied)
    if sae.tree is None:
        assert all(name.startswith("f") and "alone" not in latent for name, latent in latents.items())
        return
    depths = {name.count("/") for name in latents}
    assert depths == set(range(len(sae.tree.levels)))
    for name, latent in latents.items():
        assert name.rpartition("/")[0] in latents or "/" not in name
        i = feature(sae, name)
        below = children(sae.tree, i)
        if not below:
            assert "alone" not in latent and all(len(context) == 4 for context in latent["first"])
            continue
        fired = dense[:, below.start : below.stop] != 0
        assert latent["alone"] == np.sum((dense[:, i] != 0) & ~fired.any(axis=1))
        assert latent["slots"] == np.sum(occupied[below.start : below.stop])
        assert latent["dead"] == latent["slots"] - np.sum(fired.any(axis=0))
        assert [f"{name}/a{a}" in latents for a in range(len(below))] == fired.any(axis=0).tolist()
        for context in latent["first"]:
            atom = latents.get(f"{name}/a{context[4]}")
            assert context[4] is None or (atom and atom["fired"] > 0)


def test_densities_leave_empty_slots_out(made):
    sae, shown, dense, _ = made
    found = {one["kind"]: (one["all"], one["dead"]) for one in shown.data["density"]}
    fired, occupied = dense.any(axis=0), np.asarray(sae.occupied)
    kinds = {1: ["latents"], 2: ["experts", "atoms"], 3: ["experts", "level-1 atoms", "level-2 atoms"]}
    expected = {}
    for kind, block in zip(kinds[len(sae.forest.levels)], sae.forest.blocks, strict=True):
        own = slice(block.start, block.end)
        expected[kind] = (np.sum(occupied[own]), np.sum(occupied[own] & ~fired[own]))
    assert found == expected


@pytest.mark.few(1)
def test_the_search_index_is_search_by_token(made):
    sae, shown, dense, store = made
    data, model = shown.data, load_lm("embedded")
    found = evals_firings(sae, store, dense)
    profile = token_profile(found, store.index(0, store.rows)[:, 2], model.model.vocab)
    names = [latent["id"] for latent in data["latents"]]
    searched = sorted(data["search"], key=lambda one: -data["search"][one][0])[:40]
    assert {"the", "of"} <= set(searched)
    for one in searched:
        occurrences, *row = data["search"][one]
        ids = token_ids(one, model.tokenizer)
        assert occurrences == profile.occurrences[ids].sum()
        shown_hits = {feature(sae, names[i]): hit for i, *hit in zip(*(row[k::4] for k in range(4)), strict=True)}
        hits = {h.latent: h for by in ("mean", "share") for h in search_by_token(profile, ids, by, 10_000)}
        for latent, hit in shown_hits.items():
            assert hit == pytest.approx([hits[latent].mean, hits[latent].share, hits[latent].fired], rel=1e-2)
        for by, most in (("mean", page.MOST_BY_MEAN), ("share", page.MOST_BY_SHARE)):
            best = search_by_token(profile, ids, by, most)
            assert {hit.latent for hit in best if hit != best[-1]} <= set(shown_hits)


def evals_firings(sae, store, dense):
    """Firings from dense codes, by the definition alone."""
    feature, row = np.nonzero(dense.T)
    starts = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=sae.features))])
    return Firings(row.astype(np.int32), dense[row, feature], starts.astype(np.int64), store.rows)


def test_logits_and_neighbours_are_those_of_the_decoder_row(made):
    sae, shown, dense, _ = made
    data, model = shown.data, load_lm("embedded")
    rows = np.asarray(sae.dictionary(), np.float64)
    unembedding = np.asarray(model.model.unembedding(), np.float64)
    words = [visible(text) for text in token_text(model.tokenizer, range(len(unembedding)))]
    live = np.flatnonzero((dense != 0).any(axis=0))
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)  # an empty slot is a row of zeros
    for latent in data["latents"][::17]:
        i = feature(sae, latent["id"])
        scores = unembedding @ rows[i]
        top, bottom = words[int(scores.argmax())], words[int(scores.argmin())]
        assert [data["pieces"][latent[end][0][0]] for end in ("top", "bottom")] == [top, bottom]
        # Unit norm scales every token by itself: values are those of the dictionary times one typical scale.
        scale = latent["norm"] / np.linalg.norm(rows[i])
        assert latent["top"][0][1] == pytest.approx(scores.max() * scale, rel=1e-2)
        others = live[live != i]
        nearest = others[np.argmax(unit[others] @ unit[i])]
        assert latent["near"][0][1] == pytest.approx(unit[nearest] @ unit[i], abs=2e-3)
        assert feature(sae, latent["near"][0][0]) in others


def test_the_page_loads_nothing(made):
    _, shown, _, _ = made
    links = [(k, v) for _, attrs in shown.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action")]
    assert links and all(value.startswith("#") or value == "data:," for _, value in links)
    policy = next(attrs["content"] for _, attrs in shown.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "connect-src" not in policy
    script = shown.scripts[1]
    assert not re.search(r"https?:|@import|url\(", script + shown.text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|fetch\(", script)


def test_the_footer_says_what_was_measured_and_where_it_comes_from(made, place):
    sae, shown, _, _ = made
    about = load_sae(place / {1: "jump", 2: "scale", 3: "forest"}[len(sae.forest.levels)])[2]
    words = re.sub(r"\s+", " ", shown.text)
    assert about["config_hash"] in words and about["commit"] in words
    assert f"{ROWS} tokens of WordNetGlosses" in words
    assert (NORMALIZE[about["name"]]["_target_"].rsplit(".", 1)[1]) in words
    assert ("atoms" in words) == (sae.tree is not None)
    assert "was trained on this very store" not in words


def test_the_script_reads_only_what_the_data_has(made):
    sae, shown, _, _ = made
    data, script = shown.data, shown.scripts[1]
    assert set(re.findall(r"\bDATA\.(\w+)", script)) <= data.keys()
    fields = {key for latent in data["latents"] for key in latent} | {"up", "atoms", "place"}
    fields |= set() if sae.tree else {"alone", "dead", "slots"}  # of experts
    assert set(re.findall(r"\blatent\.(\w+)", script)) <= fields


@pytest.mark.slow
def test_the_same_files_give_the_same_bytes_and_fewer_latents_when_asked(place):
    out = browse.run(config(place, "scale"))
    before = out.read_bytes()
    assert browse.run(config(place, "scale")).read_bytes() == before
    few = config(place, "scale", out=str(place / "few.html"), features=3, atoms=2, examples=1, spread=0, rows=400)
    data = Page(browse.run(few).read_text()).data
    names = [latent["id"] for latent in data["latents"]]
    experts = [name for name in names if "/" not in name]
    assert len(experts) == 3 and all(sum(n.startswith(e + "/") for n in names) <= 2 for e in experts)
    assert data["rows"] == 400 and all(len(one["first"]) == 1 and not one["below"] for one in data["latents"])
    assert any(len(positions) > 20 for positions in data["unmeasured"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "page.txt"}, "expected the name of an HTML file"),
        ({"run": "nowhere"}, "no trained SAE in nowhere"),
        ({"lm": "nowhere"}, "'nowhere' is no folder"),
        ({"logits": 8193}, "logits is 8193, but there are 8192 tokens"),
    ],
)
def test_bad_input_is_refused(place, changes, message):
    changes = {"out": str(place / "refused.html")} | changes
    with pytest.raises(UserError, match=message):
        browse.run(config(place, "scale", **changes))
    assert not (place / "refused.html").exists()


@pytest.mark.parametrize("key", ["rows", "features", "atoms", "examples", "logits"])
def test_numbers_below_their_least_are_refused(place, key):
    with pytest.raises(UserError, match=f"{key} is 0, expected at least 1"):
        config(place, "scale", **{key: 0})


def test_what_is_no_page_of_this_run_is_not_overwritten(place):
    (place / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match="exists and is no page of jhsae browse"):
        browse.run(config(place, "scale", out=str(place / "mine.html")))
    browse.run(config(place, "jump", out=str(place / "other.html"), features=2))
    with pytest.raises(UserError, match="shows the latents of jump, not of scale"):
        browse.run(config(place, "scale", out=str(place / "other.html")))
    assert (place / "mine.html").read_text() == "<p>mine</p>"


def test_a_store_of_another_model_or_width_is_refused(place, tmp_path):
    other = runs.store(tmp_path / "array")
    with pytest.raises(UserError, match=r"scale reads vectors of 256 numbers, but .* holds activations of 16"):
        browse.run(config(place, "scale", store=other.path, out=str(tmp_path / "a.html")))
    sae, _, told = load_sae(place / "scale")
    heldout = Store.open(place / "heldout")
    check_origin(sae, told | {"reads": {"model": None, "layer": None}}, heldout)
    with pytest.raises(UserError, match=r"the SAE reads embedded layer 3, but .* holds embedded layer 2"):
        check_origin(sae, told | {"reads": {"model": "embedded", "layer": 3}}, heldout)


def test_an_sae_that_never_fires_is_refused(place):
    store = Store.open(place / "heldout")
    sae = mixture_of_experts_v2(256, experts=4, sub=2, atoms=2, k=2, key=jax.random.key(0))
    silent = jax.tree.map(lambda a: 0 * a, sae)
    limits = Limits(None, None, 3, 1, contexts.Window(3, 3), 3, 3)
    with pytest.raises(UserError, match="no latent fired on the 50 rows"):
        gather(silent, Identity(), store, 50, load_lm("embedded"), {}, limits)


def test_concepts_name_experts(place):
    store = Store.open(place / "heldout")
    sae, normalizer, _ = load_sae(place / "scale")
    limits = replace(Limits(None, None, 1, 0, contexts.Window(3, 3), 1, 1), atoms=1)
    data = gather(sae, normalizer, store, 200, load_lm("embedded"), {3: EVIL}, limits)
    assert {one["id"]: one["name"] for one in data["latents"] if one["name"]} == {"e3": EVIL}
