"""A study from poles, from its checks to its pages."""

from pathlib import Path

from jhsae.commands.ablation.config import Ablate
from jhsae.commands.ablation.effects import summarised
from jhsae.commands.ablation.heldout import held_out
from jhsae.commands.ablation.markdown import markdown
from jhsae.commands.ablation.plan import Study
from jhsae.commands.ablation.work import RESULTS, evaluation_hash, read_rows, work, work_together
from jhsae.commands.last_line import last_line, opened
from jhsae.files.folders import make_folder, write_whole
from jhsae.report.ablation import render

TABLE, PAGE = "table.md", "ablation.html"


def run_study(config: Ablate, out: Path) -> Path:
    """Runs what has no row yet, and writes the table and the page of all rows.

    Args:
        config: with poles.
        out: its folder, owned by this process.

    Raises:
        UserError: an axis, a value, a size or data that cannot be, before anything is trained; or no result at all.
    """
    values = sum(map(len, config.axes.values()))
    print(f"{len(config.poles)} poles, {values} values of axes: every arm is built as shapes first, ...", flush=True)
    study, rows_of = Study(config), held_out(config)
    print(f"... {len(study.arms)} arms", flush=True)
    evaluation = evaluation_hash(config, rows_of)
    make_folder(out)
    if config.processes > 1:
        work_together(study)
    else:
        work(study)
    rows = read_rows(config, evaluation)
    summary = summarised(study, rows)
    write_whole(out / TABLE, markdown(summary))
    write_whole(out / PAGE, render(summary, f"Ablation: {', '.join(config.poles)}"))
    print(markdown(summary))
    numbers = [f"{len(rows)} rows of {len(summary['arms'])} arms", RESULTS, TABLE, PAGE]
    if summary["failures"]:
        numbers.append(f"{len(summary['failures'])} arms without a result, see {TABLE}")
    print(last_line(out, numbers, opened(out / PAGE)))
    return out
