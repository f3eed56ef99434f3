import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sealed import sealed

from jhsae.errors import UserError
from jhsae.files.checksums import NAME
from jhsae.teacher import ParkEstimator, Teacher, Unembedding, build, estimate
from jhsae.teacher.artifact import SHAPES

SUB = 5


@pytest.fixture(scope="module")
def teacher(world):
    tokens = [t for c in world.concepts for t in c.tokens]
    directions = estimate(world.concepts, ParkEstimator(), Unembedding()(world.view(), world.concepts, tokens))
    # One parent with fewer children than the others, so that something is padded.
    directions = replace(directions, deltas=(directions.deltas[0][:2], *directions.deltas[1:]))
    concepts = (replace(world.concepts[0], children=world.concepts[0].children[:2]), *world.concepts[1:])
    return build(
        concepts, directions, world.geometry, sub=SUB, variance=1.0, seed=0, provenance={"a": 1}, validation={}
    )


def test_readouts_are_dual_to_parents_and_down_to_up(teacher):
    np.testing.assert_allclose(np.sum(teacher.parents * teacher.readouts, -1), 1.0, atol=1e-5)
    product = np.einsum("psd,ptd->pst", teacher.down, teacher.up)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(SUB), product.shape), atol=1e-5)


def test_everything_is_orthonormal_in_the_residual_metric(teacher):
    metric = teacher.geometry().residual
    np.testing.assert_allclose(metric.norm(jnp.asarray(teacher.parents)), 1.0, atol=1e-4)
    np.testing.assert_allclose(metric.norm(jnp.asarray(teacher.up)), 1.0, atol=1e-4)
    np.testing.assert_allclose(metric.dual(jnp.asarray(teacher.parents)), teacher.readouts, atol=1e-4)


def test_atoms_rebuild_the_deltas(teacher):
    """Five dimensions hold three deltas, so nothing of them is lost."""
    rebuilt = np.einsum("pcs,psd->pcd", teacher.atoms, teacher.up)
    norms = np.asarray(teacher.geometry().residual.norm(jnp.asarray(teacher.deltas)))[..., None]
    np.testing.assert_allclose(rebuilt * norms, teacher.deltas, atol=1e-3)
    assert teacher.counts.tolist() == [2, 3, 3, 3]
    assert not teacher.deltas[0, 2].any()
    assert not teacher.atoms[0, 2].any()


def test_save_and_load_are_inverse_and_never_overwrite(teacher, tmp_path):
    folder = teacher.save(tmp_path / "teacher")
    again = Teacher.load(folder)
    for name in SHAPES:
        np.testing.assert_array_equal(getattr(again, name), getattr(teacher, name))
    assert again.concepts == teacher.concepts
    assert again.provenance == teacher.provenance
    with pytest.raises(UserError, match="holds a teacher already"):
        teacher.save(folder)


def break_missing(folder):
    (folder / "teacher.json").unlink()


def break_truncated(folder):
    path = folder / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_array(folder):
    (folder / "teacher.safetensors").unlink()


def break_size(folder):
    arrays = load_file(folder / "teacher.safetensors")
    save_file(arrays | {"up": arrays["up"][:, :, :-1].copy()}, folder / "teacher.safetensors")


def break_absent(folder):
    arrays = load_file(folder / "teacher.safetensors")
    save_file({k: v for k, v in arrays.items() if k != "sigma"}, folder / "teacher.safetensors")


def break_names(folder):
    numbers = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps(numbers | {"concepts": numbers["concepts"][1:]}))


def break_json(folder):
    (folder / "teacher.json").write_text("{")


def break_format(folder):
    (folder / "teacher.json").write_text('{"format": 99}')


def changed(name, change):
    def damage(folder):
        arrays = load_file(folder / "teacher.safetensors")
        save_file(arrays | {name: np.ascontiguousarray(change(arrays[name]))}, folder / "teacher.safetensors")

    return damage


def renamed(change):
    def damage(folder):
        numbers = json.loads((folder / "teacher.json").read_text())
        first, *rest = numbers["concepts"]
        (folder / "teacher.json").write_text(json.dumps(numbers | {"concepts": [change(first), *rest]}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing, "no teacher in"),
        (break_truncated, "the bytes of '.*' .* do not fit"),
        (break_array, "there is no file"),
        (break_size, "up has 23 embed where 24"),
        (break_absent, "has no sigma"),
        (break_names, "lengths has 4 parents where 3|parents has 4 parents where 3"),
        (break_json, "cannot be read as JSON"),
        (break_format, "not a teacher of format 2"),
        (changed("lengths", lambda a: a * np.nan), "lengths is not finite everywhere"),
        (changed("parents", lambda a: a * 0), "parents holds 4 of 4 vectors of zeros, expected directions"),
        (changed("counts", lambda a: a + 1), "names other concepts"),
        (changed("sigma", lambda a: a[None]), r"has no sigma \['embed', 'embed'\] F32"),
        (changed("atoms", lambda a: a[:, :, :0]), "atoms has 0 sub where 5"),
        (changed("lengths", lambda a: a.astype(np.float64)), "has no lengths"),
        (renamed(lambda c: c | {"tokens": "all"}), "is no concept"),
        (renamed(lambda c: c | {"tokens": [-1]}), "is no concept"),
        (renamed(lambda c: c | {"children": []}), "names 4 parents, 1 without a child"),
        (renamed(lambda c: [c]), "is no concept"),
    ],
)
def test_a_damaged_folder_is_named(teacher, tmp_path, damage, message):
    folder = teacher.save(tmp_path / "teacher")
    damage(folder)
    sealed(folder)
    with pytest.raises(UserError, match=message):
        Teacher.load(folder)


def test_a_teacher_of_the_format_before_has_no_checksums_and_says_so(teacher, tmp_path, caplog):
    folder = teacher.save(tmp_path / "teacher")
    (folder / NAME).unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS, which belongs to it"):
        Teacher.load(folder)
    numbers = json.loads((folder / "teacher.json").read_text())
    (folder / "teacher.json").write_text(json.dumps(numbers | {"format": 1}))
    np.testing.assert_array_equal(Teacher.load(folder).up, teacher.up)
    assert "carries no checksums" in caplog.text
