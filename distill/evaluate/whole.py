"""One evaluation from end to end: estimators checked, streams made and read, bars judged.

estimators   on the generator's held-out clips, and on what the codec makes of them
decoder      PSNR on held-out clips
student      short streams, then long ones
compare      the same with other weights
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from conf.schema import ModelConfig
from conf.schema.evaluate import EvaluateConfig
from distill import codec_quality
from distill.clips import pixels
from distill.data.people import BLINKS_PER_SECOND
from distill.evaluate import bars, faces, walks
from distill.evaluate.streams import Engine, Loop
from stages.build import build_decoder, build_encoder
from stages.post import to_pictures

FIRST_LONG = 100
"""Numbers of the long streams' cases."""
LATE = "late: "
"""Before the names of numbers from the end of long streams."""
Say = Callable[[str], None]


class Evaluation:
    """An evaluation of one model.

    Args:
        config: what to measure.
        loop: how streams are made: the runtime's sequential oracle.
        say: told what is being done.
    """

    def __init__(self, config: EvaluateConfig, loop: Loop, say: Say = lambda text: None):
        self.config, self.loop, self.say = config, loop, say
        self.model = config.model
        self.kind = self.model.codec.statistics
        self.observer = faces.Observer() if self.kind == "avatar" else None

    # -- before any stream ---------------------------------------------------------------------------------------

    def codec(self) -> codec_quality.Codec:
        """The codec as the model uses it."""
        device = torch.device("cpu")
        encoder, decoder = build_encoder(self.model, device), build_decoder(self.model, device)
        codec = codec_quality.Codec(encoder.config)
        codec.encoder, codec.decoder = encoder, decoder
        return codec.eval()

    def estimators(self, codec: codec_quality.Codec) -> dict[str, dict[str, float]]:
        """Scores on held-out clips as drawn, and after the codec."""

        @torch.inference_mode()
        def through(frames: np.ndarray) -> np.ndarray:
            whole = len(frames) // 4 * 4
            video = pixels(frames[None, :whole])
            latents = codec.encoder(video, codec.encoder.start())
            return np.asarray(to_pictures(codec.decoder(latents, codec.decoder.start())))

        c, found = self.config, {}
        for name, way in (("drawn", None), ("after the codec", through)):
            if self.kind == "avatar":
                found[name] = faces.check(faces.talks(self.model, c.cases, c.seconds), c.seconds, self.observer, way)
            else:
                found[name] = walks.check(2 * c.cases, c.seconds, self.model.height, way)
        return found

    # -- streams -------------------------------------------------------------------------------------------------

    def short(self, engine: Engine, cases: int) -> dict[str, float]:
        """Numbers of the short streams."""
        seconds = self.config.seconds
        if self.kind == "avatar":
            return faces.short(engine, faces.talks(self.model, cases, seconds), seconds, self.observer)
        return walks.short(engine, walks.walks(self.model, cases, seconds), seconds)

    def long(self, engine: Engine, number: int) -> dict[str, Any]:
        """One long stream."""
        c, first = self.config, FIRST_LONG + number
        if self.kind == "avatar":
            # People of the long streams are among the gallery, too.
            talk = faces.talks(self.model, 1, 60 * c.minutes, c.cases + number)[0]
            return faces.long(engine, talk, c.segment_s, self.observer)
        return walks.long(engine, walks.walks(self.model, 1, 60 * c.minutes, first)[0], c.segment_s)

    def run(self, name: str, model: ModelConfig) -> dict[str, Any]:
        """All numbers of one set of weights: `numbers` to compare, and the long streams whole."""
        c, engine = self.config, Engine(model, self.loop)
        self.say(f"{name}: {c.cases} streams of {c.seconds:g} s")
        numbers = self.short(engine, c.cases)
        streams = []
        for i in range(c.long_cases if c.minutes else 0):
            self.say(f"{name}: stream {i + 1} of {c.long_cases}, {c.minutes:g} min")
            streams.append(self.long(engine, i))
        return {"weights": model.checkpoint, "numbers": numbers | _late(streams), "long": streams}

    def __call__(self, keep: Callable[[dict[str, Any]], None] = lambda report: None) -> dict[str, Any]:
        """Everything, as a report that JSON can hold; `keep` is given what there is of it after every part."""
        c, codec = self.config, self.codec()
        self.say("estimators on held-out clips of the generator")
        scores = self.estimators(codec)
        trusted = {k: v >= bars.ESTIMATORS for k, v in scores["drawn"].items() if not k.startswith("blinks")}
        self.say("decoder")
        psnr = codec_quality.psnr(codec, self.kind, self.model.height, c.decoder_clips)
        report: dict[str, Any] = {
            "model": self.model.name,
            "kind": self.kind,
            "estimators": scores,
            "trusted": trusted,
            "decoder_psnr": psnr,
            "student": self.run("student", self.model),
        }
        numbers = report["student"]["numbers"]
        report["bars"] = [asdict(bar) for bar in bars.of(self.kind, numbers, psnr, trusted)]
        keep(report)
        if c.compare:
            report["compare"] = self.run("compared", replace(self.model, checkpoint=c.compare))
            theirs = report["compare"]["numbers"]
            report["verdicts"] = bars.compared(self.kind, numbers, theirs, 60 * BLINKS_PER_SECOND)
            keep(report)
        return report


def _late(streams: list[dict[str, Any]]) -> dict[str, float]:
    """Numbers of the long streams: means of those at the end, and the steepest slope of any stream."""
    if not streams:
        return {}
    found = {}
    for name in streams[0]:
        if name.endswith(" at the end") and not isinstance(streams[0][name], list):
            found[LATE + name.removesuffix(" at the end")] = float(np.mean([s[name] for s in streams]))
    for name in streams[0]["slopes"]:
        found[f"drift: {name}"] = max((s["slopes"][name] for s in streams), key=abs)
    return found
