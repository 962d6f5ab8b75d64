"""Which streams lose which workers: 25 streams of 4 losses each, for every launcher."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.recovering import Case

MODELS = {
    "nano": (),
    "clean": ("model.context=clean", "model.prompt_switch=recache"),
    "avatar": ("source.image=assets/portrait.png",),
    "world": ("stream.prompt=a maze by day",),
}
"""What a run of each says beside its name; `clean` is `nano` with the other context rule."""
NAMES = {"nano": "nano", "clean": "nano", "avatar": "pocket_avatar", "world": "pocket_world"}
PLANS = {
    "timestep": ("plan=timestep", "plan.workers=4"),
    "layers": ("plan=layers", "plan.workers=2"),
    "grid": ("plan=grid", "plan.workers=4"),
    "shared": ("plan=timestep", "plan.workers=4", "plan.sequence_parallel=2"),
}
RECORDING = {
    "nano": (
        "source.audio=assets/speech.wav", "source.actions=assets/actions.jsonl", "stream.prompt=hello",
        "stream.events=[{chunk: 17, prompt: other}, {chunk: 47, prompt: third}]", "model.recalibrate_chunk=4",
    ),
    "avatar": (
        "source.audio=assets/speech.wav", "stream.prompt=a happy person", "model.recalibrate_chunk=4",
        "stream.events=[{chunk: 17, prompt: a sad person}, {chunk: 27, prompt: an angry person}]",
    ),
    "world": (
        "source.actions=assets/actions.jsonl",
        "stream.events=[{chunk: 11, prompt: a maze by night}, {chunk: 27, prompt: a maze by day}]",
    ),
}  # fmt: skip
"""What drives the stream whose inputs are recorded."""
RECORDING["clean"] = RECORDING["nano"]
CHUNKS = {"nano": 600, "clean": 400, "avatar": 160, "world": 160}
LIVE = {
    "avatar": ("sound", ("a happy person", "a sad person", "an angry person")),
    "world": ("actions", ("a maze by day", "a maze by night")),
}
SAVING = ("stream.save_every_chunks=5",)
SOON = ("launcher.silent_s=2",)
TOGETHER = ({"name": "timestep", "workers": 3}, {"name": "grid", "workers": 4})

EACH = ("kill encode", "kill decode", "kill output", "kill step")
RAISED = ("raise encode", "raise decode", "raise output", "raise step")
ROWS = (
    # model, plan, spares, what happens, and whether it is driven live
    ("nano", "timestep", 0, EACH, False),
    ("nano", "timestep", 1, EACH, False),
    ("nano", "layers", 0, ("kill encode", "raise encode", "kill output", "raise output"), False),
    ("nano", "layers", 1, ("kill encode", "raise encode", "kill output", "raise output"), False),
    ("nano", "grid", 1, ("kill any", "raise any", "kill any", "raise any"), False),
    ("nano", "shared", 0, ("kill follower", "raise follower", "kill encode", "raise output"), False),
    ("nano", "shared", 1, ("stop follower", "kill follower", "raise encode", "kill output"), False),
    ("nano", "timestep", 1, ("stop encode", "stop decode", "stop output", "stop step"), False),
    ("nano", "timestep", 0, ("kill two", "raise two", "stop two", "kill two"), False),
    ("nano", "timestep", 0, tuple(f"{one}, save" for one in EACH), False),
    ("nano", "grid", 1, ("kill any, save", "raise any, save", "kill output, save", "kill two, save"), False),
    ("nano", "timestep", 0, tuple(f"{one}, loading" for one in EACH), False),
    ("nano", "timestep", 1, ("kill any, change", "raise any, change", "kill any, prepare", "kill two, change"), False),
    ("clean", "timestep", 0, EACH, False),
    ("clean", "timestep", 1, RAISED, False),
    ("clean", "layers", 1, ("kill encode", "raise encode", "kill output", "stop output"), False),
    ("avatar", "timestep", 0, EACH, True),
    ("avatar", "timestep", 1, RAISED, True),
    ("avatar", "layers", 1, ("kill encode", "stop output", "raise encode", "kill two"), True),
    ("avatar", "grid", 0, ("kill any", "raise any", "kill any, save", "kill any, change"), False),
    ("world", "timestep", 1, EACH, True),
    ("world", "layers", 0, ("kill encode", "raise output", "kill encode, save", "kill output"), True),
    ("world", "grid", 1, ("kill any", "stop any", "kill any, change", "raise any"), True),
)  # fmt: skip


def cases(launcher: str) -> Iterator[Case]:
    """The streams of a launcher that are files; the others are watched (`WATCHED`)."""
    for number, (model, plan, spares, happens, live) in enumerate(ROWS):
        text = " ".join(happens)
        drive, prompts = LIVE[model] if live else ("", ())
        more = (*(SAVING if "save" in text else ()), *(SOON if "stop" in text else ()))
        yield Case(
            f"{launcher} {number:02d} {model} {plan}{' with a spare' if spares else ''}", NAMES[model],
            (*MODELS[model], *PLANS[plan], *more), launcher, happens, spares, None if live else CHUNKS[model],
            drive, prompts, TOGETHER, seed=number,
        )  # fmt: skip


WATCHED = (("avatar", 1, ("kill", "raise", "kill", "stop")), ("world", 0, ("kill", "kill", "raise", "kill")))
"""Sessions with a viewer: (model, spares, how workers are lost)."""
NODES = Case(
    "ray 25 nano over nodes", "nano", (*MODELS["nano"], "plan=timestep", "plan.workers=3"), "ray",
    ("node any", "kill any", "node any", "kill any"), chunks=CHUNKS["nano"], nodes=4,
)  # fmt: skip
"""Nodes of a cluster on this machine, some of which are lost."""


def model_of(case: Case) -> str:
    """Which of `MODELS`."""
    return "clean" if "model.context=clean" in case.settings else case.model.removeprefix("pocket_")


PLAN_CHANGES = Case(
    "plans", "pocket_world",
    (
        *MODELS["world"], *RECORDING["world"], "plan=timestep", "plan.workers=2", "stream.count=2", "stream.height=80",
        "stream.width=80",
    ),
    "local", chunks=400, changes=20,
    plans=(
        {"workers": 4}, {"name": "layers", "workers": 3}, {"name": "sequential"}, {"name": "grid", "workers": 4},
        {"name": "layers", "workers": 2}, {"name": "timestep", "workers": 3},
    ),
)  # fmt: skip
"""Changes among six plans, of streams that last long enough for the last of them to load."""
AGAIN = Case("again", "nano", (*MODELS["nano"], *PLANS["timestep"]), "local", ("kill any",), again=True, chunks=100)
"""A loss and, at some moment of the change, another."""
