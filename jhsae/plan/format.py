"""The text that ``jhsae plan`` prints: the verdict, then memory and time by cause."""

from typing import Any

Row = dict[str, Any]
DAY = 86_400
LISTED = 30  # operations whose traffic is printed
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BOUND = {
    "arithmetic": "matrix products",
    "memory": "main memory (HBM)",
    "ici": "the links between chips (ICI)",
    "dcn": "the network between slices (DCN)",
}


def format_plan(plan: Row) -> str:
    """The whole text."""
    parts = [_head(plan), _verdict(plan), _memory(plan)]
    if plan["flops"] is not None:
        parts += [_time(plan), _collectives(plan), _assumed(plan)]
    if plan.get("traffic"):
        parts.append(_traffic(plan))
    if len(plan["meshes"]) > 1:
        parts.append(_meshes(plan))
    if plan.get("harvest"):
        parts.append(_harvest(plan["harvest"]))
    return "\n\n".join(parts)


def format_mesh(row: Row) -> str:
    """One mesh in one line."""
    if not row["fits"]:
        return f"{gib(row['bytes_per_chip'])} a chip, which does not fit"
    return f"{gib(row['bytes_per_chip'])} a chip" + (f", {seconds(row['step_seconds'])} a step" if row["times"] else "")


def _head(plan: Row) -> str:
    mesh = _mesh(plan)
    return (
        f"{plan['config']} on {plan['topology']}: {plan['chips']} chips as {mesh}\n"
        f"{amount(plan['parameters'])} parameters, {plan['tokens_per_step']:,} tokens a step "
        f"({plan['tokens_per_step'] / plan['chips']:,.0f} a chip), stage {plan['stage']}, precision {plan['precision']}"
    )


def _verdict(plan: Row) -> str:
    if not plan["fits"]:
        more = plan["bytes_per_chip"] / plan["hbm_bytes"]
        return f"DOES NOT FIT: {gib(plan['bytes_per_chip'])} a chip, {more:.1f} times its {gib(plan['hbm_bytes'])}"
    memory = "" if plan["hbm_bytes"] is None else f" of {gib(plan['hbm_bytes'])}"
    lines = [f"FITS: {gib(plan['bytes_per_chip'])}{memory} a chip"]
    if plan["step_seconds"] is not None:
        lines += [
            f"{seconds(plan['step_seconds'])} a step, bound by {BOUND[plan['times']['bound']]}; "
            f"{amount(plan['tokens_per_second'])} tokens/s",
            f"{plan['tokens'] / 1e9:,.2f} G tokens in {plan['steps']:,} steps: {_long(plan['days'])}, "
            f"reading {amount(plan['input_bytes_per_second'])}B/s ({_each_host(plan)})",
        ]
    return "\n".join(lines)


def _each_host(plan: Row) -> str:
    return f"{amount(plan['input_bytes_per_second'] / plan['hosts'])}B/s on each of {plan['hosts']} hosts"


def _memory(plan: Row) -> str:
    words = {
        "parameters": "parameters",
        "optimizer": "optimizer",
        "batch_and_outputs": "batch, statistics, outputs",
        "temporaries": "temporaries",
    }
    rows = [[word, gib(plan["memory"][key])] for key, word in words.items() if plan["memory"][key] is not None]
    return "\n".join(["memory of a chip", *_table([*rows, ["total", gib(plan["bytes_per_chip"])]])])


def _time(plan: Row) -> str:
    lines = [f"work of a chip in a step: {amount(plan['flops'])}FLOP, {amount(plan['hbm_traffic'])}B of HBM traffic"]
    if (times := plan["times"]) is None:
        return "\n".join([*lines, "no times: the rates of a CPU are unknown"])
    rows = [
        ["matrix products", seconds(times["arithmetic"])],
        ["HBM traffic", seconds(times["memory"])],
        ["both, overlapped within an operation", seconds(times["chip"])],
        ["+ exchange over ICI", seconds(times["ici"])],
        *([["+ exchange over DCN", seconds(times["dcn"])]] if times["dcn"] else []),
    ]
    return "\n".join([*lines, *_table(rows)])


def _collectives(plan: Row) -> str:
    if not plan["collectives"]:
        return "no exchange between chips"
    head = ["exchange of a chip in a step", "over", "chips", "net", "count", "payload", "sent", "time"]
    rows = [
        [
            row["kind"],
            row["axes"],
            str(row["group"]),
            row["network"].upper() if row["seconds"] is not None else "-",
            f"{row['count']:,}",
            amount(row["bytes"]) + "B",
            amount(row["sent_bytes"]) + "B",
            "-" if row["seconds"] is None else seconds(row["seconds"]),
        ]
        for row in plan["collectives"]
    ]
    return "\n".join(_table([head, *rows], indent=0))


def _assumed(plan: Row) -> str:
    lines = [
        "A lower bound of computing: no latency, no elementwise arithmetic, sorts and gathers by their bytes alone.",
        "The exchange is added to it as if none of it were hidden.",
    ]
    expected = [loop for loop in plan["loops"] if loop["how"] == "expected"]
    once = sum(loop["how"] == "once" for loop in plan["loops"])
    if expected:
        trips = ", ".join(sorted({f"{loop['trips']} of {loop['most']}" for loop in expected}))
        lines.append(f"{len(expected)} loops over tiles: {trips} trips, if all experts are chosen equally often.")
    if early := [loop["trips"] for loop in plan["loops"] if loop["how"] == "most"]:
        trips = ", ".join(map(str, sorted(set(early))))
        lines.append(f"{len(early)} loops of {trips} trips may end before, and are counted whole.")
    if once:
        lines.append(f"{once} loops of unknown length are counted once.")
    if plan["kernels"]:
        lines.append(f"{plan['kernels']} calls of hand-written kernels: their FLOPs are not counted.")
    compiler = plan["compiler"]
    if compiler["flops"]:
        lines.append(
            f"Check: every loop run once is {amount(compiler['our_flops_loops_once'])}FLOP of products; the compiler "
            f"counts {amount(compiler['flops'])}FLOP, elementwise included."
        )
    return "\n".join(lines)


def _traffic(plan: Row) -> str:
    """The operations with the most traffic; --json has all of them."""
    most, whole = plan["traffic"][:LISTED], plan["hbm_traffic"]
    head = ["HBM traffic of a chip in a step, by operation", "bytes", "part", "runs", "line"]
    rows = [
        [row["operation"], amount(row["bytes"]) + "B", f"{row['bytes'] / whole:.1%}", f"{row['runs']:,}", row["source"]]
        for row in most
    ]
    left = whole - sum(row["bytes"] for row in most)
    rest = [[f"{len(plan['traffic']) - len(most)} others", amount(left) + "B", f"{left / whole:.1%}", "", ""]]
    return "\n".join(_table([head, *rows, *(rest if len(plan["traffic"]) > len(most) else [])], indent=0))


def _meshes(plan: Row) -> str:
    head = ["mesh", "memory", "fits", "products", "HBM", "exchange", "step", "tokens/s"]
    rows = []
    for row in plan["meshes"]:
        times, mark = row["times"], "  <- recommended" if row["mesh"] == plan["mesh"] else ""
        words = [seconds(times[key]) for key in ("arithmetic", "memory", "exchange")] if times else ["-"] * 3
        step = [seconds(row["step_seconds"]), amount(row["tokens_per_second"])] if times else ["-", "-"]
        rows.append([_mesh(row), gib(row["bytes_per_chip"]), "yes" if row["fits"] else "NO", *words, *step, mark])
    return "\n".join(_table([[*head, ""], *rows], indent=0))


def _harvest(plan: Row) -> str:
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    line = f"harvest {plan['config']}: {gib(plan['bytes_per_chip'])} a chip, {verdict}"
    if plan["step_seconds"] is None:
        return line
    return (
        f"{line}; {seconds(plan['step_seconds'])} for {plan['tokens_per_step']:,} tokens, bound by "
        f"{BOUND[plan['times']['bound']]}; {amount(plan['tokens_per_second'])} tokens/s, {_long(plan['days'])} for "
        f"{plan['rows'] / 1e9:,.2f} G rows, writing {amount(plan['output_bytes_per_second'])}B/s"
    )


def _mesh(row: Row) -> str:
    return f"data {row['mesh']['data']} x expert {row['mesh']['expert']}"


def _table(rows: list[list[str]], indent: int = 2) -> list[str]:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        words = [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(" " * indent + "  ".join(words).rstrip())
    return lines


def gib(count: float | int) -> str:
    """Bytes in GiB, small ones in MiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 0.095 * 2**30 else f"{count / 2**20:,.2f} MiB"


def amount(count: float | int) -> str:
    """Three digits and an SI prefix: 1.23 G."""
    for unit, letter in UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return f"{count:.3g} "


def seconds(count: float | int) -> str:
    """A time in s, ms or us."""
    return f"{count:.3g} s" if count >= 1 else f"{count * 1e3:.3g} ms" if count >= 1e-3 else f"{count * 1e6:.3g} us"


def _long(days: float | int) -> str:
    return f"{days:.3g} days" if days >= 1 else f"{days * 24:.3g} hours" if days >= 1 / 24 else seconds(days * DAY)
