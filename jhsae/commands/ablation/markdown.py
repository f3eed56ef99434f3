"""The tables of a study as Markdown: one per pole, numbers over seeds, differences to the pole with intervals."""

from typing import Any

from jhsae.commands.ablation.effects import Summary
from jhsae.files.escaping import escaped

ABOUT = (
    "Means over seeds, in brackets the smallest and the largest. Differences are to the pole, with 95 % bootstrap "
    "intervals: of EV over held-out sequences and over seeds, of the others over seeds."
)


def markdown(summary: Summary) -> str:
    """The text of table.md.

    Args:
        summary: of `effects.summarised`.
    """
    parts = [_table(summary, pole) for pole in summary["poles"]]
    parts.append(ABOUT)
    for arm in summary["arms"]:
        parts += [f"- {escaped(line)}" for line in arm["sentences"]]
    if summary["failures"]:
        parts.append("Without a result:")
        parts += [f"- {escaped(one['arm'])}: {escaped(one['reason'])}" for one in summary["failures"]]
    if summary["left_out"]:
        parts.append("Left out:")
        parts += [
            f"- {escaped(one['pole'])}: {escaped(one['change'])}: {escaped(one['reason'])}"
            for one in summary["left_out"]
        ]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def _table(summary: Summary, pole: str) -> str:
    metrics, budgets = summary["metrics"], summary["budgets"]
    head = ["change", "seeds", "rate", "size", *metrics.values(), "EV less the pole's (sequences)"]
    head += [f"{words} less the pole's (seeds)" for words in metrics.values()] + list(budgets.values())
    lines = [f"**{escaped(pole)}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm in summary["arms"]:
        if arm["pole"] != pole:
            continue
        cells = [escaped(arm["change"]) or "the pole", str(len(arm["seeds"]))]
        cells += ["as configured" if arm["rate"] is None else f"{arm['rate']:g}"]
        cells += [escaped(", ".join(arm["size"])) or "as configured"]
        cells += [spread(arm["numbers"][name]) for name in metrics]
        cells += [difference(arm["differences"].get("ev_r2_units"))]
        cells += [difference(arm["differences"].get(name)) for name in metrics]
        cells += [spread(arm["numbers"][name]) for name in budgets]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(value: dict[str, Any] | None) -> str:
    """``0.781 [0.779, 0.784]``, the mean alone where the seeds agree, n/a where there is no value."""
    if value is None:
        return "n/a"
    mean, least, most = (_short(value[name]) for name in ("mean", "least", "most"))
    return mean if least == most else f"{mean} [{least}, {most}]"


def difference(value: dict[str, Any] | None) -> str:
    """``+0.012 [+0.010, +0.014]``; without an interval where there is one group, n/a where there is no pair."""
    if value is None:
        return "n/a"
    if value["low"] is None:
        return f"{value['mean']:+.3g}"
    return f"{value['mean']:+.3g} [{value['low']:+.3g}, {value['high']:+.3g}]"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
