"""Parts that moved: one table from the name that was published to the name now.

Saved runs, exported SAEs and configs name their parts by import path, and config hashes cover those names. A file may
move all the same: its old name goes into `MOVED`, every reader follows it, and hashes are taken over the published
names, so that nothing that was saved or printed changes. Scripts may import a module by its old name too (`jhsae`).
A renamed key of a config class is in the `RENAMED` of that class.
"""

from collections.abc import Callable, Mapping
from typing import Any

# Published name -> import path now, the oldest name first: a row per name, so that what moves again changes its rows.
# A row of a module or package covers every name in it.
MOVED: dict[str, str] = {
    "jhsae.ablate": "jhsae.commands.ablate",
    "jhsae.bench.arguments": "jhsae.commands.bench",
    "jhsae.bench.batch": "jhsae.bench.inputs",
    "jhsae.bench.batch.Load": "jhsae.bench.inputs.ExpertUse",
    "jhsae.bench.cases": "jhsae.bench.ops",
    "jhsae.bench.equality": "jhsae.bench.step",
    "jhsae.bench.equality.compare": "jhsae.bench.step.compare_gradients",
    "jhsae.bench.machine": "jhsae.bench.measurement",
    "jhsae.bench.machine.machine": "jhsae.bench.measurement.environment",
    "jhsae.bench.memory": "jhsae.bench.measurement",
    "jhsae.bench.shape": "jhsae.bench.inputs",
    "jhsae.bench.theirs": "jhsae.bench.original",
    "jhsae.bench.timing": "jhsae.bench.measurement",
    "jhsae.bench.timing.Spread": "jhsae.bench.measurement.MedianRange",
    "jhsae.bench.timing.Times": "jhsae.bench.measurement.Timings",
    "jhsae.browse": "jhsae.commands.browse",
    "jhsae.browser.members": "jhsae.browser.entries",
    "jhsae.checkpoint": "jhsae.training.checkpoint",
    "jhsae.constraint.Free": "jhsae.constraint.Unconstrained",
    "jhsae.data.synthetic": "jhsae.worlds.generators",
    "jhsae.devices": "jhsae.parallel.mesh",
    "jhsae.distributed": "jhsae.parallel.distributed",
    "jhsae.evals.contexts": "jhsae.features.contexts",
    "jhsae.evals.firings": "jhsae.features.firings",
    "jhsae.evals.firings.firings": "jhsae.features.firings.firing_table",
    "jhsae.evals.latents": "jhsae.features.latents",
    "jhsae.evals.logits": "jhsae.features.decoder",
    "jhsae.evals.logits.token_strings": "jhsae.features.token_text.token_text",
    "jhsae.evals.origin": "jhsae.features.origin",
    "jhsae.evals.rows": "jhsae.features.decoder",
    "jhsae.evals.search": "jhsae.features.latents",
    "jhsae.evals.search.token_ids": "jhsae.features.token_text.token_ids",
    "jhsae.evals.search.word": "jhsae.features.token_text.word",
    "jhsae.evals.search.word_ids": "jhsae.features.token_text.word_ids",
    "jhsae.evaluate": "jhsae.commands.evaluate",
    "jhsae.evaluate._pieces": "jhsae.features.token_text.texts",
    "jhsae.export": "jhsae.commands.export",
    "jhsae.fill": "jhsae.activations.fill",
    "jhsae.fingerprint": "jhsae.training.fingerprint",
    "jhsae.fingerprint.layout": "jhsae.training.fingerprint.shape_and_dtype",
    "jhsae.finishing_loop": "jhsae.training.drain_event_loop",
    "jhsae.finishing_loop.FinishingLoop": "jhsae.training.drain_event_loop.DrainingEventLoop",
    "jhsae.finishing_loop.loops_finish": "jhsae.training.drain_event_loop.draining_event_loops",
    "jhsae.fitting": "jhsae.training.fit",
    "jhsae.folders": "jhsae.files.folders",
    "jhsae.harvest": "jhsae.commands.harvest",
    "jhsae.harvest.Harvest": "jhsae.activations.config.Harvest",
    "jhsae.harvest.Source": "jhsae.activations.config.Source",
    "jhsae.import_": "jhsae.commands.import_",
    "jhsae.interop.coactivation": "jhsae.features.coactivation",
    "jhsae.interop.folders": "jhsae.files.checksums",
    "jhsae.interop.golden": "jhsae.parity.golden",
    "jhsae.interop.neuronpedia_examples": "jhsae.interop.neuronpedia.examples",
    "jhsae.interop.neuronpedia_features": "jhsae.interop.neuronpedia.features",
    "jhsae.interop.neuronpedia_tables": "jhsae.interop.neuronpedia.tables",
    "jhsae.interop.pairs": "jhsae.features.spill",
    "jhsae.interop.parity": "jhsae.parity.compare",
    "jhsae.interop.parity_moe": "jhsae.parity.moe",
    "jhsae.interop.parity_polytope": "jhsae.parity.polytope",
    "jhsae.interop.parity_saelens": "jhsae.parity.saelens",
    "jhsae.interop.saelens_layout": "jhsae.interop.saelens.layout",
    "jhsae.interop.saelens_normalize": "jhsae.interop.saelens.normalize",
    "jhsae.interop.saelens_plugin": "jhsae.interop.saelens.plugin",
    "jhsae.interop.saelens_read": "jhsae.interop.saelens.read",
    "jhsae.interop.saelens_read.Source": "jhsae.interop.saelens.read.SAELensFiles",
    "jhsae.interop.saelens_write": "jhsae.interop.saelens.write",
    "jhsae.live": "jhsae.activations.live",
    "jhsae.live_buffer": "jhsae.activations.buffer",
    "jhsae.logs": "jhsae.training.logs",
    "jhsae.loop": "jhsae.training.loop",
    "jhsae.loop.Phase": "jhsae.training.loop.Stage",
    "jhsae.losses.dead": "jhsae.losses.revive",
    "jhsae.mesh": "jhsae.parallel.mesh",
    "jhsae.mesh.shard_state": "jhsae.training.sharding.shard_state",
    "jhsae.mesh.state_shardings": "jhsae.training.sharding.state_shardings",
    "jhsae.ops.noise": "jhsae.ops.topk",
    "jhsae.ops.spread": "jhsae.ops.sharding",
    "jhsae.ops.spread.Layout": "jhsae.ops.sharding.ShardingKind",
    "jhsae.ops.spread.from_shards": "jhsae.ops.sharding.all_gather_experts",
    "jhsae.ops.spread.local": "jhsae.ops.sharding.to_local_index",
    "jhsae.ops.spread.mine": "jhsae.ops.sharding.local_slice",
    "jhsae.ops.spread.spread": "jhsae.ops.sharding.shard_mapped",
    "jhsae.ops.spread.spread_over": "jhsae.ops.sharding.sharded_over",
    "jhsae.ops.tile_products": "jhsae.ops.tiles",
    "jhsae.peers": "jhsae.parallel.watchdog",
    "jhsae.peers.Peers": "jhsae.parallel.watchdog.Watchdog",
    "jhsae.plan.arguments": "jhsae.commands.plan",
    "jhsae.plan.chips": "jhsae.plan.topology",
    "jhsae.plan.command": "jhsae.plan.compare",
    "jhsae.plan.harvesting": "jhsae.plan.lowering",
    "jhsae.plan.harvesting.lower": "jhsae.plan.lowering.lower_harvest",
    "jhsae.plan.harvesting.settings_of": "jhsae.plan.lowering.read_lm_config",
    "jhsae.plan.links": "jhsae.plan.collectives",
    "jhsae.plan.links.Places": "jhsae.plan.topology.Places",
    "jhsae.plan.links.seconds": "jhsae.plan.collectives.transfer_seconds",
    "jhsae.plan.meshes": "jhsae.plan.compare",
    "jhsae.plan.page": "jhsae.plan.format",
    "jhsae.plan.page.brief": "jhsae.plan.format.format_mesh",
    "jhsae.plan.page.page": "jhsae.plan.format.format_plan",
    "jhsae.plan.planned": "jhsae.plan.estimate",
    "jhsae.plan.planned.planned": "jhsae.plan.estimate.estimate",
    "jhsae.plan.products": "jhsae.plan.cost",
    "jhsae.plan.program": "jhsae.plan.estimate",
    "jhsae.plan.program.sizes_of": "jhsae.plan.estimate.memory_of",
    "jhsae.plan.roofline": "jhsae.plan.estimate",
    "jhsae.plan.roofline.Times": "jhsae.plan.estimate.StepTime",
    "jhsae.plan.roofline.times_of": "jhsae.plan.estimate.step_time",
    "jhsae.plan.run": "jhsae.plan.compare",
    "jhsae.plan.traffic": "jhsae.plan.cost",
    "jhsae.plan.training": "jhsae.plan.lowering",
    "jhsae.plan.training.lower": "jhsae.plan.lowering.lower_train",
    "jhsae.plan.training.tiles_of": "jhsae.plan.lowering.tile_load",
    "jhsae.preemption": "jhsae.parallel.preemption",
    "jhsae.quickstart": "jhsae.commands.quickstart",
    "jhsae.revival": "jhsae.resampling",
    "jhsae.revival.AbstractRevival": "jhsae.resampling.AbstractResampling",
    "jhsae.revival.Never": "jhsae.resampling.NoResampling",
    "jhsae.run_config": "jhsae.training.config",
    "jhsae.run_config.Stage": "jhsae.training.config.StageConfig",
    "jhsae.run_folder": "jhsae.training.run_folder",
    "jhsae.run_folder.begin": "jhsae.training.run_folder.write_metadata",
    "jhsae.run_folder.claim": "jhsae.training.run_folder.check_owner",
    "jhsae.saved_sae": "jhsae.sae.io",
    "jhsae.sharded": "jhsae.training.sharding",
    "jhsae.sharded.described": "jhsae.training.sharding.abstract_state",
    "jhsae.sharded.made": "jhsae.training.sharding.init_sharded",
    "jhsae.sharded.on_every_device": "jhsae.training.sharding.replicate",
    "jhsae.step": "jhsae.training.step",
    "jhsae.step.Parts": "jhsae.training.step.StageModules",
    "jhsae.streams": "jhsae.activations.streams",
    "jhsae.teach": "jhsae.commands.teach",
    "jhsae.teacher.numbers": "jhsae.teacher.checks",
    "jhsae.train": "jhsae.commands.train",
    "jhsae.train.build_sae": "jhsae.training.recipe.build_sae",
    "jhsae.wordnet": "jhsae.data.wordnet",
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


def with_current_names(value: Any) -> Any:
    """Plain data with today's name at every `_target_`."""
    return _with_names(value, current)


def with_published_names(value: Any) -> Any:
    """Plain data with the published name at every `_target_`."""
    return _with_names(value, published)


def _with_names(value: Any, name: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {
            k: name(v) if k == "_target_" and isinstance(v, str) else _with_names(v, name) for k, v in value.items()
        }
    return [_with_names(v, name) for v in value] if isinstance(value, list) else value


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with the longest row of `table` that it is, or begins with, replaced, unless it is replaced already."""
    rows = [old for old in table if _begins(name, old) and not (_begins(table[old], old) and _begins(name, table[old]))]
    longest = max(rows, key=len, default="")
    return table[longest] + name[len(longest) :] if rows else name


def _begins(name: str, start: str) -> bool:
    return name == start or name.startswith(start + ".")
