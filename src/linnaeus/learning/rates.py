"""The learning-rate range test (Smith 2017): one short run whose rate rises shows which rates a network learns with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from linnaeus.data.loaders import Batch
from linnaeus.errors import TrainingError
from linnaeus.learning.course import make_plan, new_state, open_training, start_from_weights
from linnaeus.learning.learner import Learner
from linnaeus.results import Validation
from linnaeus.training.loop import fit
from linnaeus.training.optim import Schedule
from linnaeus.training.plan import Hooks, Plan
from linnaeus.training.tasks import StepResult, Task

_LOWEST, _HIGHEST, _STEPS = 1e-7, 10.0, 200
_MEMORY = 0.9  # decay of the moving average that smooths the loss
_DIVERGED = 4.0  # times the lowest loss, from which on nothing more is learned
_FEWEST = 10  # steps, without which a curve has no shape


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What a range test found.

    Attributes:
        rates: the learning rate of each step, rising evenly on a logarithmic scale. losses: as smoothed, in nats.
        steepest: the rate at which the loss fell fastest. tenth: a tenth of the rate at which it was lowest, the other
            usual choice. Both are NaN where the loss did not fall.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float
    tenth: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; what could not be found is null."""
        found = {"steepest": self.steepest, "tenth": self.tenth}
        suggested = {name: None if math.isnan(rate) else rate for name, rate in found.items()}
        return {"rates": list(self.rates), "losses": list(self.losses), **suggested}


@dataclass(kw_only=True)
class _Listener:
    """A task that writes down the loss of each step, and knows when it has left all bounds."""

    task: Task
    heard: list[float] = field(default_factory=list)

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Run the task, and listen."""
        result = self.task.step(model, batch)
        self.heard.append(float(result.loss.detach()))
        return result

    def diverged(self) -> bool:
        """Whether the smoothed loss is far above its lowest."""
        smoothed = smooth(self.heard)
        return len(smoothed) > _FEWEST and smoothed[-1] > _DIVERGED * min(smoothed)


def test_rates(learner: Learner) -> RangeTest:
    """Train with a rate that rises from 1e-7 to 10 in 200 steps, or until the loss diverges.

    A network with published weights has its head fitted first, as in a run. The learner's network is spoilt by all
    this. Raises TrainingError if the first steps already have no finite loss.
    """
    if learner.settings.pretrained:
        start_from_weights(learner, resumed=False)
    plan = _plan(learner)
    task, loader = open_training(learner)
    state, listener = new_state(learner, plan), _Listener(task=task)
    learner.interrupts.patient = False
    hooks = Hooks(
        judge=lambda network: Validation(loss=math.nan, accuracy=0.0),
        save=lambda state: None,
        on_epoch=lambda result: False,
        interrupted=listener.diverged,
        watch=lambda batches, total: learner.display.watch(batches, min(total, _STEPS), "range test"),
    )
    try:
        fit(state, listener, loader, plan, hooks)
    except TrainingError:  # the usual end of a rate that is too high
        if len(listener.heard) < _FEWEST:
            raise
    return suggest_rate(listener.heard)


def _plan(learner: Learner) -> Plan:
    """Return the run's own plan, but for the rate, and without an end before the last step."""
    plan = make_plan(learner)
    # An exponential rate ends at the square of its factor.
    rising = Schedule(shape="exponential", factor=math.sqrt(_HIGHEST / _LOWEST))
    return replace(
        plan, rule=replace(plan.rule, lr=_LOWEST), schedule=rising, epochs=_STEPS, steps=_STEPS, time_limit=math.inf,
        ema=0.0, swa=0.0, patience=0, grow=1.0,
    )  # fmt: skip


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the moving average a = m a + (1 - m) l of losses, freed of the bias of its start at nothing."""
    average, smoothed = 0.0, []
    for i, loss in enumerate(losses, start=1):
        average = _MEMORY * average + (1 - _MEMORY) * loss
        smoothed.append(average / (1 - _MEMORY**i))
    return smoothed


def suggest_rate(losses: Sequence[float]) -> RangeTest:
    """Return what the losses of the steps of a range test, in nats, say of rates."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    smoothed = smooth(finite)
    rates = [_LOWEST * (_HIGHEST / _LOWEST) ** (i / _STEPS) for i in range(len(smoothed))]
    lowest = int(np.argmin(smoothed)) if smoothed else 0
    steepest = tenth = math.nan
    if lowest >= _FEWEST:
        slopes = np.gradient(np.array(smoothed[: lowest + 1]))
        steepest, tenth = rates[int(np.argmin(slopes))], rates[lowest] / 10
    return RangeTest(rates=tuple(rates), losses=tuple(smoothed), steepest=steepest, tenth=tenth)
