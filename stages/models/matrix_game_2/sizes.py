"""Sizes of Matrix-Game 2's network, and what its `config.json` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from conf import published as folder
from conf.errors import UserError, positive
from conf.schema import Adapter, ModelConfig
from conf.typed import typed
from stages.dit.sizes import PUBLISHED, SUPPORTED, LayerSizes

MASK = 4
"""Channels of the mask that says which latent frame is the picture."""
WINDOW = 12
"""Video frames whose actions a latent frame reads. Latent L reads 4L - 12 to 4L - 1: an action shows a frame later."""
KEYBOARD, MOUSE = "keyboard", "mouse"
"""Inputs, and the adapters that read them."""


@dataclass
class Actions:
    """What can be pressed and turned, and the part of a layer that reads it."""

    layers: list[int] = field(default_factory=lambda: list(range(15)))
    """That have it."""
    keys: list[str] = field(default_factory=lambda: ["forward", "back", "left", "right"])
    one: bool = False
    """Whether one key holds at a time, the first being none."""
    axes: list[str] = field(default_factory=lambda: ["pitch", "yaw"])
    """Of the mouse, in order; none: the layers have no mouse."""
    keyboard: int = 4
    """Numbers that stand for a video frame's keys, one for each."""
    mouse: int = 2
    """Likewise of its axes."""
    embedded: int = 128
    """Width of a video frame's keys once they are embedded."""
    heads: int = 16
    width: int = 1024
    """Of all heads together, where keys are read and where a mouse is."""
    turned: list[int] = field(default_factory=lambda: [8, 28, 28])
    """Channels of a head that turn with (frame, row, column); what is read stands in time alone."""
    base: float = 256.0
    """Of the angles."""

    def __post_init__(self):
        for name in ("keyboard", "embedded", "heads", "width", "base"):
            positive(f"model.network.actions.{name}", getattr(self, name), most=1_000_000)
        for name, names in ((KEYBOARD, self.keys), (MOUSE, self.axes)):
            if (count := getattr(self, name)) != len(names):
                raise UserError(
                    f"model.network.actions.{name}={count}",
                    f"the model has {len(names)} ({', '.join(names) or 'none'})",
                    "name the model that the weights are of (everframe inspect says which)",
                )
        if self.width % self.heads:
            raise UserError(
                f"model.network.actions.heads={self.heads}", f"must divide width={self.width}", "use a divisor of it"
            )
        even = all(n >= 0 and n % 2 == 0 for n in self.turned)
        if len(self.turned) != 3 or not even or sum(self.turned) != self.head_dim:
            raise UserError(
                f"model.network.actions.turned={self.turned}",
                f"are three even numbers, all {self.head_dim} channels of a head",
                "use those of its config.json",
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads


@dataclass
class Sizes(LayerSizes):
    """Those of the shared transformer's layers, of the picture that all tokens read, and of actions."""

    image_dim: int = 1280
    """Width of a picture's rows."""
    image_tokens: int = 257
    """How many there are."""
    actions: Actions = field(default_factory=Actions)

    def __post_init__(self):
        super().__post_init__()
        for name in ("image_dim", "image_tokens"):
            positive(f"model.network.{name}", getattr(self, name), most=1_000_000)
        listed = self.actions.layers
        if bad := [layer for i, layer in enumerate(listed) if not 0 <= layer < self.layers or layer in listed[:i]]:
            rule = f"layers are 0 to {self.layers - 1}, each once"
            raise UserError(f"model.network.actions.layers={listed}", rule, f"remove {bad}")

    @property
    def context_rows(self) -> int:
        return self.image_tokens

    @property
    def beside(self) -> dict[str, int]:
        return {"mask": MASK, "condition": self.in_channels}

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """A mouse is read by every place for itself, since keys and values are made of its own hidden state; keys are
        the same for all places."""
        a = self.actions

        each = {MOUSE: "place"} if a.mouse else {}
        return tuple(
            Adapter(name, tuple(a.layers), a.heads, a.head_dim, entry, tuple(a.turned), a.base)
            for name, entry in (each | {KEYBOARD: "latent"}).items()
        )

    def once_values(self, new: int, frames: int) -> int:
        """A key and a value for each latent frame."""
        return 2 * frames * self.actions.width

    def layer_flops(self, new: int, keys: int) -> Sequence[float]:
        """With 2 n (d + 12 a + m + 3 m + d) m where a mouse of a axes is read, and 4 n d m where keys are, m being the
        width of all heads. What they attend to is left out: as few entries as the window has latent frames."""
        return self._more(super().layer_flops(new, keys), sum(2.0 * new * a * b for a, b in self._products()))

    def layer_values(self, new: int, keys: int) -> Sequence[float]:
        """With n a + a b + n b in each of those products. A mouse has a key for each token in view: 4 n m and 2 k m in
        its attention, and 2 n m in that of keys that are pressed."""
        products = sum(new * (a + b) + a * b for a, b in self._products())
        attention = (2 * new + (4 * new + 2 * keys) * bool(self.actions.mouse)) * self.actions.width
        return self._more(super().layer_values(new, keys), float(products + attention))

    def _products(self) -> list[tuple[int, int]]:
        """Rows of them are tokens."""
        d, a, m = self.dim, self.actions, self.actions.width
        mouse = [(d + WINDOW * a.mouse, m), (m, m), (m, 3 * m), (m, d)] if a.mouse else []
        return [*mouse, (d, m), (m, d)]

    def _more(self, plain: Sequence[float], there: float) -> Sequence[float]:
        return [found + there * (i in self.actions.layers) for i, found in enumerate(plain)]


ACTIONS = "action_config"
"""What a `config.json` calls all that it says of actions."""
NAMES = {ours: theirs for ours, theirs in PUBLISHED.items() if not ours.startswith("text_")} | {
    f"actions.{ours}": (f"{ACTIONS}.{theirs}",)
    for ours, theirs in {
        "layers": "blocks",
        "keyboard": "keyboard_dim_in",
        "mouse": "mouse_dim_in",
        "embedded": "hidden_size",
        "heads": "heads_num",
        "width": "keyboard_hidden_dim",
        "turned": "rope_dim_list",
        "base": "rope_theta",
    }.items()
}
FORMS = {name: forms for name, forms in SUPPORTED.items() if name != "image_dim"} | {
    "model_type": ("i2v",),
    "sink_size": (0,),
    f"{ACTIONS}.enable_keyboard": (True,),
    f"{ACTIONS}.qk_norm": (True,),
    f"{ACTIONS}.qkv_bias": (False,),
    f"{ACTIONS}.windows_size": (WINDOW // 4,),
    f"{ACTIONS}.vae_time_compression_ratio": (4,),
}


ALIKE = {"rope_dim_list": "mouse_qk_dim_list", "keyboard_hidden_dim": "mouse_hidden_dim"}
"""What it says of keys, and what it has to say of a mouse, if it says anything."""
FOUNDATION = "the foundation model of Matrix-Game 2"
WHY = "it takes many steps, and all that was before is in view; the few-step models were distilled from it"


def published(said: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a `config.json` tells; raises UserError."""
    actions = typed(dict[str, Any], said.get(ACTIONS, {}), f"config.json: {ACTIONS}")
    if not actions:
        raise UserError("config.json", f"says no {ACTIONS}", USE)
    if said.get("local_attn_size") == -1:
        raise UserError("config.json: local_attn_size=-1", f"is of {FOUNDATION}: {WHY}", USE)
    told = said | {f"{ACTIONS}.{name}": value for name, value in actions.items()}
    found = folder.sizes(told, NAMES, FORMS, "a few-step model of Matrix-Game 2")
    if not actions.get("enable_mouse", True):
        found["actions.mouse"] = 0
    for ours, theirs in ALIKE.items() if found.get("actions.mouse", 1) else ():
        if (value := actions.get(theirs, same := actions.get(ours))) != same:
            raise UserError(f"config.json: {ACTIONS}.{theirs}={value}", f"is not {ours}={same}", USE)
    if "in_channels" in found:
        found["in_channels"] = _latents(typed(int, found["in_channels"], "config.json: in_dim"))
    return found


USE = "use a few-step model of Matrix-Game 2"


def _latents(inside: int) -> int:
    """Channels of latents, where what enters has them twice, and a mask."""
    latents = (inside - MASK) // 2
    if latents < 1 or 2 * latents + MASK != inside:
        raise UserError(f"config.json: in_dim={inside}", f"is not latents twice, and {MASK} of a mask", USE)
    return latents


def check(model: ModelConfig) -> None:
    """Raises UserError where the model cannot be as it is configured."""
    listed = model.timesteps or []
    if not model.warp or not listed or any(t != int(t) or t < 1 for t in listed):
        value = "model.warp=false" if listed and not model.warp else f"model.timesteps={model.timesteps}"
        raise UserError(value, "steps are whole numbers of a table of 1000, which is shifted", "use [1000,666,333]")
