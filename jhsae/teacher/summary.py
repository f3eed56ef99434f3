"""Summary of a teacher for the terminal: size, validation against the nulls, first concepts."""

from typing import Any

from jhsae.teacher.artifact import Teacher
from jhsae.teacher.select import Concept
from jhsae.teacher.vocabulary import Vocabulary


def summary(teacher: Teacher, vocabulary: Vocabulary, shown: int = 8) -> str:
    """Summary lines of a teacher.

    Args:
        teacher: The artifact.
        vocabulary: For the words of its tokens.
        shown: Number of concepts in the summary.
    """
    about, validation = teacher.provenance, teacher.validation
    angles, project = validation["orthogonality"], validation["projection"]
    lines = [
        f"{about['parents']} parents with {about['children']} children and {about['tokens']} tokens; "
        f"{about['words']} words of the ontology are tokens of {about['model']}; "
        f"condition number {about['condition']:.0f}" + _shrinkage(about),
        "",
        f"{'|angle(delta, parent) - 90|, median degrees':46}{'teacher':>10}{'other parent':>14}{'shuffled':>10}",
        f"{'  as estimated':46}{_number(angles['measured']['median'], 10, 1)}"
        f"{_number(angles['random_parent']['median'], 14, 1)}{_number(angles['shuffled']['median'], 10, 1)}",
        f"{'  parent estimated without the child':46}{_number(angles['unseen']['median'], 10, 1)}"
        f"{'':14}{_number(angles['unseen_shuffled']['median'], 10, 1)}",
        "",
        f"{'projection on a parent (1: its words, 0: others)':50}"
        f"{'train':>7}{'held out':>10}{'unseen child':>14}{'others':>8}{'AUC':>6}",
    ]
    for name, label in (("measured", "  teacher"), ("shuffled", "  shuffled")):
        p = project[name]
        widths = {"train": 7, "heldout": 10, "unseen_child": 14, "other": 8, "auc": 6}
        lines.append(f"{label:50}" + "".join(_number(p[key], width, 2) for key, width in widths.items()))
    for area in [validation["readout"]] if "readout" in validation else []:
        label = f"AUC of readouts on activations of held-out words, layer {about['layer']}"
        measured, shuffled = (_number(area[name]["median"], 0, 2) for name in ("measured", "shuffled"))
        lines += ["", f"{label:66}{measured}   shuffled {shuffled}"]
    lines += [*_theory(validation), *_interventions(validation)]
    lines += ["", *(_line(c, vocabulary) for c in teacher.concepts[:shown])]
    more = len(teacher.concepts) - shown
    return "\n".join(lines + [f"and {more} more in teacher.json"] * (more > 0))


def _theory(validation: dict[str, Any]) -> list[str]:
    """Park et al.'s tests, where the teacher has them."""
    if "hierarchy" not in validation:
        return []
    head = f"{'model':>10}{'other parent':>14}{'shuffled':>10}{'unseen':>8}{'shuffled':>10}"
    lines = ["", f"{'cosine, median over the ontology':46}{head}"]
    labels = {
        "hierarchy": "  child - parent, and parent",
        "consecutive": "  child - parent, and parent - grandparent",
    }
    for name, label in labels.items():
        widths = {"measured": 10, "random_parent": 14, "shuffled": 10, "unseen": 8, "unseen_shuffled": 10}
        columns = (_number(validation[name][key]["median"], width, 2) for key, width in widths.items())
        lines.append(f"{label:46}" + "".join(columns))
    return lines


def _interventions(validation: dict[str, Any]) -> list[str]:
    """Logit differences under interventions, where the teacher has them."""
    places = {"interventions": "the teacher's layer", "interventions_last_layer": "the last layer"}
    lines = []
    for name, where in places.items():
        if name in validation:
            own, null = (validation[name][key]["median"] for key in ("target_sibling", "target_sibling_random"))
            label = f"logits of target - sibling, moved by their contrast at {where}"
            lines.append(f"{label:74}{_number(own, 6, 2)}   random {_number(null, 0, 2)}")
    return ["", *lines] if lines else []


def _shrinkage(about: dict[str, Any]) -> str:
    """The weight of the identity in the covariance; teachers of earlier versions do not have it."""
    weight = about.get("shrinkage")
    return "" if weight is None else f", shrinkage {weight:.3g}"


def _number(value: float | None, width: int, decimals: int) -> str:
    """A value in its column; ``n/a`` where it is undefined."""
    return f"{'n/a':>{width}}" if value is None else f"{value:{width}.{decimals}f}"


def _line(concept: Concept, vocabulary: Vocabulary) -> str:
    words = ", ".join(vocabulary.surface[t] for t in concept.tokens[:: -(-len(concept.tokens) // 4)])
    children = ", ".join(child.name for child in concept.children[:4])
    return f"{concept.name} ({len(concept.tokens)}: {words}) > {children}"
