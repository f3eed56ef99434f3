"""What a teacher found, as lines for the screen: its size, its validation beside the nulls, its first concepts."""

from jhsae.teacher.artifact import Teacher
from jhsae.teacher.select import Concept
from jhsae.teacher.vocabulary import Vocabulary


def summary(teacher: Teacher, vocabulary: Vocabulary, shown: int = 8) -> str:
    """The lines, with the first `shown` concepts."""
    about, validation = teacher.provenance, teacher.validation
    angles, project = validation["orthogonality"], validation["projection"]
    lines = [
        f"{about['parents']} parents with {about['children']} children and {about['tokens']} tokens; "
        f"{about['words']} words of the ontology are tokens of {about['model']}; "
        f"condition number {about['condition']:.0f}",
        "",
        f"{'|angle(delta, parent) - 90|, median degrees':46}{'teacher':>10}{'other parent':>14}{'shuffled':>10}",
        f"{'  as estimated':46}{angles['measured']['median']:10.1f}"
        f"{angles['random_parent']['median']:14.1f}{angles['shuffled']['median']:10.1f}",
        f"{'  parent estimated without the child':46}{angles['unseen']['median']:10.1f}"
        f"{'':14}{angles['unseen_shuffled']['median']:10.1f}",
        "",
        f"{'projection on a parent (1: its words, 0: others)':50}"
        f"{'train':>7}{'held out':>10}{'unseen child':>14}{'others':>8}{'AUC':>6}",
    ]
    for name, label in (("measured", "  teacher"), ("shuffled", "  shuffled")):
        p = project[name]
        lines.append(
            f"{label:50}{p['train']:7.2f}{p['heldout']:10.2f}{p['unseen_child']:14.2f}{p['other']:8.2f}{p['auc']:6.2f}"
        )
    for area in [validation["readout"]] if "readout" in validation else []:
        label = f"AUC of readouts on activations of held-out words, layer {about['layer']}"
        lines += ["", f"{label:66}{area['measured']['median']:.2f}   shuffled {area['shuffled']['median']:.2f}"]
    lines += ["", *(_line(c, vocabulary) for c in teacher.concepts[:shown])]
    more = len(teacher.concepts) - shown
    return "\n".join(lines + [f"and {more} more in teacher.json"] * (more > 0))


def _line(concept: Concept, vocabulary: Vocabulary) -> str:
    words = ", ".join(vocabulary.surface[t] for t in concept.tokens[:: -(-len(concept.tokens) // 4)])
    children = ", ".join(child.name for child in concept.children[:4])
    return f"{concept.name} ({len(concept.tokens)}: {words}) > {children}"
