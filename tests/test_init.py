"""Initialisers change what they name and nothing else; a teacher is copied exactly, or refused with its sizes."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae import config
from jhsae.data import write_array
from jhsae.errors import UserError
from jhsae.init import (
    DecodersFromTeacher,
    FromTeacher,
    IndependentStart,
    RowsFromTeacher,
    ScaleEncoder,
    UnitDecoder,
    activation_diagonal_metric,
    activation_metric,
    permuted_teacher,
    rotated,
    teacher_diagonal_metric,
    teacher_metric,
)
from jhsae.metric import AbstractMetric, Diagonal, Euclidean, Whitened, causal, from_covariance
from jhsae.plan.lowering import with_abstract_metric
from jhsae.sae import FlatSAE, HierarchicalSAE, PursuitSAE
from jhsae.sparsify import MeanL0, TopK
from jhsae.teacher import Concept, Directions, Teacher, build
from jhsae.training.config import Train

EMBED, PARENTS, CHILDREN, SUB = 10, 3, 4, 2
KEY = jax.random.key(3)


def hierarchical(experts=5, sub=SUB, atoms=6, embed=EMBED, route=TopK(2), **options):  # noqa: B008
    return HierarchicalSAE(embed, experts, sub, atoms, route, TopK(1), key=jax.random.key(0), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of random arrays; the second parent has two children, the others four."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(EMBED, EMBED))

    def random(*shape):
        return rng.normal(size=shape).astype(np.float32)

    counts = np.array([4, 2, 4], np.int32)
    atoms = random(PARENTS, CHILDREN, SUB)
    atoms[1, 2:] = 0
    names = [
        Concept(f"n{i}", f"c{i}", (1, 2), tuple(Concept(f"k{j}", "k", (1,)) for j in range(n)))
        for i, n in enumerate(counts)
    ]
    teacher = Teacher(
        random(PARENTS, EMBED), random(PARENTS, EMBED), random(PARENTS), random(PARENTS, CHILDREN, EMBED),
        random(PARENTS, SUB, EMBED), random(PARENTS, SUB, EMBED), atoms, counts,
        (root @ root.T + np.eye(EMBED)).astype(np.float32), tuple(names), {"model": "m"}, {},
    )  # fmt: skip
    return str(teacher.save(tmp_path_factory.mktemp("teacher") / "t"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher as `build` makes it, and its folder; the second parent has two children, the others three."""
    rng = np.random.default_rng(1)
    directions = Directions(rng.normal(size=(3, EMBED)), tuple(rng.normal(size=(n, EMBED)) for n in (3, 2, 3)))
    concepts = tuple(
        Concept(f"n{i}", f"c{i}", (1, 2), tuple(Concept(f"k{j}", "k", (1,)) for j in range(len(rows))))
        for i, rows in enumerate(directions.deltas)
    )
    geometry = causal(rng.normal(size=(50, EMBED)) @ np.diag(np.geomspace(0.3, 3, EMBED)))
    teacher = build(concepts, directions, geometry, sub=4, variance=1.0, seed=0, provenance={}, validation={})
    return str(teacher.save(tmp_path_factory.mktemp("taught") / "t")), teacher


def test_from_teacher_copies_what_it_has_and_leaves_the_rest(folder):
    before, teacher = hierarchical(), Teacher.load(folder)
    after = FromTeacher(folder)(before, KEY)
    for ours, theirs in (("router_dec", "parents"), ("router_enc", "readouts"), ("up", "up"), ("down", "down")):
        assert np.array_equal(getattr(after, ours)[:PARENTS], getattr(teacher, theirs))
        assert np.array_equal(getattr(after, ours)[PARENTS:], getattr(before, ours)[PARENTS:])
    for ours in ("atom_enc", "atom_dec"):
        new, old = getattr(after, ours), getattr(before, ours)
        assert np.array_equal(new[0, :CHILDREN], teacher.atoms[0]) and np.array_equal(new[1, :2], teacher.atoms[1, :2])
        assert np.array_equal(new[1, 2:], old[1, 2:]) and np.array_equal(new[:, CHILDREN:], old[:, CHILDREN:])


def test_the_original_way_copies_decoders_alone(folder):
    before = hierarchical()
    after, whole = DecodersFromTeacher(folder)(before, KEY), FromTeacher(folder)(before, KEY)
    assert np.array_equal(after.router_enc, before.router_enc) and np.array_equal(after.atom_enc, before.atom_enc)
    assert np.array_equal(after.router_dec, whole.router_dec) and np.array_equal(after.down, whole.down)


def test_tied_encoders_stay_tied(folder):
    after = FromTeacher(folder)(hierarchical(tie=("router", "projectors", "atoms")), KEY)
    assert after.router_enc is None and after.down is None and after.atom_enc is None


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"embed": 8}, "sae.embed is 8, but the teacher .* has 10"),
        ({"sub": 3}, "sae.sub is 3, but the teacher .* has 2; write sae.sub=2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(folder, sizes, sentence):
    with pytest.raises(UserError, match=sentence):
        FromTeacher(folder)(hierarchical(**sizes), KEY)


def test_of_a_larger_teacher_the_first_concepts_and_children_are_taken_and_a_line_says_so(folder, caplog):
    teacher, before = Teacher.load(folder), hierarchical(experts=2, atoms=3)
    with caplog.at_level("INFO", "jhsae"):
        after = FromTeacher(folder)(before, KEY)
        FromTeacher(folder)(before, KEY)
    assert caplog.text.count("sae.experts is 2: of the teacher") == 1 and "3 concepts, the first 2 are" in caplog.text
    assert caplog.text.count("4 children per concept, the first 3 are used") == 1
    assert np.array_equal(after.router_dec, teacher.parents[:2]) and np.array_equal(after.down, teacher.down[:2])
    assert np.array_equal(after.atom_dec[0], teacher.atoms[0, :3])
    assert np.array_equal(after.atom_enc[1, :2], teacher.atoms[1, :2])
    assert np.array_equal(after.atom_dec[1, 2], before.atom_dec[1, 2])  # the second concept has two children


def pursuit(levels):
    return PursuitSAE(EMBED, levels, MeanL0(2.0), key=jax.random.key(0))


@pytest.mark.parametrize("levels", [(5, 6), (2, 3, 2), (7,)])
@pytest.mark.parametrize("children", [True, False])
def test_the_first_rows_of_a_pursuit_are_the_teachers_directions(folder, levels, children):
    """Row by row: concept p at root p, its child j at slot j below, and nothing else moved."""
    before, teacher = pursuit(levels), Teacher.load(folder)
    after, want = RowsFromTeacher(folder, children)(before, KEY), np.array(before.rows)
    for p in range(min(levels[0], PARENTS)):
        want[p] = teacher.parents[p] / np.linalg.norm(teacher.parents[p])
        for j in range(min(levels[1], teacher.counts[p]) if children and len(levels) > 1 else 0):
            row = teacher.atoms[p, j] @ teacher.up[p]
            want[levels[0] + p * levels[1] + j] = row / np.linalg.norm(row)
    np.testing.assert_allclose(after.rows, want, atol=1e-6)
    assert np.array_equal(after.b_dec, before.b_dec)


def test_a_pursuit_takes_permuted_families_and_says_what_it_leaves(folder, caplog):
    with caplog.at_level("INFO", "jhsae"):
        rows = [RowsFromTeacher(folder, permuted=seed)(pursuit((2, 2)), KEY).rows for seed in (None, 0)]
    assert "sae.levels.1 is 2: of the teacher" in caplog.text and "4 children per concept" in caplog.text
    assert np.array_equal(rows[0][:2], rows[1][:2]) and np.array_equal(rows[0][2:4], rows[1][4:6])
    with pytest.raises(UserError, match=r"sae.embed is 4, but the teacher .* has 10"):
        RowsFromTeacher(folder)(PursuitSAE(4, (5,), MeanL0(2.0), key=KEY), KEY)
    with pytest.raises(UserError, match=r"write jhsae.init.FromTeacher"):
        RowsFromTeacher(folder)(hierarchical(), KEY)


PARTS = {
    "parents": {"router_dec", "router_enc"},
    "projectors": {"up", "down"},
    "children": {"atom_dec", "atom_enc"},
    "encoders": {"router_enc", "atom_enc"},
}


@pytest.mark.parametrize("off", [("parents",), ("projectors",), ("children",), ("encoders",), tuple(PARTS)])
def test_each_part_of_the_teacher_can_be_left_out(folder, off):
    before = hierarchical()
    whole = FromTeacher(folder)(before, KEY)
    after = FromTeacher(folder, **dict.fromkeys(off, False))(before, KEY)
    left = set().union(*(PARTS[part] for part in off))
    for name in set().union(*PARTS.values()):
        assert np.array_equal(getattr(after, name), getattr(before if name in left else whole, name)), name


def test_without_the_subspaces_their_width_does_not_matter(folder):
    started = hierarchical(sub=3)
    after = FromTeacher(folder, projectors=False, children=False)(started, KEY)
    assert np.array_equal(after.router_dec[:PARENTS], Teacher.load(folder).parents)
    with pytest.raises(UserError, match=r"sae\.sub is 3"):
        FromTeacher(folder, projectors=False)(started, KEY)


@pytest.mark.parametrize("seed", range(5))
def test_a_permuted_teacher_has_the_same_directions_under_other_parents(taught, seed):
    folder, teacher = taught
    parents, children, sub = teacher.atoms.shape
    null = permuted_teacher(teacher, seed)
    dealt = [next(j for j in range(parents) if np.array_equal(null.up[i], teacher.up[j])) for i in range(parents)]
    assert sorted(dealt) == list(range(parents)) and all(i != j for i, j in enumerate(dealt))
    for name in ("up", "down", "atoms", "deltas", "counts"):
        assert np.array_equal(getattr(null, name), getattr(teacher, name)[dealt]), name
    assert [c.children for c in null.concepts] == [teacher.concepts[j].children for j in dealt]
    assert np.array_equal(null.parents, teacher.parents) and np.array_equal(null.readouts, teacher.readouts)
    before = hierarchical(parents + 1, sub, children, EMBED)
    own, after = FromTeacher(folder)(before, KEY), FromTeacher(folder, permuted=seed)(before, KEY)
    assert np.array_equal(after.up[:parents], own.up[np.array(dealt)]) and np.array_equal(
        after.router_dec, own.router_dec
    )
    assert np.array_equal(after.atom_dec[0, : null.counts[0]], own.atom_dec[dealt[0], : null.counts[0]])
    assert np.array_equal(after.up[parents:], before.up[parents:])
    assert eqx.tree_equal(after, FromTeacher(folder, permuted=seed)(before, KEY))


def test_families_are_dealt_among_the_experts_that_there_are(taught):
    folder, teacher = taught
    _, children, sub = teacher.atoms.shape
    own, after = (FromTeacher(folder, permuted=p)(hierarchical(2, sub, children), KEY) for p in (None, 3))
    assert np.array_equal(after.up, own.up[::-1]) and np.array_equal(after.down, own.down[::-1])
    alone = FromTeacher(folder, permuted=3)(hierarchical(1, sub, children, route=TopK(1)), KEY)
    assert np.array_equal(alone.up[0], teacher.up[0])  # one parent has no other to deal to
    with pytest.raises(UserError, match="permuted is -1"):
        FromTeacher(folder, permuted=-1)


def test_a_permutation_is_hashed_and_its_absence_is_not():
    own = config.load(Train, config.find("quickstart/geometry.yaml"))
    assert config.to_dict(own)["init"][0].keys() == {"_target_", "path"}
    slot = json.dumps({"_target_": "jhsae.init.FromTeacher", "path": "t", "permuted": 1})
    null = config.load(Train, config.find("quickstart/geometry.yaml"), [f"init=[{slot}]"])
    assert config.config_hash(null) != config.config_hash(own)


def test_jitter_rotates_by_its_angle_in_the_metric_and_keeps_encoders_dual(taught):
    """A real teacher: concepts of unit norm in its metric, atoms of unit norm."""
    folder, teacher = taught
    metric = teacher.geometry().residual
    parents, children, sub = teacher.atoms.shape
    before = hierarchical(parents + 1, sub, children, EMBED)
    after, again, other = (FromTeacher(folder, jitter=20.0)(before, jax.random.key(i)) for i in (0, 0, 1))
    new = after.router_dec[:parents]
    cosines = metric.inner(new, jnp.asarray(teacher.parents)) / metric.norm(new)
    np.testing.assert_allclose(np.degrees(np.arccos(cosines)), 20, atol=0.05)
    np.testing.assert_allclose(metric.norm(new), 1, atol=1e-4)
    np.testing.assert_allclose(metric.dual(new), after.router_enc[:parents], atol=1e-3)
    exists = np.arange(children) < teacher.counts[:, None]
    turned = np.sum(np.asarray(after.atom_dec[:parents]) * teacher.atoms, axis=-1)[exists]
    np.testing.assert_allclose(np.degrees(np.arccos(turned)), 20, atol=0.05)
    assert np.array_equal(after.atom_dec[:parents], after.atom_enc[:parents]) and np.array_equal(after.up, again.up)
    assert eqx.tree_equal(after, again) and not np.allclose(after.router_dec, other.router_dec)
    assert eqx.tree_equal(FromTeacher(folder, jitter=0.0)(before, KEY), FromTeacher(folder)(before, KEY))


def test_jitter_out_of_range_or_without_a_tangent_is_refused(folder):
    with pytest.raises(UserError, match=r"FromTeacher: jitter is 200\.0, expected at least 0 and at most 180"):
        FromTeacher(folder, jitter=200.0)
    with pytest.raises(UserError, match="jitter rotates directions"):
        rotated(KEY, jnp.ones((3, 1)), 5.0)
    assert np.array_equal(rotated(KEY, jnp.zeros((2, 3)), 5.0), jnp.zeros((2, 3)))


def test_metrics_of_files_are_named_in_one_line(folder, tmp_path):
    sigma = Teacher.load(folder).sigma
    np.testing.assert_allclose(teacher_diagonal_metric(folder).scale, np.sqrt(np.diag(sigma)), rtol=1e-5)
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32) @ np.diag([0.2, 1.0, 3.0]).astype(np.float32)
    x = x @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0].astype(np.float32)
    path = write_array(tmp_path / "store", x).path
    white = np.asarray(activation_metric(path, shrinkage=0.0).whiten(jnp.asarray(x - x.mean(0))), np.float64)
    covariance = np.cov(white.T)
    np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(3), atol=1e-3 * covariance[0, 0])
    stds = np.asarray(activation_diagonal_metric(path, shrinkage=0.0).whiten(jnp.asarray(x))).std(0)
    np.testing.assert_allclose(stds, stds[0], rtol=1e-3)
    with pytest.raises(UserError, match="rows is 1, expected at least 2"):
        activation_metric(path, rows=1)


def test_teacher_metric_is_the_residual_side(folder):
    expected = from_covariance(Teacher.load(folder).sigma).residual
    assert np.array_equal(teacher_metric(folder).matrix, expected.matrix)


def test_unit_decoder_in_a_metric():
    metric = Whitened(jax.random.normal(KEY, (EMBED, EMBED)))
    after = UnitDecoder(metric)(hierarchical(), KEY)
    assert np.allclose(metric.norm(after.router_dec), 1, atol=1e-5)
    assert np.allclose(jnp.linalg.norm(after.atom_dec, axis=-1), 1, atol=1e-5)


def test_scale_encoder_scales_the_encoder_alone():
    for sae, name in ((hierarchical(), "router_enc"), (FlatSAE(EMBED, 20, TopK(2), key=KEY), "W_enc")):
        after = ScaleEncoder(0.1)(sae, KEY)
        assert np.allclose(getattr(after, name), 0.1 * getattr(sae, name))
        undone = eqx.tree_at(lambda s, n=name: getattr(s, n), after, getattr(sae, name))
        assert eqx.tree_equal(undone, sae)
    with pytest.raises(UserError, match="untied encoder"):
        ScaleEncoder(0.1)(hierarchical(tie=("router",)), KEY)


def test_independent_start_unties_and_is_orthonormal():
    after = IndependentStart()(hierarchical(), KEY)
    gram = jnp.einsum("esd,etd->est", after.up, after.up)
    assert np.allclose(gram, np.eye(SUB), atol=1e-5)
    assert not np.allclose(after.up, after.down) and not np.allclose(after.router_enc, after.router_dec)
    with pytest.raises(UserError, match=r"untied encoders.*atoms"):
        IndependentStart()(hierarchical(tie=("atoms",)), KEY)
    with pytest.raises(UserError, match="HierarchicalSAE"):
        IndependentStart()(FlatSAE(EMBED, 20, TopK(2), key=KEY), KEY)


@pytest.mark.parametrize(
    ("slot", "kind"),
    [
        ({"_target_": "jhsae.init.activation_metric", "path": "${data.store}", "rows": 64}, Whitened),
        ({"_target_": "jhsae.init.activation_metric", "path": "${data.store}", "shrinkage": "ledoit_wolf"}, Whitened),
        ({"_target_": "jhsae.init.activation_diagonal_metric", "path": "${data.store}"}, Diagonal),
        ({"_target_": "jhsae.init.teacher_diagonal_metric", "path": "${teacher}"}, Diagonal),
        ({"_target_": "jhsae.metric.Euclidean"}, Euclidean),
    ],
)
def test_a_metric_is_one_line_of_a_training_config_and_can_be_planned_without_its_files(folder, slot, kind, tmp_path):
    store = write_array(tmp_path / "s", np.random.default_rng(0).normal(size=(80, EMBED)).astype(np.float32)).path
    words = [f"data.store={store}", f"teacher={folder}", f"metric={json.dumps(slot)}"]
    train = config.load(Train, config.find("geometry.yaml"), words)
    assert type(config.build(train.metric, AbstractMetric)) is kind
    absent = config.load(Train, config.find("geometry.yaml"), ["data.store=absent", "teacher=absent", words[-1]])
    metric = config.build(with_abstract_metric(absent, EMBED).metric, AbstractMetric)
    assert type(metric) is kind and metric.whiten(jnp.ones(EMBED)).shape == (EMBED,)
