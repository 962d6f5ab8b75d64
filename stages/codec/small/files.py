"""What this codec's file is told by."""

from stages.file_kinds import FileKind

SETTING = "model.codec.checkpoint"
HALVES = (r"decoder\.layers\.0\.weight", r"encoder\.layers\.0\.weight")
FILES = (FileKind("pocket codec", HALVES, setting=SETTING),)
