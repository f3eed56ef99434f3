"""SAELens's numbers are reproduced: of the golden file, and of files made here with other sizes and settings."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference import saelens

from jhsae.errors import UserError
from jhsae.parity import compare as parity
from jhsae.parity.golden import read

GOLDEN = Path(__file__).parents[1] / "golden" / "saelens.npz"
AUX, UNIT = "use_matryoshka_aux_loss", "rescale_acts_by_decoder_norm"
MODE, STE, INSIDE = "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input", "apply_b_dec_to_input"
FILES = {
    "some dead": (
        "some",
        [
            ("standard", {"lp_norm": 0.5}),
            ("gated", {INSIDE: True}),
            ("topk", {UNIT: False, INSIDE: False}),
            ("matryoshka_batchtopk", {AUX: True, UNIT: True}),
            ("jumprelu", {MODE: "step", STE: False, "pre_act_loss_coefficient": 0.3}),
        ],
    ),
    "none dead": (
        "none",
        [
            ("standard", {"lp_norm": 1.0, INSIDE: False}),
            ("jumprelu", {MODE: "tanh", STE: True, "pre_act_loss_coefficient": 0.3, INSIDE: False}),
        ],
    ),
    "all dead": (
        "all",
        [
            ("standard", {"lp_norm": 2.0}),
            ("batchtopk", {UNIT: False, INSIDE: False}),
            ("jumprelu", {MODE: "quadratic", STE: True, "pre_act_loss_coefficient": None}),
        ],
    ),
    "few dead": (
        "few",
        [
            ("gated", {INSIDE: False}),
            ("batchtopk", {UNIT: True, INSIDE: True}),
            ("matryoshka_batchtopk", {AUX: True, UNIT: False, INSIDE: False}),
        ],
    ),
}


@pytest.fixture(scope="session")
def lens():
    return saelens.load()


@pytest.fixture(scope="module")
def golden():
    return read(GOLDEN)


def failed(arrays):
    return [row.name for row in parity.rows(arrays, "file") if not row.passed]


def only(arrays, name):
    """The file with one architecture left."""
    return {k: a for k, a in arrays.items() if "/" not in k or k.startswith(name + "/")}


def test_every_row_of_the_golden_file_passes(golden):
    rows = parity.rows(golden, "file")
    computed = {k for k in golden if "/" in k and not k.endswith("/config") and "/param/" not in k}
    assert [row.name for row in rows if not row.passed] == []
    assert {row.name for row in rows} == computed and len(rows) == 84


@pytest.mark.few(1)
@pytest.mark.parametrize("name", FILES)
def test_files_of_other_sizes_and_settings_pass(lens, name):
    """Sizes, coefficients, widths, k and what the list leaves open are drawn, the same in every run."""
    dead, variants = FILES[name]
    arrays = saelens.golden(lens, sorted(FILES).index(name), variants, dead)
    assert failed(arrays) == []
    assert len({key.split("/")[0] for key in arrays if "/" in key}) == len(variants)


@pytest.mark.parametrize(
    "architecture, key",
    [("standard", "grad/W_enc"), ("standard", "loss_terms/l1_loss"), ("batchtopk", "topk_threshold")],
)
def test_a_changed_number_fails_its_row_alone(golden, architecture, key):
    arrays = only(golden, architecture)
    changed = np.array(arrays[f"{architecture}/{key}"], np.float64)
    changed.reshape(-1)[np.argmax(np.abs(changed))] *= 1.001
    assert failed(arrays | {f"{architecture}/{key}": changed}) == [f"{architecture}/{key}"]


def test_a_changed_parameter_fails_what_depends_on_it(golden):
    arrays = only(golden, "standard")
    moved = arrays["standard/param/b_dec"] + 0.01
    found = set(failed(arrays | {"standard/param/b_dec": moved}))
    assert {"standard/x_hat", "standard/loss", "standard/loss_terms/mse_loss", "standard/grad/b_dec"} <= found


def test_another_dead_mask_fails_the_auxiliary_loss(golden):
    found = failed(only(golden, "topk") | {"dead_mask": ~golden["dead_mask"]})
    assert "topk/loss_terms/auxiliary_reconstruction_loss" in found and "topk/loss_terms/mse_loss" not in found


def test_a_term_that_is_not_recomputed_fails(golden):
    arrays = only(golden, "standard") | {"standard/loss_terms/other": np.zeros(())}
    assert failed(arrays) == ["standard/loss_terms/other"]


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("standard", {"architecture": "temporal"}, "architecture 'temporal', expected one of.*standard.*gated"),
        ("jumprelu_step", {MODE: "sigmoid"}, "sigmoid.*known: step, tanh, quadratic"),
    ],
)
def test_what_is_not_known_is_refused_by_name(golden, name, change, sentence):
    arrays = only(golden, name)
    config = json.loads(str(arrays[f"{name}/config"])) | change
    with pytest.raises(UserError, match=sentence):
        parity.rows(arrays | {f"{name}/config": np.asarray(json.dumps(config))}, "file")


def test_a_coefficient_of_zero_passes(lens):
    assert failed(saelens.golden(lens, 0, [("standard", {"l1_coefficient": 0.0})], "some")) == []
