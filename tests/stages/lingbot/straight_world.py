"""LingBot-World, written straight down: no banks, no rays made ahead, nothing kept of a camera.

Every frame's pose is known from the start, rays are made pixel by pixel, and every layer of every pass makes its terms
anew. Weights come by their published names; all is computed in float64.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.stages.denoise.straight_history import CHUNK, CleanPassLoop, Noise, Wan

SIZE = 832, 480
"""Pixels that intrinsics are given for."""


class World(Wan):
    """The network.

    Attributes:
        camera: C of the tokens of a pass [n, d]; whoever runs it puts it there.
    """

    camera: Tensor

    def between(self, i: int, x: Tensor) -> Tensor:
        b = f"blocks.{i}.cam"
        y = self.linear(f"{b}_injector_layer2", F.silu(self.linear(f"{b}_injector_layer1", self.camera))) + self.camera
        return (1 + self.linear(f"{b}_scale_layer", y)) * x + self.linear(f"{b}_shift_layer", y)

    def embedded(self, rays: Tensor) -> Tensor:
        """Ray numbers of tokens [n, r] to C."""
        p = self.linear("patch_embedding_wancamctrl", rays)
        return p + self.linear("c2ws_hidden_states_layer2", F.silu(self.linear("c2ws_hidden_states_layer1", p)))


def pixel_rays(turn: np.ndarray, origin: np.ndarray, lens: np.ndarray, height: int, width: int) -> np.ndarray:
    """[6, height, width]: origin, and direction, of every pixel; `lens` in pixels of a picture of `SIZE`."""
    fx, fy, cx, cy = lens * np.array([width / SIZE[0], height / SIZE[1]] * 2)
    found = np.empty((6, height, width))
    for row in range(height):
        for column in range(width):
            d = np.array([(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0])
            found[:, row, column] = [*origin, *(turn @ (d / np.linalg.norm(d)))]
    return found


def folded(pixels: np.ndarray) -> Tensor:
    """Pixels [channels, height, width] to numbers of tokens [tokens, channels * 64 * 4]: of each token channel by
    channel, and of each channel row and column within a place of the latent, and then which of the 2x2 places."""
    channels, height, width = pixels.shape
    rows, columns = height // 16, width // 16
    at = pixels.reshape(channels, rows, 2, 8, columns, 2, 8).transpose(1, 4, 0, 3, 6, 2, 5)
    return torch.from_numpy(np.ascontiguousarray(at)).reshape(rows * columns, -1)


class Stream(CleanPassLoop):
    """Chunks that attend to a window, and to the first frames of all.

    Args:
        net, noise: as of the loop.
        steps: (timestep, sigma, level of re-noising) of each.
        poses: of all video frames [frames, 4, 4].
        lens: in pixels of a picture of `SIZE`: fx, fy, cx, cy.
        keys: that move the camera, of all video frames [frames, 4]; None: origins are told.
        picture: what the input has beside latents, [1, 20, n, h, w]; the last frame holds for ever.
        window, sink: latent frames.
        scale: that translations are divided by.
    """

    def __init__(
        self, net: World, steps: list, noise: Noise, poses: np.ndarray, lens: np.ndarray, keys: np.ndarray | None,
        picture: Tensor, window: int, sink: int, scale: float,
    ):  # fmt: skip
        super().__init__(net, [], noise)
        self.steps, self.poses, self.lens, self.keys, self.picture = steps, poses, lens, keys, picture.double()
        self.window, self.sink, self.scale = window, sink, scale
        self.past: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(net.layers)]
        """Keys, turned, and values, of every frame."""

    def run(self, chunks: int):
        for i in range(chunks):
            self.net.camera = self.net.embedded(torch.cat([self.rays(3 * i + f) for f in range(CHUNK)]))
            x = self.noise(i, 0).double()
            for s, (t, sigma, _) in enumerate(self.steps):
                x = x - sigma * self.velocity(i, x, t)
                if s + 1 < len(self.steps):
                    level = self.steps[s + 1][2]
                    x = (1 - level) * x + level * self.noise(i, s + 1).double()
            self.velocity(i, x, 0.0)
            yield x

    def velocity(self, chunk: int, x: Tensor, t: float) -> Tensor:
        frames = [min(3 * chunk + f, self.picture.shape[2] - 1) for f in range(CHUNK)]
        entering = torch.cat([x, self.picture[:, :, frames]], 1)
        return self.net.velocity(entering, [t] * CHUNK, lambda *of: self.read(of[0], chunk, False, *of[1:]))

    def read(self, layer: int, chunk: int, first_step: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = [3 * chunk + f for f in range(CHUNK)]
        self.past[layer].update(zip(own, self.frames(self.net.turned(k, own), v), strict=True))
        oldest = own[-1] + 1 - (self.window - self.sink)
        seen = [f for f in range(own[-1] + 1) if f < self.sink or f >= oldest]
        keys, values = (torch.cat([self.past[layer][f][part] for f in seen]) for part in range(2))
        return self.net.attention(self.net.turned(q, own), keys, values)

    def rays(self, latent: int) -> Tensor:
        """Numbers of the tokens of a latent frame."""
        step = np.linalg.solve(self.poses[max(0, 4 * latent - 4)], self.poses[4 * latent])
        pixels = pixel_rays(
            step[:3, :3], step[:3, 3] / self.scale, self.lens, 16 * self.net.rows, 16 * self.net.columns
        )
        if self.keys is not None:
            pressed = np.broadcast_to(self.keys[4 * latent][:, None, None], (4, *pixels.shape[1:]))
            pixels = np.concatenate([pixels[3:], pressed])
        return folded(pixels)
