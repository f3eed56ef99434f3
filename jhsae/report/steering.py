"""The page of ``jhsae steer``, and its table as text: effects beside random directions, next tokens, attributions."""

from typing import Any

from markupsafe import Markup

from jhsae.report.page import FOLDER, environment

MARKER = "jhsae-steer"
WIDTH = 320.0  # of a strip, in its own units
Json = dict[str, Any]


def render(data: Json) -> str:
    """The page as HTML.

    Args:
        data: what `jhsae.commands.steered_page.described` made.
    """
    template = environment()
    template.filters |= {"signed": signed, "percent": lambda value: f"{100 * value:.1f} %"}
    scale = Scale.over(data["latents"])
    strips = [scale.strip(latent) for latent in data["latents"]]
    return template.get_template("steering.html.jinja").render(
        data,
        marker=MARKER,
        style=Markup((FOLDER / "steering.css").read_text()),
        strips=strips,
        scale=scale,
        width=WIDTH,
    )


def signed(value: float | None) -> str:
    """Three digits and the sign; n/a for None."""
    return "n/a" if value is None else f"{value:+.3g}"


def table(data: Json) -> str:
    """The table of the terminal: a line per latent, and one per prompt for its attribution."""
    head = ["latent", "effect on its tokens", "95 % interval", "random directions", "p", "added", "tokens"]
    lines = [head, *(_line(latent) for latent in data["latents"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    text = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    ]
    for one in data["attributions"]:
        prompt = "".join(piece for piece, _, _ in one["heat"])
        most = ", ".join(f"{row['name']} {signed(row['score'])}" for row in one["rows"][:4])
        text.append(
            f"{prompt!r}: {one['token']!r} less {one['than']!r} is {signed(one['difference'])}; attributed "
            f"{signed(one['sum'])} of {signed(one['effect'])} ({most})"
        )
    return "\n".join(text)


def _line(latent: Json) -> list[str]:
    tokens = " ".join(latent["tokens"][:6]).strip()
    found = latent["numbers"]
    if found is None:
        return [latent["name"], "no token is edited", "", "", "", "", tokens]
    return [
        latent["name"],
        signed(found["effect"]),
        f"{signed(found['low'])} to {signed(found['high'])}",
        f"{signed(found['null'])} ({signed(found['null_low'])} to {signed(found['null_high'])})",
        f"{found['p']:.2g}",
        f"{100 * found['share']:.0f} %",
        tokens,
    ]


class Scale:
    """The common horizontal axis of all strips.

    Args:
        low: its left end, at most 0.
        high: its right end.
    """

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    @classmethod
    def over(cls, latents: list[Json]) -> "Scale":
        """One that holds every number of the latents, and 0."""
        values = [0.0]
        for latent in latents:
            found = latent["numbers"]
            values += latent["draws"] if found is None else [*latent["draws"], found["low"], found["high"]]
        low, high = min(values), max(values)
        room = 0.04 * (high - low) or 1.0
        return cls(low - room, high + room)

    def at(self, value: float) -> float:
        """The place of a value."""
        return round((value - self.low) / (self.high - self.low) * WIDTH, 1)

    def strip(self, latent: Json) -> Json | None:
        """Places of the draws, of the interval and of 0; None for a latent without an effect."""
        found = latent["numbers"]
        if found is None:
            return None
        ends = {key: self.at(found[key]) for key in ("effect", "low", "high")}
        return ends | {"draws": [self.at(value) for value in latent["draws"]], "zero": self.at(0.0)}
