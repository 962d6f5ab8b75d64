"""What `launch.distill` trains: which model, on which clips, through which stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError, choice, positive
from conf.schema.model import ModelConfig

STAGES = ("vae", "clips", "teacher", "causal", "ode", "dmd")
KINDS = ("avatar", "world")
OPTIMIZERS = ("adamw", "muon")
WANDB = ("offline", "online", "disabled")


@dataclass
class ClipsConfig:
    """The library of training clips: drawn and encoded once, then read from disk."""

    kind: str = "avatar"
    """Which generator draws them."""
    count: int = 4000
    frames: int = 21
    """Latent frames of a stored clip; every stage reads its first so many."""
    seed: int = 0
    folder: str = "${run_dir}/clips"
    codec: str = "${model.codec.checkpoint}"
    """Weights of the encoder and decoder."""
    named: float = 0.85
    """Chance that the prompt names the emotion, and that it names the background; else the reference shows it."""

    def __post_init__(self):
        choice("clips.kind", self.kind, KINDS)
        for name in ("count", "frames"):
            positive(f"clips.{name}", getattr(self, name))


@dataclass
class StageConfig:
    """What all stages have in common."""

    init: str | None = None
    """Weights to begin with (a model's file); null: those of the stage before, or random ones for the first."""
    steps: int = 4000
    """When to stop. The learning rate falls towards this step, so a longer run is planned from the start."""
    batch: int = 16
    frames: int = 15
    """Latent frames of a training clip."""
    optimizer: str = "muon"
    """`adamw`, or `muon` for matrices with AdamW for the rest."""
    lr: float = 2e-3
    lr_end: float = 0.05
    """Share of the learning rate left at the last step (cosine)."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of a gradient."""
    ema: float = 0.999
    """Decay of the running average of the weights: what is measured, sampled, exported and handed on."""
    dropout: float = 0.1
    """Share of samples without text, without control (sound or actions) and without reference, each drawn by itself.
    """
    shift: float | None = None
    """Noise levels are uniform before this shift; null: the model's."""

    def __post_init__(self):
        choice("stages.*.optimizer", self.optimizer, OPTIMIZERS)
        for name in ("steps", "batch", "frames", "lr", "clip", "shift"):
            positive(f"stages.*.{name}", getattr(self, name))


@dataclass
class TeacherConfig(StageConfig):
    """Bidirectional flow matching over whole clips."""

    guidance: float = 1.0
    """Classifier-free guidance of its samples (1: none)."""
    sample_steps: int = 24


@dataclass
class CausalConfig(StageConfig):
    """Flow matching with the history that a stream will have."""

    same_level: float = 0.5
    """Share of steps in which all chunks have one noise level; in the others every chunk draws its own."""
    lr: float = 1e-3


@dataclass
class OdeConfig(StageConfig):
    """Regression of the causal model's ODE end points from its states at the few-step levels."""

    trajectories: int = 2000
    ode_steps: int = 24
    lr: float = 5e-4
    dropout: float = 0.0


@dataclass
class DmdConfig(StageConfig):
    """Self-rollout distribution-matching distillation."""

    rollout: str = "same_level"
    """`same_level`: step first, all chunks in one forward, live history gradient. `clean`: chunk by chunk over a
    clean history without gradient (arXiv 2506.08009)."""
    ratio: int = 5
    """Critic updates per generator update."""
    critic_warmup: int = 50
    """Updates of the critic alone, at the start."""
    lr: float = 5e-5
    critic_lr: float = 2e-4
    """The critic must keep up with the student: if its loss rises, raise this or `ratio`."""
    optimizer: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.0, 0.999])
    ema: float = 0.99
    guidance: float = 1.5
    """Classifier-free guidance of the real score: v = u + guidance (c - u)."""
    lowest: float = 0.02
    highest: float = 0.98
    """Noise levels at which scores are compared."""
    reward: str | None = None
    """Clips count by exp(reward / reward_beta) (Re-DMD): `motion` favours those that move as the data does."""
    reward_beta: float = 0.5
    forward_kl: float = 0.0
    """Weight of the flow-matching loss on data, at the first step's level: it holds motion against collapse."""
    steering: float = 0.0
    """Weight of the camera's verdict on decoded frames where latents meet: whether they show what the action asks."""
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        choice("stages.dmd.rollout", self.rollout, ("same_level", "clean"))
        if self.reward is not None:
            choice("stages.dmd.reward", self.reward, ("motion",))
        positive("stages.dmd.reward_beta", self.reward_beta)
        if not 0 <= self.lowest < self.highest <= 1:
            raise UserError(
                f"stages.dmd.lowest={self.lowest}", f"must be below highest={self.highest}, both in 0 to 1", "use 0.02"
            )


@dataclass
class StagesConfig:
    """Settings per stage, in the order in which they follow each other."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    causal: CausalConfig = field(default_factory=CausalConfig)
    ode: OdeConfig = field(default_factory=OdeConfig)
    dmd: DmdConfig = field(default_factory=DmdConfig)


@dataclass
class LogConfig:
    """What a run writes beside its checkpoint."""

    every: int = 20
    """Steps per line of the log."""
    sample_every: int = 500
    """Steps between strips of samples with their motion statistics."""
    save_s: float = 120.0
    """Seconds between checkpoints."""
    wandb: str = "offline"

    def __post_init__(self):
        choice("log.wandb", self.wandb, WANDB)


@dataclass
class DistillConfig:
    """One run of `launch.distill`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    log: LogConfig = field(default_factory=LogConfig)
    stage: str = "teacher"
    run_dir: str = "runs/${model.name}"
    """Clips lie in `clips/`, every stage in a folder of its name."""
    seed: int = 0
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: cuda where there is one."""
    threads: int = 1
    zero: int = 0
    """DeepSpeed ZeRO under torchrun: 2 spreads optimizer state and gradients over the processes, 3 weights too; 0: one
    process."""
    bf16: bool = True
    """Matrix products in bfloat16 on devices that gain by it; weights, norms and losses stay in float32."""
    export: str | None = None
    """Write the stage's averaged weights to this file and do nothing else."""

    def __post_init__(self):
        choice("stage", self.stage, STAGES)
        choice("device", self.device, ("auto", "cpu", "cuda"))
        positive("threads", self.threads)
        choice("zero", self.zero, (0, 2, 3))
