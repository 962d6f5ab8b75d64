"""What `launch.evaluate` measures: which model, how many streams of which length, beside what or under which rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from conf.errors import UserError, positive
from conf.paths import found
from conf.schema.distill import KINDS
from conf.schema.model import ModelConfig
from conf.schema.stream import check_folder, fresh_folder


@dataclass
class EvaluateConfig:
    """One run of `launch.evaluate`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cases: int = 8
    """Short streams: people, or walks through mazes."""
    seconds: float = 5.0
    """Length of a short stream."""
    long_cases: int = 2
    minutes: float = 10.0
    """Length of a long stream, for drift; 0: none."""
    segment_s: float = 60.0
    """Length of a segment of a long stream."""
    compare: str | None = None
    """Weights to run beside the model's own, at the same steps (the undistilled causal model)."""
    compare_rules: bool = False
    """Nothing but `long_cases` long streams under every published rule of what a chunk attends to, side by side."""
    short: bool = False
    """With `compare_rules`: one stream of one minute under each rule."""
    decoder_clips: int = 32
    """Held-out clips behind the decoder's PSNR."""
    threads: int = 1
    output_dir: str = field(default_factory=partial(fresh_folder, "evaluate-"))

    def __post_init__(self):
        self.compare = found(self.compare)
        self._check_rules()
        check_folder(self.output_dir)
        for name in ("cases", "seconds", "segment_s", "decoder_clips", "threads"):
            positive(name, getattr(self, name))
        if self.minutes < 0 or self.long_cases < 0:
            raise UserError(
                f"minutes={self.minutes}, long_cases={self.long_cases}",
                "cannot be negative",
                "use 0 for none",
            )
        if self.model.codec.statistics not in KINDS:
            raise UserError(
                f"model={self.model.name}",
                "is neither an avatar nor a world that was trained here (model.codec.statistics says which)",
                "name a model whose codec has such statistics",
            )

    def _check_rules(self) -> None:
        if self.short and not self.compare_rules:
            raise UserError("short=true", "is for compare_rules=true", "set cases, seconds, minutes and long_cases")
        if self.short:
            self.minutes, self.segment_s, self.long_cases = 1.0, 12.0, 1
        if self.compare_rules and not (self.minutes and self.long_cases):
            raise UserError(
                f"minutes={self.minutes:g}, long_cases={self.long_cases}",
                "leave compare_rules nothing to compare",
                "use minutes=10 long_cases=1, or short=true",
            )

    @property
    def left_out(self) -> str:
        """What a short comparison says it does not show; empty: it is whole."""
        return "everything after the first minute, and streams but one" if self.short else ""
