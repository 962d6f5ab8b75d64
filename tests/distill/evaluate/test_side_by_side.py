"""Published rules as data: they fit the pocket models' window, read what they say, and are read fairly."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import model_of

from conf.errors import UserError
from conf.schema.evaluate import EvaluateConfig
from distill.evaluate.rules import RULES, attended
from distill.evaluate.watched import TAIL, Watch
from launch.cli import compose

OF = {rule.name: rule for rule in RULES}


def pocket(kind):
    return compose("evaluate", EvaluateConfig, [f"model=pocket_{kind}"]).model


@pytest.mark.parametrize("kind", ["avatar", "world"])
def test_pocket_weights_run_every_rule_but_the_one_that_needs_what_is_to_come(kind):
    model, refused = pocket(kind), {}
    for rule in RULES:
        try:
            assert rule.trained(model) == (rule.name == "own")
        except UserError as error:
            refused[rule.name] = str(error)
    assert list(refused) == ["joint window"] and "nobody has yet" in refused["joint window"]


def test_attended_tokens_are_counted_from_the_places_of_a_full_window():
    model = pocket("avatar")
    counted = {rule.name: attended(rule.of(model), 16) for rule in RULES if rule.name != "joint window"}
    # Tokens of a frame x passes x frames read: the window of 12, and the reference where there is one.
    assert counted["own"] == 16 * 4 * 13 and counted["no sink"] == 16 * 4 * 12
    assert counted["clean, no sink"] == 16 * 5 * 12 and counted["clean"] == counted["deep sink"] == 16 * 5 * 13
    # The budget of 9 and a chunk more in turn.
    assert counted["compressed"] == 16 * 5 * (9 + 12 + 2) / 2
    assert counted["one bank"] == counted["stream batch"] == 16 * 4 * 12


class Still:
    """A judge of streams without a face: a frame's grey value is whom it shows."""

    follows, asked = "obeys", 40

    def case(self):
        return None

    def glance(self, frames):
        return frames[:, 0, 0, 0].astype(int)

    def sharpness(self, end):
        return 2.0

    def read(self, case, end, shown):
        assert len(shown) == TAIL * 2 + 1
        return 0.5, np.full((1, len(shown) - 1), float(end))

    def obeyed(self, pooled):
        return float(pooled.mean())


def test_a_stream_is_held_against_its_first_segment_and_against_what_was_asked():
    per = TAIL + 1
    watch, squares = Watch(Still(), per, [0, 2 * per - 1]), np.indices((8, 8)).sum(0) % 2 == 0
    for grey in [40] * per + [60] * per:
        watch.add(np.broadcast_to(squares[None, :, :, None] * np.uint8(grey), (2, 8, 8, 3)))
    # Half as bright again: its variance changes most, by 1.5 x 1.5.
    assert watch.segments["drift (%)"] == pytest.approx([0, 125], abs=1e-3)
    assert watch.segments["sharpness"][1] == pytest.approx(1.5 * watch.segments["sharpness"][0])
    assert watch.segments["identity"] == watch.segments["as it began"] == [1, 0]
    assert watch.segments["obeys"] == [per, 2 * per] and watch.numbers["obeys"] == 1.5 * per
    assert [int(picture[0, 0, 0]) for picture in watch.pictures] == [40, 60]


@pytest.mark.parametrize(
    ("override", "line"),
    [("short=true", "is for compare_rules=true"), ("compare_rules=true minutes=0", "nothing to compare")],
)
def test_what_compares_nothing_is_refused(override, line):
    with pytest.raises(UserError, match=line):
        compose("evaluate", EvaluateConfig, override.split())


def test_a_short_comparison_says_what_it_leaves_out():
    short = compose("evaluate", EvaluateConfig, ["compare_rules=true", "short=true"])
    assert short.minutes == 1 and short.long_cases == 1 and "first minute" in short.left_out
    assert not replace(short, short=False).left_out


def test_a_rule_that_is_not_built_is_refused():
    with pytest.raises(UserError, match="not built"):
        replace(OF["own"], settings={"context": "output_level"}).of(model_of("world"))
