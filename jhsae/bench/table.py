"""The tables that ``jhsae bench`` prints."""

from collections.abc import Sequence
from typing import Any

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: int) -> str:
    """Bytes with a binary prefix."""
    number, unit = float(count), 0
    while number >= 1024 and unit < len(UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.3g} {UNITS[unit]}" if number < 1000 else f"{number:.0f} {UNITS[unit]}"


def duration(milliseconds: float) -> str:
    """Milliseconds in ms or s."""
    return f"{milliseconds:.4g} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.4g} s"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns; the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def range_cells(spread: dict[str, float]) -> list[str]:
    """Median, minimum and maximum in milliseconds."""
    return [duration(spread["median"]), duration(spread["min"]), duration(spread["max"])]


def surroundings(result: dict[str, Any]) -> str:
    """Device, load, versions and commit in one line."""
    load = f"load {result['load_before'][0]:.2f} before, {result['load_after'][0]:.2f} after"
    commit = (result["commit"] or "no commit")[:12] + ("-dirty" if str(result["commit"]).endswith("-dirty") else "")
    versions = f"jax {result['versions']['jax']}, Python {result['versions']['python']}"
    device = f"{result['platform']} ({result['device_kind']}), {result['cpu_count']} processors"
    return f"{device}; {load}; {versions}; {commit}"


def head(result: dict[str, Any]) -> list[str]:
    """Shape and environment."""
    return [", ".join(f"{name} {number:,}" for name, number in result["shape"].items()), surroundings(result), ""]


def step_table(result: dict[str, Any]) -> str:
    """The table of ``jhsae bench step``."""
    rows = [["one update", "median", "least", "most", "tokens/s", "memory", "temporaries"]]
    for name, tokens in result["tokens"].items():
        spread, memory = result[f"{name}_ms"], result["memory"][name]
        rate = f"{1000 * tokens / spread['median']:,.0f}"
        rows.append([name, *range_cells(spread), rate, size(memory["total"]), size(memory["temp"])])
    lines = [*head(result), grid(rows), ""]
    if "speedup" in result:
        verdict = "equal" if result["equal"] else "NOT EQUAL: these are times of two different functions"
        lines += [
            f"loss error {result['loss_error']:.1e}, gradient error {result['gradient_error']:.1e}: {verdict}",
            f"memory {result['memory_ratio']:.1f} times less, temporaries {result['temp_ratio']:.1f} (by the compiler)",
        ]
    ratios = [name for name in result if f"{name}_min" in result]
    lines += [f"{name} {_span(result, name)} over {result['rounds']} rounds" for name in ratios]
    return "\n".join(lines)


def ops_table(result: dict[str, Any]) -> str:
    """The table of ``jhsae bench ops``."""
    rows = [["op", "alternative", "median", "least", "most", "over first", "temporaries", "error"]]
    for row in result["rows"]:
        ratio, temp = f"{row['over_first']['median']:.2f}", size(row["memory"]["temp"])
        rows.append([row["op"], row["alternative"], *range_cells(row["ms"]), ratio, temp, f"{row['error']:.1e}"])
    return "\n".join([*head(result), grid(rows)])


def loader_table(result: dict[str, Any]) -> str:
    """The table of ``jhsae bench loader``."""
    rows = [["", "median", "least", "most"]]
    for name, title in (
        ("loader_rows_per_second", "loader alone, rows/s"),
        ("step_tokens_per_second", "step alone, tokens/s"),
        ("both_tokens_per_second", "step fed by the loader, tokens/s"),
    ):
        rows.append([title, *(f"{result[name][key]:,.0f}" for key in ("median", "min", "max"))])
    return "\n".join(
        [
            *head(result),
            grid(rows),
            "",
            f"the loader gives {result['loader_gb_per_second']:.3g} GB/s ({result['settings']['dtype']} as stored), "
            f"{_ratio(result['loader_over_step'])} times what the step takes",
            f"fed by it the step runs at {_ratio(result['both_over_step'])} of its speed",
        ]
    )


def run_table(result: dict[str, Any]) -> str:
    """The table of ``jhsae bench run``."""
    rows = [["", "tokens", "seconds", "tokens/s", "running", "waits for input", "CPU s/s", "peak memory"]]
    for name, phase in result["phases"].items():
        running, share = phase["running_tokens_per_second"], phase["input_share"]
        rows.append(
            [
                name,
                f"{phase['tokens']:,}",
                f"{phase['seconds']:.1f}",
                f"{phase['tokens_per_second']:,.0f}",
                "" if running is None else f"{running:,.0f}",
                "" if share is None else f"{100 * share:.1f} %",
                f"{phase['cpu_per_second']:.2f}",
                size(phase["peak_rss"]),
            ]
        )
    return "\n".join(
        [
            *head(result),
            grid(rows),
            "",
            "tokens/s: of the command; running: tokens/s without start-up and compilation; whole: tokens trained on",
        ]
    )


def _ratio(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def _span(result: dict[str, Any], name: str) -> str:
    return f"{result[name]:.2f} ({result[f'{name}_min']:.2f} to {result[f'{name}_max']:.2f})"
