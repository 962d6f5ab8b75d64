"""What this codec's file is told by."""

from stages.file_kinds import FileKind

FILES = (FileKind("pocket codec", (r"decoder\.layers\.0\.weight", r"encoder\.layers\.0\.weight")),)
