"""Names of latents: the inverse of each other on every row, and one sentence for what is not there."""

import pytest
from held_out import saes
from pursuits import BUDGETS, pursuit

from jhsae.errors import UserError
from jhsae.features.names import label, rows_named


@pytest.mark.parametrize("kind", ["tree", "forest", "topk"])
def test_every_row_has_a_name_that_means_it(kind):
    sae = saes()[kind]
    names = [label(row, sae.tree) for row in range(sae.features)]
    assert len(set(names)) == sae.features
    assert [rows_named(name, sae) for name in names] == [[row] for row in range(sae.features)]
    assert rows_named(3, sae) == rows_named("3", sae) == [3]


def test_all_below_level_by_level():
    sae = pursuit((8, 3, 2), 16, BUDGETS["exact"], empty=2)
    assert rows_named("e1/*", sae) == [1, 11, 12, 13, 38, 39, 40, 41, 42, 43]
    assert rows_named("e7/*", sae) == [7, 29, 30, 31, 74, 75, 76, 77]  # without its two empty slots
    assert rows_named("e7/a0/*", sae) == [29, 74, 75]
    assert rows_named("f3/*", saes()["topk"]) == [3]
    with pytest.raises(UserError, match="slot of the forest is empty"):
        rows_named("e7/a2/a1", sae)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("tree", "e12", "this SAE has e0 to e11; write one of those"),
        ("tree", "e3/a4", "this SAE has e3/a0 to e3/a3"),
        ("tree", "e3/a1/a0", "nothing is below e3/a1; write e3/a1"),
        ("tree", "f3", "this SAE is hierarchical; write e0"),
        ("topk", "e3", "this SAE is flat; write f0 to f19"),
        ("topk", "f3/a0", "this SAE is flat; write f0 to f19"),
        ("topk", "f20", "this SAE has f0 to f19"),
        ("topk", -1, "expected f0 to f19, or the number of a row"),
        ("topk", 20, "this SAE has 0 to 19"),
        ("tree", "", "expected a name such as e0 or e0/a0"),
        ("tree", "e3//a1", "expected a name such as"),
        ("tree", "e1\n", "expected a name such as"),
        ("tree", "e٣", "expected a name such as"),
        ("tree", "e" + "9" * 400, "expected a name such as"),
        ("tree", "9" * 400, "expected a name such as"),
        ("tree", "*", "expected a name such as"),
    ],
)
def test_what_is_no_latent_is_one_sentence(kind, name, said):
    with pytest.raises(UserError) as refused:
        rows_named(name, saes()[kind])
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1
