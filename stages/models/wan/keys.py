"""Weight files of Wan2.1's network, and of its relatives that are told from it."""

from collections.abc import Iterable
from functools import partial

from stages.dit.keys import TRANSFORMER, channels, original_name, original_within, sizes, tells
from stages.file_kinds import FileKind, Shapes
from stages.models.wan.relatives import RELATIVES

rename = original_name


def _has_channels(wanted: tuple[int, int] | None, shapes: Shapes) -> bool:
    return tells(shapes) and (wanted is None or channels(shapes) == wanted)


def _saved(keys: Iterable[str]) -> str:
    """Self-Forcing (arXiv 2506.08009) and what is built on it wrap the network in a module that calls it `model`, and
    save that. Which rule a student learned is in none of their files."""
    return "a few-step student, as Self-Forcing saves it" if original_within(keys, "model.") else ""


# A relative's names are among those that it shares with Wan2.1, so it comes first.
FILES = (
    *(
        FileKind(
            one.name,
            (*TRANSFORMER, *filter(None, [one.has])),
            rename,
            fits=partial(_has_channels, one.channels),
            refused=one.why,
            sizes=sizes,
        )
        for one in RELATIVES
    ),
    FileKind(
        "Wan2.1 text-to-video",
        TRANSFORMER,
        rename,
        ("wan21_t2v_1_3b", "wan21_t2v_14b"),
        fits=tells,
        sizes=sizes,
        saved=_saved,
        others=("reward_forcing", "deep_forcing", "rolling_forcing"),
    ),
)
