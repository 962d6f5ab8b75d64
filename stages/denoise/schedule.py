"""Which passes a chunk has, over which frames, with which steps. A family may bring its own (`schedule.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from conf import families
from conf.errors import UserError
from conf.schema import ModelConfig
from stages.denoise.sampler import Step, steps_of


class Version(NamedTuple):
    """A version of the attention sink.

    Attributes:
        source: the chunk that it is made from; -1: a given reference.
        in_force_from: the first chunk that reads it.
        kind: the pass that makes it: a `prefill` of a frame, or the `commit` of a chunk that joins the attention sink.
    """

    source: int
    in_force_from: int
    kind: str = "prefill"


@dataclass(frozen=True)
class Schedule:
    """Passes of a stream.

    Attributes:
        steps: of every chunk, from noise to clean.
        chunk_frames, ring_frames: latent frames of a chunk, and of the window that rolls.
        sink_frames: first generated frames of the attention sink.
        clean: whether every finished chunk is written by a clean pass.
        seeded: whether the first chunk's last step is run again in every bank.
        joint: whether chunks at all steps are denoised together: step s of a chunk goes over the s chunks behind it,
            too, at the steps before s, and only chunk 0 has other steps than the last.
        recache_chunks: finished chunks that a new prompt runs again, at most; 0: it runs none.
        versions: of the attention sink, in the order they take effect.
    """

    steps: tuple[Step, ...]
    chunk_frames: int
    ring_frames: int
    sink_frames: int = 0
    clean: bool = False
    seeded: bool = False
    joint: bool = False
    recache_chunks: int = 0
    versions: tuple[Version, ...] = ()

    @property
    def renewed(self) -> Version | None:
        """The version whose reference is a generated frame; None: there is none."""
        return next((v for v in self.versions if v.kind == "prefill" and v.source >= 0), None)

    @property
    def kept(self) -> int:
        """Finished chunks of which something is kept for later ones, at most."""
        return max(self.recache_chunks, int(self.joint))

    def first_step(self, chunk: int) -> int:
        """The step with which the passes of `chunk` begin."""
        return len(self.steps) - 1 if self.joint and chunk else 0

    def together(self, step: int) -> range:
        """Steps at which the chunks are that are in one pass: the chunk whose step it is, and those behind it."""
        return range(step, -1, -1) if self.joint else range(step, step + 1)

    def joins(self, chunk: int) -> range:
        """Chunks whose noise enters with `chunk`: its own, or where chunks are denoised together the last of those."""
        ahead = len(self.steps) - 1 if self.joint else 0
        return range(chunk + ahead if chunk else 0, chunk + ahead + 1)

    def commits(self, chunk: int) -> bool:
        """Whether `chunk` is written by a clean pass when it is finished, or is what banks are seeded with."""
        return self.clean or chunk * self.chunk_frames < self.sink_frames or (self.seeded and chunk == 0)

    def recached(self, chunk: int) -> range:
        """Finished chunks that are run again where a bank is made anew before `chunk`.

        All of them while none was dropped, the attention sink's with them; later the ring's, and the attention sink
        stays as it was read first (arXiv 2509.22622, as its published code does it).
        """
        end, count = chunk * self.chunk_frames, self.chunk_frames
        start = 0 if end <= self.sink_frames + self.ring_frames else end - self.ring_frames
        return range(start // count, end // count)


def configured(model: ModelConfig) -> Schedule:
    """What the configuration's rules give."""
    versions = [Version(-1, 0)] if model.reference else []
    if model.rule.seeded:
        versions += [Version(0, 1, "commit")]
    elif not model.rule.commits and not model.slots:
        versions += [Version(j, j + 1, "commit") for j in range(model.sink_frames // model.chunk_frames)]
    if model.recalibrate_chunk is not None:
        versions.append(Version(0, model.recalibrate_chunk))
    return Schedule(
        steps_of(model),
        model.chunk_frames,
        model.ring_frames,
        0 if model.slots else model.sink_frames,
        model.rule.commits,
        model.rule.seeded,
        model.rule.joint,
        model.recache_chunks,
        tuple(sorted(versions, key=lambda v: v.in_force_from)),
    )


def schedule_of(model: ModelConfig) -> Schedule:
    """A model's schedule: its family's, or what the configuration gives.

    Raises:
        UserError: the family's has another number of steps than `model.steps`, by which plans are made.
        ValueError: it says otherwise what plans and banks read in the configuration.
    """
    own, told = families.part(families.FAMILIES, model.family, "schedule"), configured(model)
    if own is None:
        return told
    made = own.schedule(model)
    if len(made.steps) != model.step_count:
        raise UserError(
            f"model.steps={model.step_count}",
            f"family {model.family} has {len(made.steps)} steps",
            f"set model.steps={len(made.steps)}",
        )
    if replace(made, steps=told.steps, versions=told.versions) != told:
        raise ValueError(f"the schedule of family {model.family} may differ in steps and versions, and says more")
    return made
