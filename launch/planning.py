"""From a run's configuration to the planner and back: what is spread, on what, for whom."""

from __future__ import annotations

from dataclasses import replace

from conf.errors import UserError
from conf.schema import ClusterConfig, Config
from launch import clusters, here
from launch.places import settled
from parallel.cluster import Cluster, Subject
from parallel.plan import Workload
from parallel.planner import Choice, check_devices, choose
from parallel.predict import Demand
from parallel.simulated import simulated
from runtime.arithmetic import decoded_pixels, rule_cost
from runtime.encoders import Picture
from runtime.stage_bytes import stage_bytes
from runtime.workload import absent, describe
from stages.build import TEMPORAL_STRIDE
from stages.inputs import controls_of, inputs_of


def subject(config: Config) -> Subject:
    """A run's model, as times are found for it."""
    picture, cost = Picture.of(config.model, config.stream), rule_cost(config)
    commit = cost.commit
    return Subject(
        model=config.model.name,
        height=picture.height,
        width=picture.width,
        dtype=config.model.dtype,
        steps=config.model.step_count,
        layer_flops=tuple(work.flops for work in cost.step.layers),
        commit_flops=tuple(work.flops for work in commit.layers) if commit else (),
        once_flops=tuple(work.flops for work in cost.once),
        copied=cost.step.rule.bytes,
        commit_copied=commit.rule.bytes if commit else 0.0,
        decode_pixels=decoded_pixels(config),
    )


def demand(config: Config) -> Demand:
    """What is asked of a run's plan. What is driven live goes at the speed of life; nothing else holds chunks back."""
    model = config.model
    return Demand(
        frames=model.chunk_frames * TEMPORAL_STRIDE,
        fps=model.fps,
        streams=config.stream.count,
        interactive=controls_of(inputs_of(model)) is not None,
        paced=config.source.paced,
        max_control_latency_s=config.stream.max_control_latency_s,
    )


def cluster_of(config: Config) -> Cluster:
    """A run's cluster, with times of its model; where none is named, this machine (or the emulated one).

    Raises:
        UserError: its file is broken, has no devices, or says nothing about this model.
    """
    given = config.cluster
    if not _listed(given):
        given = _found(config)
    return Cluster.of(clusters.load(given), subject(config))


def _listed(given: ClusterConfig) -> bool:
    """Whether a cluster says its devices; else they are found."""
    return bool(given.devices or given.file)


def _found(config: Config) -> ClusterConfig:
    measured = config.cluster.measured
    if config.device.kind != "emulated":
        return here.cluster([here.machine(settled(config))], measured)
    if config.plan.workers is None:
        rule = "plan.workers says how many emulated devices there are, and is not set"
        raise UserError("device=emulated", rule, "set plan.workers=5")
    return replace(clusters.emulated(config, config.plan.workers), measured=measured)


def workload_of(config: Config) -> Workload:
    """What is spread, with what its stages take of memory; or with the sizes that emulated messages have."""
    workload, e = describe(config), config.device.emulated
    if config.device.kind != "emulated":
        return replace(workload, taken=stage_bytes(config))
    return replace(
        workload,
        latent_bytes=e.latent_bytes or workload.latent_bytes,
        hidden_bytes=e.hidden_bytes or workload.hidden_bytes,
    )


def missing_encoders(config: Config) -> dict[str, int]:
    """Bytes of published encoders that a run will need and names no file of yet, by their settings. What
    `source.tensors` gives needs none."""
    return {} if config.source.tensors or config.device.kind == "emulated" else absent(config.model)


def planned(config: Config) -> Workload:
    """What is to be spread once the files of all encoders are there."""
    workload = workload_of(config)
    return replace(workload, encode_bytes=workload.encode_bytes + sum(missing_encoders(config).values()))


def choice_of(config: Config) -> Choice:
    """The best plan for a run with `plan=auto`. Raises as `parallel.planner.rank` does."""
    return choose(workload_of(config), cluster_of(config), demand(config), config.objective, config.plan, simulated)


def resolve(config: Config) -> Config:
    """The configuration with `plan=auto` replaced by the plan that was chosen, and `device=auto` by the processor where
    a GPU would be no gain; all else is left as it is.

    The same configuration always gives the same plan, so processes that resolve it for themselves agree.

    Raises:
        UserError: no plan fits, none is fast enough to be steered, or a plan names devices that its cluster has not.
    """
    config = settled(config)
    if config.plan.name != "auto":
        if config.plan.devices is not None and _listed(config.cluster):
            cluster = clusters.load(config.cluster)
            check_devices(config.plan.devices, sum(group.count for group in cluster.devices), cluster.name)
        return config
    choice = choice_of(config)
    device = config.device
    if device.kind == "emulated" and device.emulated.speeds:
        # Emulated speeds are the workers', so they move with the placement.
        plan, given = choice.plan, device.emulated.speeds
        first = [choice.placement[plan.group(w)[0]] for w in range(plan.workers)]
        speeds = [given[d] if d < len(given) else 1.0 for d in first]
        device = replace(device, emulated=replace(device.emulated, speeds=speeds))
    return replace(config, plan=choice.config, device=device)
