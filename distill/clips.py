"""The library of clips: drawn, encoded and stored once, then read by every stage as memory-mapped arrays.

    runs/<model>/clips/<fingerprint>/latents.npy, references.npy, features.npy, actions.npy, prompts.txt, meta.json

Clip i is a pure function of (seed, i), and which clips make the batch of a step is a pure function of (seed, step):
a run that stops and resumes reads on as if it had not. The fingerprint covers the encoder, so a new one never meets
old latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conf.errors import UserError
from conf.schema import ModelConfig
from conf.schema.distill import ClipsConfig
from distill.data import avatar, sound, world
from distill.data.people import BACKGROUNDS, EMOTIONS
from distill.model import Batch
from distill.precision import autocast
from stages.codec.base import SPATIAL_STRIDE
from stages.codec.small.codec import load_half
from stages.codec.small.network import SmallEncoder
from stages.encode.text import MISSING, TextEncoder
from stages.inputs import FRAMES_PER_LATENT, inputs_of, made_of

FILLERS = ("a", "an", "person", "on", "background", "maze", "by")
"""Words that a prompt may lack without meaning anything else."""
TOGETHER = 8
"""Clips encoded at a time."""


@dataclass
class Drawn:
    """Some clips before they are encoded: video uint8 [n, F', H, W, 3] and what drives it."""

    video: np.ndarray
    prompts: list[str]
    references: np.ndarray | None = None
    features: np.ndarray | None = None
    actions: np.ndarray | None = None


def draw(kind: str, seeds: range, frames: int, size: int, held_out: bool = False) -> Drawn:
    """Clips of `frames` video frames.

    References are [n, 4, H, W, 3]: the person with the clip's own emotion and background, another emotion, another
    background, and both others; so a prompt may contradict what the reference shows, or leave it as it is.
    """
    if kind == "world":
        clips = [world.sample(seed, frames, size, held_out) for seed in seeds]
        actions = np.stack([clip.actions for clip in clips]).astype(np.uint8)
        return Drawn(np.stack([c.frames for c in clips]), [c.scene.prompt for c in clips], actions=actions)
    video, prompts, references, features = [], [], [], []
    for seed in seeds:
        scene = avatar.scene(seed, held_out)
        heard = sound.clip(seed, frames, held_out)
        start = int(np.random.default_rng((seed, 0x57A7)).integers(1 << 20))
        clip = avatar.perform(scene, frames, sound.mouth(heard), size, start)
        video.append(clip.frames)
        prompts.append(scene.prompt)
        features.append(heard)
        rng = np.random.default_rng((seed, 0x4EF))
        feeling = str(rng.choice([e for e in EMOTIONS if e != scene.emotion]))
        place = str(rng.choice([b for b in BACKGROUNDS if b != scene.background]))
        looks = [(None, None), (feeling, None), (None, place), (feeling, place)]
        references.append([avatar.reference(scene, size, e, b) for e, b in looks])
    return Drawn(np.stack(video), prompts, np.array(references), np.stack(features))


def pixels(video: np.ndarray) -> Tensor:
    """uint8 [n, F', H, W, 3] to float32 [n, 3, F', H, W] in [-1, 1]."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)


@torch.inference_mode()
def encode(encoder: SmallEncoder, video: np.ndarray) -> np.ndarray:
    """Video to latents float16 [n, C, F, h, w]; a still (one frame) is held for the time of a latent frame."""
    with autocast("cpu"):
        return _latents(encoder, pixels(video)).numpy().astype(np.float16)


def _latents(encoder: SmallEncoder, frames: Tensor) -> Tensor:
    if frames.shape[2] == 1:
        frames = frames.expand(-1, -1, FRAMES_PER_LATENT, -1, -1)
    return encoder(frames, encoder.start()).float()


class Library:
    """Stored clips.

    Args:
        model: the model they are for.
        config: what is stored, and where.
        encoder: makes the latents; None: the one in `config.codec`.
        held_out: people, voices and mazes that are never trained on.
    """

    def __init__(
        self, model: ModelConfig, config: ClipsConfig, encoder: SmallEncoder | None = None, held_out: bool = False
    ):
        self.model, self.config, self.held_out = model, config, held_out
        self.encoder = encoder or codec_half(config.codec, "encoder", config.kind)
        net = model.network
        with torch.no_grad():
            self.nobody = _latents(self.encoder, torch.zeros(1, 3, 1, model.height, model.width))
        self.text = TextEncoder(model.text, net.text_dim, net.text_tokens)
        self.folder = Path(config.folder) / self._fingerprint()
        video_frames = config.frames * FRAMES_PER_LATENT
        latent = (net.in_channels, model.height // SPATIAL_STRIDE, model.width // SPATIAL_STRIDE)
        shapes = {"latents": ((latent[0], config.frames, *latent[1:]), np.float16)}
        if config.kind == "avatar":
            shapes["references"] = (4, latent[0], 1, *latent[1:]), np.float16
            shapes["features"] = (video_frames, net.audio.features), np.float16
        else:
            shapes["actions"] = (video_frames,), np.uint8
        self.folder.mkdir(parents=True, exist_ok=True)
        self.arrays = {name: self._array(name, shape, dtype) for name, (shape, dtype) in shapes.items()}
        self.prompts = self._read_prompts()

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode() + value.float().contiguous().numpy().tobytes())
        c, m = self.config, self.model
        digest.update(json.dumps([c.kind, c.frames, c.seed, m.height, m.width, self.held_out, c.count]).encode())
        return digest.hexdigest()[:12]

    def _array(self, name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
        path, shape = self.folder / f"{name}.npy", (self.config.count, *shape)
        if not path.exists():
            np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
        return np.load(path, mmap_mode="r+")

    def _read_prompts(self) -> list[str]:
        path = self.folder / "prompts.txt"
        return path.read_text().splitlines() if path.exists() else []

    def __len__(self) -> int:
        return len(self.prompts)

    def fill(self) -> Iterator[int]:
        """Draw and encode what is missing, a few clips at a time; yields how many there are."""
        net = self.config.frames * FRAMES_PER_LATENT
        while len(self) < self.config.count:
            done = len(self)
            upto = min(done + TOGETHER, self.config.count)
            first = self.config.seed * 1_000_000_000 + done
            drawn = draw(self.config.kind, range(first, first + upto - done), net, self.model.height, self.held_out)
            self.arrays["latents"][done:upto] = encode(self.encoder, drawn.video)
            if drawn.references is not None:
                stills = drawn.references.reshape(-1, 1, *drawn.references.shape[2:])
                self.arrays["references"][done:upto] = encode(self.encoder, stills).reshape(
                    self.arrays["references"][done:upto].shape
                )
                self.arrays["features"][done:upto] = drawn.features
            if drawn.actions is not None:
                self.arrays["actions"][done:upto] = drawn.actions
            # The prompts come last: a clip is there when its prompt is.
            with (self.folder / "prompts.txt").open("a") as file:
                file.write("".join(f"{prompt}\n" for prompt in drawn.prompts))
            self.prompts = self._read_prompts()
            yield len(self)

    def batch(self, step: int, count: int, frames: int, part: slice = slice(None)) -> Batch:
        """The batch of a training step, or a part of it: `count` clips, their first `frames` latent frames."""
        rng = np.random.default_rng((self.config.seed, step, 0xBA7C))
        return self.take(rng.integers(len(self), size=count)[part], frames, salt=step)

    def take(self, numbers: np.ndarray, frames: int, salt: int | None = None) -> Batch:
        """The clips with these numbers. `salt` varies prompts and references; None leaves them as they are."""
        varied = [self._words(n, salt) for n in numbers]
        words, looks = zip(*varied, strict=True)
        latents = torch.from_numpy(self.arrays["latents"][numbers][:, :, :frames]).float()
        if self.config.kind == "world":
            taken = made_of(inputs_of(self.model), "actions")
            actions = self.arrays["actions"][numbers][:, : frames * FRAMES_PER_LATENT]
            return Batch(latents, _pad(words), actions=torch.cat([taken.rows(a) for a in actions]))
        references = torch.from_numpy(self.arrays["references"][numbers]).float()
        return Batch(
            latents,
            _pad(words),
            features=torch.from_numpy(self.arrays["features"][numbers][:, : frames * FRAMES_PER_LATENT]).float(),
            hears=torch.ones(len(numbers), dtype=torch.bool),
            reference=references[torch.arange(len(numbers)), torch.tensor(looks)],
            lookalike=references[:, 0],
            nobody=self.nobody,
        )

    def _words(self, number: int, salt: int | None) -> tuple[list[int], int]:
        """Rows of the words of a clip's prompt, and which of its four references goes with them."""
        prompt = self.prompts[number]
        if salt is None:
            return self.text.ids(prompt)[0], 0
        rng = np.random.default_rng((self.config.seed, number, salt, 0x30D5))
        feeling, place = rng.random(2) < self.config.named
        terse = rng.random() < 0.5
        # What the prompt does not name is as the reference shows it; what it names may be otherwise there.
        other_feeling, other_place = rng.random(2) < 0.5
        words = []
        for word in prompt.split():
            unnamed = (word in EMOTIONS and not feeling) or (word in BACKGROUNDS and not place)
            if not unnamed and not (terse and word in FILLERS and rng.random() < 0.7):
                words.append(word)
        return self.text.ids(" ".join(words))[0], int(other_feeling and feeling) + 2 * int(other_place and place)


def _pad(rows: tuple[list[int], ...]) -> Tensor:
    """Lists of row numbers to [B, L], L the longest and at least one."""
    longest = max(1, *(len(row) for row in rows))
    return torch.tensor([row + [MISSING] * (longest - len(row)) for row in rows])


def codec_half(path: str | None, half: str, kind: str):
    """The encoder or decoder that clips are made with."""
    if path is None or not Path(path).exists():
        raise UserError(
            f"clips.codec={path}", "there is no codec", "train it: everframe distill stage=vae, then export"
        )
    return load_half(path, half, kind)
