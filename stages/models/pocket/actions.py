"""Actions of video frames to what modulates the network per latent frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.inputs import FRAMES_PER_LATENT


def one_hot(actions: Sequence[int], classes: int) -> Tensor:
    """Action classes of the 4 f video frames of f latent frames, in order, to float32 [1, f, 4 * classes].

    The four frames of a latent frame lie side by side, first frame first.

    Raises:
        ValueError: the frames are no whole number of latent frames, or a class is out of range.
    """
    classes_seen = torch.as_tensor(actions, dtype=torch.int64)
    if len(classes_seen) % FRAMES_PER_LATENT:
        raise ValueError(
            f"{len(classes_seen)} video frames are no whole number of latent frames of {FRAMES_PER_LATENT}"
        )
    return F.one_hot(classes_seen, classes).float().view(1, -1, FRAMES_PER_LATENT * classes)
