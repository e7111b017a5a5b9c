"""The loop: what a step does, when training ends, and that a bad loss harms nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from linnaeus.data.cache import PackedPixels
from linnaeus.data.loaders import Batch, Loader
from linnaeus.durations import Moment, Span
from linnaeus.errors import TrainingError
from linnaeus.images import Preprocess
from linnaeus.results import EpochResult, Validation
from linnaeus.training.averaging import refresh_norms
from linnaeus.training.checkpoint import State, copy_weights, load_state, save_state
from linnaeus.training.loop import fit
from linnaeus.training.optim import Rule, Schedule, make_optimizer
from linnaeus.training.plan import Hooks, Plan, side_at
from linnaeus.training.tasks import Normalizer, StepResult, Supervised
from linnaeus.training.validation import judge

PREPROCESS = Preprocess(height=8, width=8, channels=1, fit="stretch", mean=(0.5,), std=(0.5,))
NORMALIZE = Normalizer(PREPROCESS, torch.device("cpu"))
PLAN = Plan(rule=Rule(optimizer="sgd", lr=0.1), schedule=Schedule(shape="constant"), epochs=3, seed=5, size=8)


class Net(nn.Module):
    """A small network with everything that has a state: a batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.layers(x)


def data(count: int = 40, batch_size: int = 10) -> Loader:
    """Return a loader of noise whose brightness tells the class."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(0).integers(0, 100, (count, 8, 8, 1))
    pixels = (noise + 70 * labels[:, None, None, None]).astype(np.uint8)
    return Loader(pixels=PackedPixels(array=pixels), labels=labels, indices=np.arange(count), batch_size=batch_size,
                  shuffle=True, seed=5)  # fmt: skip


def new_state(plan: Plan = PLAN) -> State:
    """Return a fresh state."""
    model = Net()
    average = copy.deepcopy(model).eval() if plan.ema or plan.swa else None
    return State(model=model, optimizer=make_optimizer(model, plan.rule), average=average)


def validations(*pairs: tuple[float, float]) -> list[Validation]:
    """Return results on validation of these losses and accuracies."""
    return [Validation(loss=loss, accuracy=accuracy) for loss, accuracy in pairs]


@dataclass
class Ground:
    """Surroundings of a loop that write down what it asked of them."""

    saved: int = 0
    epochs: list[EpochResult] = field(default_factory=list)
    path: Path | None = None
    interrupt_at: int = -1
    steps: int = 0
    scores: list[Validation] | None = None
    kept: list[dict[str, torch.Tensor]] = field(default_factory=list)
    refreshed: int = 0

    def hooks(self, plan: Plan = PLAN) -> Hooks:
        """Return what the loop asks of its surroundings."""
        return Hooks(
            judge=lambda network: self.scores.pop(0) if self.scores else judge(network, data(), NORMALIZE, plan),
            save=self.save,
            on_epoch=lambda result: self.epochs.append(result) or False,
            interrupted=self.interrupted,
            refresh=self.refresh,
            keep=lambda state: self.kept.append(copy_weights(state.model)),
        )

    def refresh(self, network: nn.Module) -> None:
        """Count, and bring the batch statistics up to date."""
        self.refreshed += 1
        batches = (NORMALIZE(batch.pixels) for batch in data().batches())
        refresh_norms(network, batches)

    def save(self, state: State) -> None:
        """Count, and write a checkpoint where there is a path."""
        self.saved += 1
        if self.path is not None:
            save_state(state, self.path)

    def interrupted(self) -> bool:
        """Return True once, after the step that was asked for."""
        self.steps += 1
        return self.steps == self.interrupt_at


@dataclass
class Poisoned:
    """A task whose loss is not finite at some steps."""

    steps: set[int]
    value: float
    inner: Supervised = field(default_factory=lambda: Supervised(normalize=NORMALIZE))
    seen: int = 0

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Train as the inner task does, but for the loss of some steps."""
        result = self.inner.step(model, batch)
        self.seen += 1
        return replace(result, loss=result.loss * self.value) if self.seen in self.steps else result


TASK = Supervised(normalize=NORMALIZE)


def test_it_learns_and_tells() -> None:
    """Three epochs of four steps lower the loss, are told one by one, and each is saved."""
    state, ground = new_state(), Ground()
    assert fit(state, TASK, data(), PLAN, ground.hooks()) == "done"
    assert [r.epoch for r in ground.epochs] == [1, 2, 3]
    assert [r.step for r in state.history] == [4, 8, 12]
    assert ground.epochs[-1].val_loss < ground.epochs[0].val_loss
    assert ground.saved == 3
    assert (state.epoch, state.batch, state.step) == (3, 0, 12)
    assert state.best is not None
    assert state.best.score == max(r.val_accuracy for r in ground.epochs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_changes_nothing(value: float) -> None:
    """A step without a finite loss leaves weights, batch statistics of the average, and optimizer as they were."""
    plan = replace(PLAN, epochs=1, ema=0.5)
    state, ground = new_state(plan), Ground()
    fit(state, Poisoned(steps={4}, value=value), data(), plan, ground.hooks(plan))
    assert ground.epochs[0].skipped_steps == 1
    assert math.isfinite(ground.epochs[0].train_loss)
    short, quiet = new_state(plan), Ground(interrupt_at=3)
    fit(short, TASK, data(), plan, quiet.hooks(plan))
    for a, b in ((state.model, short.model), (state.average, short.average)):
        assert a is not None
        assert b is not None
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()):
            assert (a is state.model and "running" in name) or "num_batches" in name or torch.equal(x, y), name
    momenta = [s.optimizer.state[p]["momentum_buffer"] for s in (state, short) for p in s.model.parameters()]
    half = len(momenta) // 2
    assert all(torch.equal(x, y) for x, y in zip(momenta[:half], momenta[half:]))


def test_three_bad_losses_in_a_row_end_training() -> None:
    """The error names epoch, batch and images, and the best weights of the epoch before are kept."""
    state, ground = new_state(), Ground()
    with pytest.raises(TrainingError, match=r"3 batches in a row.*epoch 2, batch 4 \(images \d+, ") as caught:
        fit(state, Poisoned(steps={6, 7, 8}, value=math.nan), data(), PLAN, ground.hooks())
    assert "Lower lr" in str(caught.value)
    assert state.best is not None
    assert state.best.loss == ground.epochs[0].val_loss
    assert all(value.isfinite().all() for value in state.best.weights.values())


def test_bad_losses_that_are_not_in_a_row_are_passed_over() -> None:
    """Two bad losses, a good one, and two bad ones do not end training."""
    state, ground = new_state(), Ground()
    assert fit(state, Poisoned(steps={2, 3, 5, 6, 8}, value=math.nan), data(), PLAN, ground.hooks()) == "done"
    assert [r.skipped_steps for r in ground.epochs] == [2, 3, 0]


@pytest.mark.parametrize("parts", [2, 3, 20])
def test_parts_of_a_batch_add_up(parts: int) -> None:
    """A batch computed in parts gives the gradient of the whole, for any number of parts, down to single images."""
    plan = replace(PLAN, epochs=1, schedule=Schedule(shape="constant"))
    whole, cut = new_state(), new_state()
    for state in (whole, cut):  # without batch statistics and dropout, parts cannot matter
        state.model.layers[1], state.model.layers[3] = nn.Identity(), nn.Identity()
        state.optimizer = make_optimizer(state.model, plan.rule)
    fit(whole, TASK, data(), plan, Ground().hooks())
    fit(cut, TASK, data(), replace(plan, accumulate=parts), Ground().hooks())
    for x, y in zip(whole.model.parameters(), cut.model.parameters()):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    assert whole.history[0].train_accuracy == cut.history[0].train_accuracy


def test_gradient_descent_takes_the_whole_gradient() -> None:
    """A step over all images, 256 at a time, is the rate along the gradient that one batch of them all has."""
    state, rule = new_state(), Rule(optimizer="gd", lr=0.1)
    state.model.layers[1], state.model.layers[3] = nn.Identity(), nn.Identity()
    state.optimizer = make_optimizer(state.model, rule)
    whole, loader = copy.deepcopy(state.model), data(600, 600)
    fit(state, TASK, loader, replace(PLAN, epochs=1, rule=rule, accumulate=3), Ground().hooks())
    assert state.step == 1
    TASK.step(whole, next(loader.batches())).loss.backward()
    for after, before in zip(state.model.parameters(), whole.parameters()):
        torch.testing.assert_close(after, before - 0.1 * before.grad, rtol=1e-5, atol=1e-7)


AVERAGES = {
    "ema": {"ema": 0.9},
    "swa": {"swa": 0.6, "schedule": Schedule(shape="linear", hold=0.4)},
    "snapshots": {"schedule": Schedule(shape="cosine", cycles=4)},
}


@pytest.mark.parametrize(
    ("kind", "at"),
    [("ema", 1), ("ema", 3), ("ema", 4), ("ema", 6), ("ema", 12), ("swa", 6), ("swa", 9), ("snapshots", 7)],
)
def test_interrupted_and_resumed(tmp_path: Path, kind: str, at: int) -> None:
    """A run that is interrupted after any step, saved, and loaded afresh ends with the same state and history."""
    plan = replace(PLAN, rule=Rule(optimizer="adamw", lr=0.01, weight_decay=0.1), **AVERAGES[kind])
    quiet, path = new_state(plan), tmp_path / "state"
    fit(quiet, TASK, data(), plan, Ground().hooks(plan))
    state, ground = new_state(plan), Ground(interrupt_at=at, path=path)
    assert fit(state, TASK, data(), plan, ground.hooks(plan)) == "interrupted"
    resumed = new_state(plan)
    load_state(resumed, path)
    assert resumed.step == at
    fit(resumed, TASK, data(), plan, Ground().hooks(plan))
    save_state(quiet, tmp_path / "a")
    save_state(resumed, tmp_path / "b")
    assert told(quiet) == told(resumed)
    assert (quiet.averaged, quiet.snapshots) == (resumed.averaged, resumed.snapshots)
    for x, y in zip(quiet.judged.state_dict().values(), resumed.judged.state_dict().values()):
        assert torch.equal(x, y)
    for x, y in zip(quiet.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(x, y)


def told(state: State) -> list[tuple[object, ...]]:
    """Return what does not depend on the clock of a state's history."""
    return [(r.epoch, r.step, r.learning_rate, r.train_loss, r.val_loss, r.best) for r in state.history]


def test_patience() -> None:
    """Training stops after as many epochs without a better result as the plan allows."""
    plan = replace(PLAN, epochs=10, patience=2)
    state, ground = new_state(), Ground(scores=validations((1.0, 0.5), (0.9, 0.5), (1.0, 0.5), (0.9, 0.5), (0.8, 0.9)))
    assert fit(state, TASK, data(), plan, ground.hooks()) == "patience"
    assert [r.best for r in ground.epochs] == [True, True, False, False]


def test_patience_that_has_run_out_before_a_crash(tmp_path: Path) -> None:
    """A run that was killed after its last epoch was saved does not train another one."""
    plan = replace(PLAN, epochs=10, patience=1)
    state, ground = new_state(), Ground(path=tmp_path / "state", scores=validations((1.0, 0.5), (1.0, 0.5)))
    fit(state, TASK, data(), plan, ground.hooks())
    resumed = new_state()
    load_state(resumed, tmp_path / "state")
    assert fit(resumed, TASK, data(), plan, Ground().hooks()) == "patience"
    assert len(resumed.history) == 2


def test_time_runs_out() -> None:
    """A limit of time ends training within an epoch, judges what there is, and brings the learning rate down."""
    plan = replace(PLAN, epochs=100_000, time_limit=0.3, schedule=Schedule(shape="linear"))
    state, ground = new_state(), Ground()
    assert fit(state, TASK, data(), plan, ground.hooks()) == "time"
    assert 0.3 <= state.seconds < 5
    assert ground.epochs[-1].learning_rate < 0.05
    assert state.best is not None


class Rates:
    """A task that writes down the learning rate of each step."""

    def __init__(self, state: State) -> None:
        self.state, self.seen = state, list[float]()

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Note the rate and train."""
        self.seen.append(self.state.optimizer.param_groups[0]["lr"])
        return TASK.step(model, batch)


@pytest.mark.parametrize("warmup", ["0.5", "5 steps", "1.25 epochs"])
def test_a_run_of_ten_steps(warmup: str) -> None:
    """Ten steps of endless epochs end after the tenth, are judged, and rise and fall at the formula's rates."""
    schedule = Schedule(shape="linear", warmup=Span.of(warmup))
    plan = replace(PLAN, epochs=100_000, steps=10, schedule=schedule, rule=Rule(optimizer="sgd", lr=1.0))
    state, ground = new_state(plan), Ground()
    task = Rates(state)
    assert fit(state, task, data(), plan, ground.hooks(plan)) == "done"
    assert task.seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2], abs=1e-6)
    assert [r.step for r in state.history] == [4, 8, 10]
    assert (state.epoch, state.batch, state.step) == (2, 2, 10)


@pytest.mark.parametrize("at", [1, 4, 8, 9, 10])
def test_a_run_of_ten_steps_resumed(tmp_path: Path, at: int) -> None:
    """A run whose length is a number of steps, interrupted after any of them, ends with the same state and history."""
    schedule = Schedule(shape="cosine", warmup=Span.of("3 steps"))
    plan = replace(PLAN, epochs=100_000, steps=10, schedule=schedule, ema=0.9)
    quiet, path = new_state(plan), tmp_path / "state"
    fit(quiet, TASK, data(), plan, Ground().hooks(plan))
    fit(new_state(plan), TASK, data(), plan, Ground(interrupt_at=at, path=path).hooks(plan))
    for _ in range(2):  # the second time there is nothing left to do
        resumed = new_state(plan)
        load_state(resumed, path)
        assert fit(resumed, TASK, data(), plan, Ground(path=path).hooks(plan)) == "done"
        assert told(quiet) == told(resumed)
        for x, y in zip(quiet.judged.state_dict().values(), resumed.judged.state_dict().values()):
            assert torch.equal(x, y)


def test_a_warmup_in_seconds() -> None:
    """In a run that a time limit ends, a warm-up of half of it is over at the top, and the rate falls from there."""
    schedule = Schedule(shape="linear", warmup=Span.of("0.1s"))
    plan = replace(PLAN, epochs=100_000, time_limit=0.2, schedule=schedule, rule=Rule(optimizer="sgd", lr=1.0))
    state = new_state(plan)
    task = Rates(state)
    assert fit(state, task, data(), plan, Ground().hooks(plan)) == "time"
    top = task.seen.index(max(task.seen))
    assert task.seen[0] == 0
    assert task.seen[: top + 1] == sorted(task.seen[: top + 1])
    assert task.seen[top:] == sorted(task.seen[top:], reverse=True)


def test_checkpoints_within_an_epoch() -> None:
    """With no time between checkpoints, every step is saved; with endless time, only the epoch."""
    ground = Ground()
    fit(new_state(), TASK, data(), replace(PLAN, epochs=1, checkpoint_every=0.0), ground.hooks())
    assert ground.saved == 4 + 1


def test_the_average_follows() -> None:
    """The moving average of a decay of 0.5 is between where it was and where the weights are; batches are copied."""
    plan = replace(PLAN, ema=0.5, epochs=1)
    state = new_state(plan)
    start = copy.deepcopy(state.model.state_dict())
    fit(state, TASK, data(40, 40), plan, Ground().hooks(plan))
    assert state.average is not None
    now, average = state.model.state_dict(), state.average.state_dict()
    weight = 1 - min(0.5, 2 / 11)  # the first step follows quickly
    for name, value in average.items():
        expected = torch.lerp(start[name], now[name], weight) if value.is_floating_point() else now[name]
        torch.testing.assert_close(value, expected)
    assert state.judged is state.average


@dataclass
class Watching:
    """A task that writes down the weights before each step."""

    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Train as usual."""
        self.weights.append(copy_weights(model))
        return TASK.step(model, batch)


def test_weights_are_averaged_evenly_at_the_end() -> None:
    """SWA's weights are NumPy's mean of those after each step of the last half, its rate stays, its norms are new."""
    plan = replace(PLAN, epochs=4, swa=0.5, schedule=Schedule(shape="linear", hold=0.5))
    state, ground, task = new_state(plan), Ground(), Watching()
    fit(state, task, data(), plan, ground.hooks(plan))
    after = [*task.weights[1:], copy_weights(state.model)][8:]
    assert (state.averaged, ground.refreshed, len(after)) == (8, 2, 8)
    assert [r.learning_rate for r in ground.epochs[2:]] == pytest.approx([0.05, 0.05])
    assert state.judged is state.average
    for name, _ in state.model.named_parameters():
        expected = np.mean([weights[name].numpy() for weights in after], axis=0)
        np.testing.assert_allclose(state.average.get_parameter(name).detach().numpy(), expected, atol=1e-6)
    convolved = [state.average.layers[0](NORMALIZE(batch.pixels)).detach().numpy() for batch in data().batches()]
    norm = state.average.layers[1]
    np.testing.assert_allclose(norm.running_mean, np.mean([x.mean((0, 2, 3)) for x in convolved], axis=0), atol=1e-5)
    variances = [x.var((0, 2, 3)) * (n := x.size // 4) / (n - 1) for x in convolved]
    np.testing.assert_allclose(norm.running_var, np.mean(variances, axis=0), rtol=1e-4)
    assert norm.momentum == 0.1


def test_before_the_average_the_model_is_judged() -> None:
    """Until the first step of its share of the run, an even average holds nothing and is not judged."""
    plan = replace(PLAN, epochs=1, swa=0.5)
    state = new_state(plan)
    assert state.judged is state.model
    fit(state, TASK, data(), plan, Ground().hooks(plan))
    assert state.judged is state.average


def test_snapshots_are_kept_at_the_ends_of_cycles() -> None:
    """Three cycles of twelve steps keep the weights after steps 4, 8 and 12; one cycle keeps none."""
    plan = replace(PLAN, schedule=Schedule(shape="cosine", cycles=3))
    state, ground, task = new_state(plan), Ground(), Watching()
    fit(state, task, data(), plan, ground.hooks(plan))
    after = [*task.weights[1:], copy_weights(state.model)]
    assert state.snapshots == len(ground.kept) == 3
    for kept, step in zip(ground.kept, (4, 8, 12)):
        assert all(torch.equal(value, after[step - 1][name]) for name, value in kept.items())
    quiet = Ground()
    fit(new_state(), TASK, data(), replace(PLAN, epochs=1, schedule=Schedule(shape="cosine")), quiet.hooks())
    assert quiet.kept == []


def test_cycles_and_a_rate_that_is_held() -> None:
    """A cosine of M cycles is cos(pi (M t mod 1)) on each; from `hold` on the rate is the one there."""
    schedule = Schedule(shape="cosine", cycles=4)
    t = np.arange(0, 1, 1 / 64)
    expected = (1 + np.cos(np.pi * ((4 * t) % 1))) / 2
    np.testing.assert_allclose([schedule.at(Moment(progress=x)) for x in t], expected, atol=1e-12)
    assert schedule.at(Moment(progress=1.0)) == pytest.approx(0)
    finished = [schedule.finished(Moment(progress=x)) for x in (0.0, 0.24, 0.25, 0.5, 0.99, 1.0)]
    assert finished == [0, 0, 1, 2, 3, 4]
    held = Schedule(shape="cosine", hold=0.75)
    there = Schedule(shape="cosine").at(Moment(progress=0.75))
    assert {held.at(Moment(progress=x)) for x in (0.75, 0.9, 1.0)} == {there}


def test_frozen_norms_keep_their_statistics() -> None:
    """With frozen norms the running statistics do not move; otherwise they do."""
    for frozen in (True, False):
        state = new_state()
        before = state.model.layers[1].running_mean.clone()
        fit(state, TASK, data(), replace(PLAN, epochs=1, freeze_norms=frozen), Ground().hooks())
        assert torch.equal(before, state.model.layers[1].running_mean) == frozen


def test_a_clipped_gradient_takes_a_short_step() -> None:
    """With a small largest norm, one step of plain descent moves no further than rate times norm."""
    plan = replace(PLAN, epochs=1, clip_norm=1e-3, rule=Rule(optimizer="sgd", lr=0.1, momentum=0.0))
    state = new_state(plan)
    before = [p.detach().clone() for p in state.model.parameters()]
    fit(state, TASK, data(40, 40), plan, Ground().hooks())
    moved = math.sqrt(sum(float((p - q).detach().square().sum()) for p, q in zip(state.model.parameters(), before)))
    assert 0.5e-4 < moved <= 1.01e-4


def test_half_precision_stays_near() -> None:
    """bf16 arithmetic learns like fp32 within rounding, and the weights stay float32."""
    states = [new_state(), new_state()]
    for state, precision in zip(states, ("fp32", "bf16")):
        plan = replace(PLAN, precision=precision)
        fit(state, TASK, data(), plan, Ground().hooks(plan))
    assert {p.dtype for p in states[1].model.parameters()} == {torch.float32}
    assert abs(states[0].history[-1].val_loss - states[1].history[-1].val_loss) < 0.1


def test_judging() -> None:
    """Loss and accuracy are the means over all images, whatever the batches, and nothing gives NaN and 0."""
    network = Net().train()
    found = [judge(network, data(41, n), NORMALIZE, PLAN) for n in (1, 10, 41)]
    values = [(each.loss, each.accuracy) for each in found]
    assert network.training
    assert np.ptp(values, axis=0).max() < 1e-6
    pixels = torch.from_numpy(data(41).pixels.take(np.arange(41))).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = network.eval()(NORMALIZE(pixels)).numpy().astype(np.float64)
    right = np.arange(41) % 3
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(41), right]).mean()
    assert values[0] == pytest.approx((loss, (logits.argmax(axis=1) == right).mean()), abs=1e-5)
    empty = replace(data(), indices=np.arange(0))
    nothing = judge(network, empty, NORMALIZE, PLAN)
    assert math.isnan(nothing.loss)
    assert nothing.accuracy == 0
    assert math.isnan(found[0].mean_ap)


def test_growing_pictures() -> None:
    """Pictures grow in three steps to their full side, by progress alone."""
    assert [side_at(p, 32, 0.5) for p in (0.0, 0.2, 0.3, 0.6, 0.7, 1.0)] == [16, 16, 24, 24, 32, 32]
    assert {side_at(p, 32, 1.0) for p in (0.0, 0.5, 1.0)} == {32}


def test_a_skipped_step_leaves_batch_statistics_alone() -> None:
    """A batch whose pictures overflow the network spoils neither its weights nor its batch statistics."""

    @dataclass
    class Overflows:
        inner: Supervised = field(default_factory=lambda: Supervised(normalize=NORMALIZE))
        seen: int = 0

        def step(self, model: nn.Module, batch: Batch) -> StepResult:
            self.seen += 1
            if self.seen != 2:
                return self.inner.step(model, batch)
            logits = model(torch.full((4, 1, 8, 8), torch.inf))
            return StepResult(loss=logits.mean(), logits=logits)

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    state = State(model=model, optimizer=make_optimizer(model, PLAN.rule))
    fit(state, Overflows(), data(40, 8), replace(PLAN, epochs=1), Ground().hooks())
    assert state.history[0].skipped_steps == 1
    assert all(bool(torch.isfinite(buffer).all()) for buffer in model.buffers())
