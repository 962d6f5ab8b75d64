"""Weight files of Wan2.2-S2V."""

from stages.dit.keys import TRANSFORMER, original_name, sizes, tells
from stages.file_kinds import FileKind

rename = original_name

FILES = (
    FileKind(
        "Wan2.2 speech-to-video",
        (*TRANSFORMER, r"casual_audio_encoder\.weights", r"frame_packer\.proj\.weight"),
        rename,
        ("live_avatar_14b",),
        fits=tells,
        sizes=sizes,
    ),
)
