"""Parts and keys that were renamed: one table from the name that was published to the name now.

Saved runs, exported SAEs and configs name their parts by import path, and config hashes cover those names and their
keys. A file may move all the same: its old name goes into `MOVED`, a renamed key into `KEYS`, every reader follows
them, and hashes are taken over the published names, so that nothing that was saved or printed changes. Scripts may
import a module by its old name as well (`jhsae.moved`).
"""

from collections.abc import Callable, Mapping
from typing import Any

# Published name -> import path now, the oldest name first: a row per name, so that what moves again changes its rows.
# A row of a module or package covers every name in it.
MOVED: dict[str, str] = {
    "jhsae.ablate": "jhsae.commands.ablate",
    "jhsae.browse": "jhsae.commands.browse",
    "jhsae.evaluate": "jhsae.commands.evaluate",
    "jhsae.export": "jhsae.commands.export",
    "jhsae.harvest": "jhsae.commands.harvest",
    "jhsae.import_": "jhsae.commands.import_",
    "jhsae.quickstart": "jhsae.commands.quickstart",
    "jhsae.teach": "jhsae.commands.teach",
    "jhsae.train": "jhsae.commands.train",
    "jhsae.harvest.Harvest": "jhsae.activations.config.Harvest",
    "jhsae.harvest.Source": "jhsae.activations.config.Source",
    "jhsae.report.Report": "jhsae.commands.report.Report",
    "jhsae.report.run": "jhsae.commands.report.run",
    "jhsae.live": "jhsae.activations.live",
    "jhsae.live_buffer": "jhsae.activations.buffer",
    "jhsae.streams": "jhsae.activations.streams",
    "jhsae.fill": "jhsae.activations.fill",
    "jhsae.checkpoint": "jhsae.training.checkpoint",
    "jhsae.fitting": "jhsae.training.fit",
    "jhsae.logs": "jhsae.training.logs",
    "jhsae.loop": "jhsae.training.loop",
    "jhsae.run_config": "jhsae.training.config",
    "jhsae.run_folder": "jhsae.training.run_folder",
    "jhsae.step": "jhsae.training.step",
    "jhsae.mesh": "jhsae.parallel.mesh",
    "jhsae.devices": "jhsae.parallel.mesh",
    "jhsae.mesh.shard_state": "jhsae.training.sharding.shard_state",
    "jhsae.mesh.state_shardings": "jhsae.training.sharding.state_shardings",
    "jhsae.distributed": "jhsae.parallel.distributed",
    "jhsae.peers": "jhsae.parallel.watchdog",
    "jhsae.preemption": "jhsae.parallel.preemption",
    "jhsae.evals.contexts": "jhsae.features.contexts",
    "jhsae.evals.firings": "jhsae.features.firings",
    "jhsae.evals.latents": "jhsae.features.latents",
    "jhsae.evals.logits": "jhsae.features.decoder",
    "jhsae.evals.origin": "jhsae.features.origin",
    "jhsae.evals.rows": "jhsae.features.decoder",
    "jhsae.evals.search": "jhsae.features.latents",
    "jhsae.evals.firings.firings": "jhsae.features.firings.firing_table",
    "jhsae.evals.logits.token_strings": "jhsae.features.token_text.token_text",
    "jhsae.evals.search.token_ids": "jhsae.features.token_text.token_ids",
    "jhsae.evals.search.word_ids": "jhsae.features.token_text.word_ids",
    "jhsae.evaluate._pieces": "jhsae.features.token_text.texts",
    "jhsae.browser.members": "jhsae.browser.entries",
    "jhsae.interop.coactivation": "jhsae.features.coactivation",
    "jhsae.interop.pairs": "jhsae.features.spill",
    "jhsae.interop.parity": "jhsae.parity.compare",
    "jhsae.interop.golden": "jhsae.parity.golden",
    "jhsae.interop.saelens_plugin": "jhsae.interop.saelens.plugin",
    "jhsae.interop.saelens_read": "jhsae.interop.saelens.read",
    "jhsae.interop.saelens_write": "jhsae.interop.saelens.write",
    "jhsae.folders": "jhsae.files.folders",
    "jhsae.revival": "jhsae.resampling",
    "jhsae.revival.Never": "jhsae.resampling.NoResampling",
    "jhsae.saved_sae": "jhsae.sae.io",
    "jhsae.wordnet": "jhsae.data.wordnet",
    "jhsae.constraint.Free": "jhsae.constraint.Unconstrained",
    "jhsae.bench.batch": "jhsae.bench.inputs",
    "jhsae.bench.batch.Load": "jhsae.bench.inputs.ExpertUse",
    "jhsae.bench.shape": "jhsae.bench.inputs",
    "jhsae.bench.cases": "jhsae.bench.ops",
    "jhsae.bench.equality": "jhsae.bench.step",
    "jhsae.bench.equality.compare": "jhsae.bench.step.compare_gradients",
    "jhsae.bench.machine": "jhsae.bench.measurement",
    "jhsae.bench.machine.machine": "jhsae.bench.measurement.environment",
    "jhsae.bench.memory": "jhsae.bench.measurement",
    "jhsae.bench.timing": "jhsae.bench.measurement",
    "jhsae.bench.timing.Spread": "jhsae.bench.measurement.MedianRange",
    "jhsae.bench.timing.Times": "jhsae.bench.measurement.Timings",
    "jhsae.bench.theirs": "jhsae.bench.original",
    "jhsae.config.describe": "jhsae.config.describe_keys",
    "jhsae.data.synthetic.Labels": "jhsae.data.synthetic.TrueCodes",
    "jhsae.interop.tensors.brief": "jhsae.files.forms.brief",
    "jhsae.interop.tensors.count": "jhsae.files.forms.count",
    "jhsae.interop.tensors.setting": "jhsae.files.forms.setting",
    "jhsae.interop.tensors.text": "jhsae.files.forms.text",
    "jhsae.lm.weights.fill": "jhsae.lm.weights.load_weights",
    "jhsae.plan.chips": "jhsae.plan.topology",
    "jhsae.plan.links": "jhsae.plan.collectives",
    "jhsae.plan.links.Places": "jhsae.plan.topology.Places",
    "jhsae.plan.links.seconds": "jhsae.plan.collectives.transfer_seconds",
    "jhsae.plan.loops.Tiles": "jhsae.plan.loops.TileLoad",
    "jhsae.plan.products": "jhsae.plan.cost",
    "jhsae.plan.traffic": "jhsae.plan.cost",
    "jhsae.plan.planned": "jhsae.plan.estimate",
    "jhsae.plan.planned.planned": "jhsae.plan.estimate.estimate",
    "jhsae.plan.program": "jhsae.plan.estimate",
    "jhsae.plan.program.sizes_of": "jhsae.plan.estimate.memory_of",
    "jhsae.plan.roofline": "jhsae.plan.estimate",
    "jhsae.plan.roofline.Times": "jhsae.plan.estimate.StepTime",
    "jhsae.plan.roofline.times_of": "jhsae.plan.estimate.step_time",
    "jhsae.plan.page": "jhsae.plan.format",
    "jhsae.plan.page.page": "jhsae.plan.format.format_plan",
    "jhsae.plan.page.brief": "jhsae.plan.format.format_mesh",
    "jhsae.plan.meshes": "jhsae.plan.compare",
    "jhsae.plan.run": "jhsae.plan.compare",
    "jhsae.plan.training": "jhsae.plan.lowering",
    "jhsae.plan.training.lower": "jhsae.plan.lowering.lower_train",
    "jhsae.plan.training.tiles_of": "jhsae.plan.lowering.tile_load",
    "jhsae.plan.harvesting": "jhsae.plan.lowering",
    "jhsae.plan.harvesting.lower": "jhsae.plan.lowering.lower_harvest",
    "jhsae.plan.harvesting.settings_of": "jhsae.plan.lowering.read_lm_config",
    "jhsae.teacher.Limits": "jhsae.teacher.SelectionLimits",
    "jhsae.teacher.numbers": "jhsae.teacher.checks",
    "jhsae.losses.dead": "jhsae.losses.revive",
    "jhsae.ops.noise": "jhsae.ops.topk",
    "jhsae.ops.spread": "jhsae.ops.sharding",
    "jhsae.ops.tile_products": "jhsae.ops.tiles",
    "jhsae.sae.Top": "jhsae.sae.TopLevel",
    "jhsae.sparsify.Encoded": "jhsae.sae.Encoded",
}

# Published key -> key now, for a config class and for a part (by its name now).
KEYS: dict[str, dict[str, str]] = {
    "Train": {"revival": "resampling", "keep": "max_to_keep", "sampling_window": "feature_sampling_window"},
}


def current(name: str) -> str:
    """The import path, today, of a part that was published as `name`."""
    return _renamed(name, MOVED)


def published(name: str) -> str:
    """The name under which the part that `name` means was first published."""
    back: dict[str, str] = {}
    for old, new in MOVED.items():
        back.setdefault(new, old)
    return _renamed(current(name), back)


def current_key(owner: Any, key: str) -> str:
    """The key, today, that `key` means in a config class of the name `owner`, or in the part `owner`."""
    return KEYS.get(current(owner), {}).get(key, key) if isinstance(owner, str) else key


def with_current_keys(value: Any, owner: Any = None) -> Any:
    """Plain data with today's keys; the names at `_target_` stay as they were written."""
    return _with_names(value, owner, str, current_key)


def with_current_names(value: Any, owner: Any = None) -> Any:
    """Plain data with today's name at every `_target_`, and today's keys; `owner` is the config class of the whole."""
    return _with_names(value, owner, current, current_key)


def with_published_names(value: Any, owner: Any = None) -> Any:
    """Plain data with the published name at every `_target_`, and the published keys."""
    return _with_names(value, owner, published, _published_key)


def _published_key(owner: Any, key: str) -> str:
    back = {new: old for old, new in KEYS.get(current(owner), {}).items()} if isinstance(owner, str) else {}
    return back.get(key, key)


def _with_names(value: Any, owner: Any, name: Callable[[str], str], renamed: Callable[[Any, str], str]) -> Any:
    if isinstance(value, Mapping):
        owner = value.get("_target_", owner)
        return {
            renamed(owner, k): name(v)
            if k == "_target_" and isinstance(v, str)
            else _with_names(v, None, name, renamed)
            for k, v in value.items()
        }
    return [_with_names(v, None, name, renamed) for v in value] if isinstance(value, list) else value


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with the longest row of `table` that it is, or begins with, replaced, unless it is replaced already."""
    rows = [old for old in table if _begins(name, old) and not (_begins(table[old], old) and _begins(name, table[old]))]
    longest = max(rows, key=len, default="")
    return table[longest] + name[len(longest) :] if rows else name


def _begins(name: str, start: str) -> bool:
    return name == start or name.startswith(start + ".")
