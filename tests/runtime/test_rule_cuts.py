"""What is told of cuts is what cuts really copy, whatever a history rule writes."""

from collections import defaultdict

import pytest

from parallel.builders import build
from parallel.cuts import Cuts
from runtime.cut_log import Log
from runtime.head import Sampler
from runtime.rule_costs import frames_written, period
from runtime.workload import describe, logged
from stages.denoise.layout import Layout
from tests.helpers import config_of
from tests.runtime.test_history_runs import BASE, PLANS, RULES
from tests.runtime.test_resume import Runs
from tests.stages.denoise.test_history_rules import compressed, deep, model_of, reward, rolling

LAYERS, SHARED = PLANS["layers"], PLANS["shared layers"]
CASES = [
    ("rolling", LAYERS), ("rolling", SHARED), ("reward", LAYERS), ("reward", SHARED), ("reward", PLANS["timestep"]),
    ("deep", LAYERS), ("deep", SHARED), ("deep sink", LAYERS), ("a window of no whole chunks", LAYERS),
]  # fmt: skip


@pytest.fixture
def runs(tmp_path, capsys):
    return Runs(tmp_path, capsys)


@pytest.fixture
def copied(monkeypatch):
    """Bytes that cuts brought, by chunk and part."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    waiting: dict[str, int] = defaultdict(int)
    store, write = Log.store, Log.write

    def stored(self, brought, tensors) -> None:
        waiting[self.part] += sum(piece.nbytes for piece in tensors.values())
        store(self, brought, tensors)

    def written(self, chunk, *rest) -> None:
        if self.part.startswith("bank."):
            found[chunk][self.part] = waiting.pop(self.part, 0)
        write(self, chunk, *rest)

    monkeypatch.setattr(Log, "store", stored)
    monkeypatch.setattr(Log, "write", written)
    return found


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(("rule", "plan"), CASES)
def test_cuts_copy_what_is_told(runs, copied, monkeypatch, rule, plan, every):
    config = config_of(*RULES[rule], *BASE, *plan)
    model, made, kept = config.model, build(config.plan, describe(config)), logged(config)
    steady = period(model, Layout.of(model, 1))
    # The last cut before a period begins brings what was written until then.
    first, cuts = steady[0][0].chunk + every, Cuts(made, kept, every)
    wanted = [first + i * every for i in range(len(steady))]
    monkeypatch.setattr(Sampler, "cut_due", lambda self, chunk: chunk in (first - every, *wanted))
    runs("run", *RULES[rule], *BASE, *plan, f"stream.chunks={wanted[-1] + 1}", "stream.save_on_stop=true")
    sums = [sum(copied[chunk].values()) for chunk in wanted]
    processes = [len(made.group(worker)) for worker in range(made.workers)]
    mean, most = (sum(n * of(worker) for worker, n in enumerate(processes)) for of in (cuts.mean, cuts.dirty))
    assert sum(sums) / len(sums) == pytest.approx(mean)
    assert max(sums) == pytest.approx(most)


def test_what_chunks_write_by_hand():
    """(mean, most) frames of one chunk, two, ..."""
    of = {
        "a ring of two chunks": (model_of(window_frames=6, positions="abs"), [(3, 3), (6, 6)]),
        # The attention sink is averaged into with every chunk.
        "reward": (reward(0.5), [(6, 6), (9, 9)]),
        "deep sink": (deep(14), [(3, 3), (6, 6), (7, 7)]),
        # Chosen tokens and latest frames, 6, and behind all that was there the 3 of the pass that chose; then the 3
        # between these.
        "compressed": (compressed(7), [((9 + 3) / 2, 9), (12, 12)]),
        "rolling": (rolling(window=18), [(3 * n, 3 * n) for n in range(1, 7)]),
    }
    for model, expected in of.values():
        assert frames_written(model, Layout.of(model, 4)) == expected
