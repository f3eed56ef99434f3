"""Initialisers change what they name and nothing else; a teacher is copied exactly, or refused with its sizes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jhsae.errors import UserError
from jhsae.init import DecodersFromTeacher, FromTeacher, IndependentStart, ScaleEncoder, UnitDecoder, teacher_metric
from jhsae.metric import Whitened, from_covariance
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.sparsify import TopK
from jhsae.teacher import Concept, Teacher

EMBED, PARENTS, CHILDREN, SUB = 10, 3, 4, 2
KEY = jax.random.key(3)


def hierarchical(experts=5, sub=SUB, atoms=6, embed=EMBED, **options):
    return HierarchicalSAE(embed, experts, sub, atoms, TopK(2), TopK(1), key=jax.random.key(0), **options)


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
        ({"experts": 2}, "sae.experts is 2, .* has 3; write sae.experts=3 or more"),
        ({"atoms": 3}, "sae.atoms is 3, .* has 4; write sae.atoms=4 or more"),
    ],
)
def test_sizes_that_do_not_fit_are_named(folder, sizes, sentence):
    with pytest.raises(UserError, match=sentence):
        FromTeacher(folder)(hierarchical(**sizes), KEY)


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
