"""Started by the tests as one of two processes: each case ends with exit code 0 if all is as it should be."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from linnaeus.config import Settings
from linnaeus.data.loaders import Batch
from linnaeus.errors import MemoryLimitError, TrainingError
from linnaeus.learning.transfer import Thaw, begin_transfer
from linnaeus.models.registry import Classifier
from linnaeus.results import Validation
from linnaeus.runtime import World, join_world
from linnaeus.training.checkpoint import State
from linnaeus.training.loop import fit
from linnaeus.training.optim import Rule, make_optimizer
from linnaeus.training.tasks import StepResult
from linnaeus.training.validation import judge
from test_loop import NORMALIZE, PLAN, TASK, Ground, Net, Poisoned, data, new_state
from test_memory import Hungry


def without_noise() -> Net:
    """Return a network without batch statistics and dropout."""
    network = Net()
    network.layers[1], network.layers[3] = nn.Identity(), nn.Identity()
    return network


def bad_loss(world: World) -> None:
    """Skip a loss that is bad in one process in both, and end training in both after three."""
    plan, loader = replace(PLAN, world=world), replace(data(), rank=world.rank, world=2)
    state, ground = new_state(plan), Ground()
    here = {2, 7} if world.rank == 1 else {4}
    assert fit(state, Poisoned(steps=here, value=math.nan), loader, plan, ground.hooks(plan)) == "done"
    assert [r.skipped_steps for r in ground.epochs] == [2, 1, 0], ground.epochs
    check_alike(state)
    # Each process first tries alone the first batch and the last one, which is smaller: batches 2, 3 and 4 are these.
    bad = Poisoned(steps={3, 4, 6} if world.rank == 0 else set(), value=math.inf)
    with pytest.raises(TrainingError, match="epoch 1, batch 4"):
        fit(new_state(plan), bad, loader, plan, Ground().hooks(plan))


def uneven_parts(world: World) -> None:
    """Batches that the processes cannot share evenly, cut into parts, give what one process alone gives."""
    for count, batch_size, accumulate in ((21, 7, 3), (9, 3, 4), (10, 1, 2), (5, 2, 1)):
        states = []
        for here in (world, World()):
            plan = replace(PLAN, epochs=2, accumulate=accumulate, world=here)
            state = new_state(plan)
            state.model = without_noise()
            state.optimizer = torch.optim.SGD([{"params": list(state.model.parameters()), "factor": 1.0}], lr=0.1)
            loader = replace(data(count, batch_size), rank=world.rank, world=world.size)
            if here.size == 1:
                loader = data(count, -(-count // loader.steps))
            fit(state, TASK, loader, plan, Ground().hooks(plan))
            states.append(state)
        for a, b in zip(*(state.model.parameters() for state in states)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        losses = [state.history[-1].train_loss for state in states]
        assert math.isclose(*losses, rel_tol=1e-4)


def one_is_told_to_stop(world: World) -> None:
    """Stop both processes after the same step when one catches a signal."""
    plan, loader = replace(PLAN, world=world), replace(data(), rank=world.rank, world=2)
    state, ground = new_state(plan), Ground(interrupt_at=6 if world.rank == 1 else -1)
    assert fit(state, TASK, loader, plan, ground.hooks(plan)) == "interrupted"
    assert (state.step, state.batch) == (6, 2)
    check_alike(state)


def time_runs_out(world: World) -> None:
    """End both processes after the same step when time runs out."""
    plan = replace(PLAN, world=world, epochs=100_000, time_limit=0.3)
    state = new_state(plan)
    loader = replace(data(), rank=world.rank, world=2)
    assert fit(state, TASK, loader, plan, Ground().hooks(plan)) == "time"
    check_alike(state)


def judging(world: World) -> None:
    """Two processes judge as one does, also where there is one image for both."""
    network = Net()
    for count in (41, 40, 1):
        alone = judge(network, data(count, 7), NORMALIZE, PLAN)
        shared = judge(
            network, replace(data(count, 7), rank=world.rank, world=2), NORMALIZE, replace(PLAN, world=world)
        )
        assert math.isclose(alone.loss, shared.loss, rel_tol=1e-5)
        assert alone.accuracy == shared.accuracy


def agreement(world: World) -> None:
    """Votes, sums and rank 0's word are the same in both."""
    assert world.any(world.rank == 1)
    assert not world.any(False)
    assert world.sum([1.0, world.rank]) == [2.0, 1.0]
    assert world.agree(world.rank + 0.1) == 0.1
    rows = world.join(torch.full((2 * world.rank + 1, 1), float(world.rank)))
    assert rows.tolist() == [[0.0], [1.0], [1.0], [1.0]]
    world.wait()


class Blind:
    """A task that writes down the images it sees."""

    def __init__(self) -> None:
        self.seen: set[int] = set()  # some batches are tried before they are trained on

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Note the images and train."""
        self.seen.update(batch.samples.tolist())
        return TASK.step(model, batch)


def every_image_once(world: World) -> None:
    """In each epoch the two processes together see every image once."""
    plan = replace(PLAN, epochs=1, world=world)
    task = Blind()
    fit(new_state(plan), task, replace(data(), rank=world.rank, world=2), plan, Ground().hooks(plan))
    counts = torch.bincount(torch.tensor(sorted(task.seen)), minlength=40).double()
    assert world.sum(counts.tolist()) == [1.0] * 40


def thawing(world: World) -> None:
    """Two processes give what one gives while stages thaw, and while what is added to frozen weights learns."""
    for method in ("staged", "lora"):
        models = []
        for here in (world, World()):
            torch.manual_seed(0)
            layers = [nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 12), nn.ReLU()]
            model = Classifier(nn.Sequential(*layers), 12, 3)
            begin_transfer(model, Settings.of({"finetune": method, "pretrained": True, "rank": 2}))
            begun = {name: p.detach().clone() for name, p in model.named_parameters()}
            plan = replace(PLAN, rule=Rule(optimizer="sgd", lr=0.01, late=method == "staged"), world=here)
            state = State(model=model, optimizer=make_optimizer(model, plan.rule))
            hooks = replace(Ground().hooks(plan), judge=lambda network: Validation(loss=1.0, accuracy=0.5))
            if method == "staged":
                hooks = replace(hooks, release=Thaw(model))
            fit(state, TASK, replace(data(), rank=here.rank, world=here.size), plan, hooks)
            models.append(model)
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert torch.equal(a, begun[name]) == (not a.requires_grad), name


def check_alike(state: State) -> None:
    """Check that all weights are the same in both processes."""
    for p in state.model.parameters():
        total = p.detach().clone()
        torch.distributed.all_reduce(total)
        assert torch.allclose(total, 2 * p.detach())


def memory_runs_out(world: World) -> None:
    """Where memory runs out in one process, both compute in as many parts, to the weights of one that was told to."""
    states, told = [], []
    for accumulate, task in ((1, Hungry(most=3 if world.rank == 1 else 99)), (2, TASK)):
        plan, loader = replace(PLAN, world=world, accumulate=accumulate), replace(data(), rank=world.rank, world=2)
        state = new_state(plan)
        fit(state, task, loader, plan, replace(Ground().hooks(plan), on_parts=told.append))
        states.append(state)
    assert told == [2], told
    for a, b in zip(*(state.model.state_dict().values() for state in states)):
        assert torch.equal(a, b)
    with pytest.raises(MemoryLimitError):
        fit(new_state(plan), Hungry(most=world.rank), loader, plan, Ground().hooks(plan))


CASES = (
    memory_runs_out,
    bad_loss,
    uneven_parts,
    one_is_told_to_stop,
    time_runs_out,
    judging,
    agreement,
    every_image_once,
    thawing,
)


def main() -> None:
    """Run every case and leave a file for each that came to its end."""
    with join_world() as world:
        for case in CASES:
            case(world)
            Path(sys.argv[1], f"{case.__name__}-{world.rank}").touch()


if __name__ == "__main__":
    main()
