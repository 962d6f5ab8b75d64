"""Published models of the same transformer that are no text-to-video models: what tells each, and why it is not run.

They are told by the names and channels of their weights, and by what `config.json` says, so that a folder is refused by
the same name whichever of the two is read first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from conf.errors import UserError

REMEDY = "docs/checkpoints.md lists what is read"
CONCATENATED = "a picture's latents enter beside the noisy ones, as channels, which only worlds have here"


class Relative(NamedTuple):
    """One model, or several alike. Any one of its signs tells it.

    Attributes:
        name, why: in words: what it is, and why nothing here runs it.
        has: a pattern of names of its weights under their original names; empty: none is its own.
        said: patterns of values in `config.json`, by key.
        channels: of latents that enter and leave; None: these do not tell it.
    """

    name: str
    why: str
    has: str = ""
    said: Mapping[str, str] = {}
    channels: tuple[int, int] | None = None


RELATIVES = (
    Relative(
        "Matrix-Game",
        "its part for actions is of a family of its own, which has the few-step models of 2.0 (model=matrix_game_2)",
        r"blocks\.0\.action_model\..*",
        {"action_config": r"\{.+"},
    ),
    Relative(
        "Wan VACE",
        "its control branch is not built here",
        r"vace_(blocks|patch_embedding)\..*",
        {"_class_name": r"(?i).*vace.*", "model_type": "vace", "vace_layers": r".*\d.*", "vace_in_dim": r"\d+"},
    ),
    Relative(
        "Wan2.2-Animate",
        "its pose and face branches are not built here",
        r"(pose_patch_embedding|face_adapter|face_encoder|motion_encoder)\..*",
        {"_class_name": r"(?i).*animate.*", "model_type": "animate"},
    ),
    Relative(
        "Wan Fun Camera",
        "its camera adapter is not built here",
        r"control_adapter\..*",
        {"add_control_adapter": "True"},
    ),
    Relative(
        "Wan Fun Control",
        "its control video and reference are not built here",
        r"ref_conv\..*",
        {"add_ref_conv": "True", "model_type": "control"},
    ),
    Relative(
        "a talking head on Wan image-to-video (MultiTalk, InfiniteTalk, FantasyTalking, HuMo)",
        "its audio branch is not built here; for a face that speaks there is model=live_avatar_14b",
        r"(audio_proj|blocks\.0\.(audio_cross_attn\w*|cross_attn\.processor))\..*",
    ),
    Relative(
        "SkyReels-V2",
        "its frame rate embedding is not built here",
        r"fps_(embedding|projection)\..*",
        {"_class_name": "(?i)SkyReels.*", "inject_sample_info": "True"},
    ),
    Relative(
        "Wan2.1 first-last-frame-to-video",
        CONCATENATED,
        r"img_emb\.emb_pos|condition_embedder\.image_embedder\.pos_embed",
        {"model_type": "flf2v", "pos_embed_seq_len": r"\d+"},
    ),
    Relative(
        "Wan2.1 image-to-video",
        CONCATENATED,
        r"(img_emb|condition_embedder\.image_embedder|blocks\.0\.cross_attn\.(k_img|add_k_proj))\..*",
        {"image_dim": r"\d+", "added_kv_proj_dim": r"\d+"},
    ),
    Relative(
        "Wan image-to-video (36 channels in, 16 out)", CONCATENATED, said={"model_type": "i2v"}, channels=(36, 16)
    ),
    Relative(
        "Wan2.2-TI2V-5B (48 channels)",
        "its latents are those of another VAE, of stride 16, and no codec here makes them",
        said={"model_type": "ti2v"},
        channels=(48, 48),
    ),
)
"""Those with signs of their own first: of two that fit, the one is made from the other."""


def require_none(said: Mapping[str, Any]) -> None:
    """Refuse what `config.json` says of a relative.

    Raises:
        UserError: names it.
    """
    inside, outside = (said.get(f"{way}_dim", said.get(f"{way}_channels")) for way in ("in", "out"))
    for one in RELATIVES:
        if (inside, outside) == one.channels or any(
            re.fullmatch(pattern, str(said.get(key))) for key, pattern in one.said.items()
        ):
            raise UserError("config.json", f"is of {one.name}: {one.why}", REMEDY)
