"""Weight files of Wan2.1's network."""

from stages.dit.keys import TRANSFORMER, original_name, sizes
from stages.file_kinds import FileKind

rename = original_name

FILES = (FileKind("Wan2.1 text-to-video", TRANSFORMER, rename, ("wan21_t2v_1_3b", "wan21_t2v_14b"), sizes),)
