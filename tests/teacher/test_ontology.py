import gzip

import pytest

from jhsae.errors import UserError
from jhsae.teacher import Ontology, from_wordnet

DIAMOND = Ontology(
    names={"a": "thing.n.01", "b": "plant.n.02", "c": "food.n.01", "d": "herb.n.01", "e": "plant.n.01"},
    words={"a": (), "b": ("plant",), "c": ("food",), "d": ("mint", "sage"), "e": ("plant",)},
    parents={"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("a",)},
)


def test_a_concept_has_the_words_below_it_once_by_any_path():
    assert DIAMOND.hyponym_words("a") == {"plant", "food", "mint", "sage"}
    assert DIAMOND.hyponym_words("b") == {"plant", "mint", "sage"}
    assert DIAMOND.ancestors("d") == {"a", "b", "c"}


def test_upwards_puts_every_child_before_its_parents():
    place = {i: n for n, i in enumerate(DIAMOND.upwards)}
    assert len(place) == 5
    assert all(place[child] < place[p] for child, ps in DIAMOND.parents.items() for p in ps)


def test_find_takes_ids_names_and_words():
    assert DIAMOND.find("d") == "d"
    assert DIAMOND.find("plant.n.01") == "e"
    assert DIAMOND.find("plant") == "b"  # the sense with the most words below it
    assert DIAMOND.find("sage") == "d"


def test_an_unknown_concept_is_a_sentence_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown concept 'plannt'.*did you mean 'plant'\?"):
        DIAMOND.find("plannt")


def test_a_cycle_and_a_stray_parent_are_named():
    with pytest.raises(UserError, match="cycle"):
        Ontology({"a": "a", "b": "b"}, {"a": (), "b": ()}, {"a": ("b",), "b": ("a",)}).upwards  # noqa: B018
    with pytest.raises(UserError, match="'b' has the parent 'x'"):
        Ontology({"b": "b"}, {"b": ()}, {"b": ("x",)}).children  # noqa: B018


def test_the_bundled_wordnet_has_the_names_of_nltk():
    every = from_wordnet()
    living = every.find("plant.n.02")
    assert living == "n00017222"
    assert "oak" in every.hyponym_words(living)
    names = {every.names[i] for i in every.ancestors(living)}
    assert names >= {"organism.n.01", "entity.n.01"}


def test_a_word_can_be_kept_to_its_first_senses(tmp_path):
    (tmp_path / "data.noun").write_text(
        "00000001 03 n 01 factory 0 000 | a Plant plant  \n"
        "00000002 03 n 02 flora 0 plant 0 000 | alive  \n"
        "00000003 03 n 01 plant 0 000 | a works  \n"
    )
    (tmp_path / "index.noun").write_text(
        "factory n 1 0 1 0 00000001  \nflora n 1 0 1 0 00000002  \nplant n 2 0 2 0 00000003 00000002  \n"
    )
    assert from_wordnet(tmp_path).words["n00000002"] == ("flora", "plant")
    first = from_wordnet(tmp_path, senses=1)
    assert first.words == {"n00000001": ("factory",), "n00000002": ("flora",), "n00000003": ("plant",)}
    assert first.names["n00000002"] == "flora.n.01"
    assert first.usage["plant"] == 1


def test_an_index_that_is_missing_or_of_other_data_is_named(tmp_path):
    line = "00000001 03 n 01 thing 0 000 | an example  \n"
    (tmp_path / "data.noun").write_text(line)
    with pytest.raises(UserError, match=r"no index\.noun"):
        from_wordnet(tmp_path)
    (tmp_path / "index.noun.gz").write_bytes(gzip.compress(b"other n 1 0 1 0 00000001  \n"))
    with pytest.raises(UserError, match="does not list 'thing'"):
        from_wordnet(tmp_path)
