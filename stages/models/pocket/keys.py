"""Weight files of the models that are trained here."""

from stages.dit.keys import TRANSFORMER, original_name, sizes, tells
from stages.file_kinds import FileKind

rename = original_name

WORDS = (*TRANSFORMER, r"text_encoder\.table\.weight")
FILES = (
    FileKind(
        "pocket avatar",
        (*WORDS, r"audio_encoder\..*", r"trainable_cond_mask\.weight"),
        rename,
        ("pocket_avatar",),
        fits=tells,
        sizes=sizes,
    ),
    FileKind("pocket world", (*WORDS, r"action_modulation\..*"), rename, ("pocket_world",), fits=tells, sizes=sizes),
)
