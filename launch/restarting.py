"""A run that torchrun has started again: each stream goes on from its newest whole state on disk by itself.

torchrun's own process ends all ranks when one is lost, and with `--max-restarts` starts them anew. With
`launcher.recover` a stream then goes on as with `resume`, and begins with chunk 0 where it has left no state. Streams
that were opened by orders are opened again by whoever gives orders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from conf.schema import Config
from runtime.identity import keep_of
from runtime.orders import Open
from runtime.pipeline import opens
from runtime.state import FOLDER, State, states

COUNT = "TORCHELASTIC_RESTART_COUNT"


def restarts() -> int:
    """How often torchrun has started this process's run again."""
    told = os.environ.get(COUNT, "0")
    return int(told) if told.isdecimal() else 0


def again(config: Config) -> bool:
    """Whether this run goes on with streams that it has begun before."""
    return config.launcher.name == "torchrun" and config.launcher.recovers and restarts() > 0


def left(config: Config) -> dict[str | None, State | None]:
    """The newest whole state that each stream of a configuration has left in the output folder, by its name there."""
    folder = Path(config.output_dir).absolute() / FOLDER
    names = [str(i) for i in range(config.stream.count)] if config.stream.count > 1 else [None]
    return {name: next(iter(states(folder / name if name else folder)), None) for name in names}


def goes_on(config: Config) -> bool:
    """Whether a stream of a run that was started again goes on from a state in the output folder."""
    return again(config) and any(left(config).values())


def orders(config: Config) -> list[Open]:
    """The streams of a run that was started again, each from where it goes on.

    Raises:
        UserError: all states of a stream are damaged, or another stream's.
    """
    begun = opens(replace(config, resume=None))
    found = []
    for order, (name, state) in zip(begun, left(config).items(), strict=True):
        resume = config.output_dir if state else config.resume
        found.append(replace(order, keep=keep_of(config, order.config, order.sink, name, resume)))
    return found


def notes(config: Config) -> Iterator[str]:
    """What a restart means, or has come to, on one line; nothing where there is none to be had."""
    if config.launcher.name != "torchrun" or not config.launcher.recovers or config.control is not None:
        return
    if again(config):
        said = [
            f"stream {name or config.stream.id} {f'goes on with chunk {state.chunk}' if state else 'begins anew'}"
            for name, state in left(config).items()
        ]
        yield f"started again ({restarts()}): {', '.join(said)}"
    elif not config.stream.save_every_chunks:
        yield (
            f"launcher.recover={config.launcher.recover} without stream.save_every_chunks: no state is saved on the "
            "way, so a restart (--max-restarts) begins every stream anew"
        )
