"""A step that does not fit into memory is computed in more parts, as if it had always been."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import linnaeus
from commands import QUICK, run_python
from linnaeus.data.loaders import Batch
from linnaeus.errors import MemoryLimitError
from linnaeus.runtime import compute_in_halves, ran_out
from linnaeus.training.checkpoint import State, load_state
from linnaeus.training.loop import fit
from linnaeus.training.optim import make_optimizer
from linnaeus.training.tasks import StepResult
from test_loop import PLAN, TASK, Ground, data, new_state, told

pytest_plugins = ("fixtures_run",)


@dataclass
class Hungry:
    """A task that asks for more memory than there is, once it has computed a part of more than some images."""

    most: int
    sizes: list[int] = field(default_factory=list)

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Train as the inner task does, then need more."""
        result = TASK.step(model, batch)
        self.sizes.append(len(batch.labels))
        if len(batch.labels) > self.most:
            torch.empty(2**50)
        return result


def train_hungry(
    task: object, *, accumulate: int = 1, at: int = -1, path: Path | None = None
) -> tuple[State, list[int]]:
    """Return the state after three epochs of batches of ten images, and what was told of parts."""
    plan, parts = replace(PLAN, accumulate=accumulate, ema=0.9), list[int]()
    state, ground = new_state(plan), Ground(interrupt_at=at, path=path)
    if path is not None and path.is_file():
        load_state(state, path)
    fit(state, task, data(), plan, replace(ground.hooks(plan), on_parts=parts.append))
    return state, parts


def expect_the_same(a: State, b: State) -> None:
    """Compare two states byte by byte, and all that was told of their epochs."""
    assert told(a) == told(b)
    for one, two in ((a.model, b.model), (a.judged, b.judged)):
        for x, y in zip(one.state_dict().values(), two.state_dict().values()):
            assert torch.equal(x, y)


def test_a_failed_try_leaves_no_trace() -> None:
    """Memory for 3 of 10 images: the batch is cut in 2, then in 4, and all is as if 4 had been asked for.

    The network has batch statistics, dropout and an average.
    """
    task = Hungry(most=3)
    found, parts = train_hungry(task)
    assert parts == [2, 4]
    assert task.sizes[:6] == [10, 5, 2, 3, 2, 3]
    assert len(task.sizes) == 2 + 12 * 4
    expect_the_same(found, train_hungry(TASK, accumulate=4)[0])


def test_a_resumed_run_begins_with_the_parts_that_fit(tmp_path: Path) -> None:
    """The checkpoint holds the number of parts: nothing is tried again, and the end is the same."""
    quiet, _ = train_hungry(Hungry(most=3))
    train_hungry(Hungry(most=3), at=5, path=tmp_path / "state")
    task = Hungry(most=3)
    resumed, parts = train_hungry(task, path=tmp_path / "state")
    assert parts == []
    assert max(task.sizes) == 3
    expect_the_same(quiet, resumed)


def test_the_smallest_part_that_does_not_fit() -> None:
    """Where one image is too much, and two where batch norms need two, the error says what to make smaller."""
    with pytest.raises(MemoryLimitError, match=r"too little for 2 at a time of 8 pixels.* smaller train_size"):
        train_hungry(Hungry(most=1))
    state = new_state()
    state.model.layers[1] = nn.Identity()
    state.optimizer = make_optimizer(state.model, PLAN.rule)
    task = Hungry(most=0)
    with pytest.raises(MemoryLimitError, match="too little for 1 at a time"):
        fit(state, task, data(), PLAN, Ground().hooks())
    assert task.sizes == [10, 5, 2, 1, 1]


def test_other_errors_are_not_about_memory() -> None:
    """What is wrong with the network itself is raised as it is."""
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not ran_out(caught.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert ran_out(MemoryError())
    assert not ran_out(ValueError("no"))


def test_answers_in_halves() -> None:
    """What cannot be computed at once is computed in halves, in order; a single image that is too much is an error."""

    def double(images: torch.Tensor, most: int) -> torch.Tensor:
        return 2 * images if len(images) <= most else torch.empty(2**50)

    images = torch.arange(11.0)
    for most in (2, 1):
        assert torch.equal(compute_in_halves(lambda x, most=most: double(x, most), images), 2 * images)
    with pytest.raises(RuntimeError, match="allocate"):
        compute_in_halves(lambda x: double(x, 0), images)


LIMITED = """
import resource, sys
from dataclasses import replace
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from torch import nn
from linnaeus.training.checkpoint import State
from linnaeus.training.loop import fit
from linnaeus.training.optim import make_optimizer
from test_loop import PLAN, TASK, Ground, data, validations
torch.set_num_threads(1)
def train(accumulate, told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 512, 3, padding=1), nn.Tanh(), nn.Conv2d(512, 8, 1), nn.Tanh(), nn.Flatten(),
                          nn.Linear(512, 3))
    state = State(model=model, optimizer=make_optimizer(model, PLAN.rule))
    plan = replace(PLAN, epochs=1, accumulate=accumulate)
    hooks = replace(Ground(scores=validations((1.0, 0.5))).hooks(plan), on_parts=told.append)
    fit(state, TASK, data(2000, 2000), plan, hooks)
    return [p.detach() for p in model.parameters()]
quiet = train(64, [])
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * size + 200 * 2**20, resource.RLIM_INFINITY))
told = []
found = train(1, told)
assert told and told == [2 ** (i + 1) for i in range(len(told))], told
for a, b in zip(quiet, found):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
"""


def test_a_real_limit() -> None:
    """In a process that may take 200 MB more, a step that needs a gigabyte is computed in parts, to equal weights."""
    done = run_python(LIMITED, Path(__file__).parent)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_says_that_memory_did_not_suffice(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose batches do not fit comes to its end and tells it in its report; one that never fits is an error."""
    hungry = Hungry(most=4)
    whole = type(TASK).step

    def fed(self: object, model: nn.Module, batch: Batch) -> StepResult:
        if len(batch.labels) > hungry.most:
            torch.empty(2**50)
        return whole(self, model, batch)

    monkeypatch.setattr("linnaeus.learning.course.Supervised.step", fed)
    result = linnaeus.train(photos, out=tmp_path / "run", **QUICK)
    assert "computed in 2 parts from now on" in Path(result.report).read_text()
    hungry.most = 0
    with pytest.raises(MemoryLimitError, match="smaller train_size"):
        linnaeus.train(photos, out=tmp_path / "other", **QUICK)
