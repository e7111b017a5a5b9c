"""Optimizers over parameter groups, and the schedules of their learning rate.

With gradient g, rate lr, weight w and weight decay d, a step of each is

    gd, sgd    g += d w;  v = momentum v + g;  w -= lr (g + momentum v) with nesterov, else w -= lr v
               gd has no momentum and sees all images in one step.
    rmsprop    g += d w;  s = 0.9 s + 0.1 g^2;  w -= lr g / (sqrt(s) + eps)               (Hinton 2012)
    adam       g += d w;  m, s = averages of g, g^2;  w -= lr m' / (sqrt(s') + eps)       (Kingma and Ba 2015)
    adamw      as adam without d in g;  w -= lr d w                                       (Loshchilov and Hutter 2019)
    lars       sgd, each layer's rate in proportion to its weights' norm over its step's  (You et al. 2017)
    lamb       adamw, likewise                                                            (You et al. 2020)
    muon       of filters and matrices the momentum, made orthogonal; adamw of the rest   (Jordan et al. 2024)

where m' and s' are freed from the bias of their start at zero. L1 adds l1 sign(w) to g. Lars and lamb leave the rate of
norms and biases as it is. The steps of muon have the size of adamw's (Liu et al. 2025); where it looks ahead, so does
the adamw of the rest (Dozat 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from linnaeus.durations import Moment, Span

_BETAS = (0.9, 0.99)  # of adamw: runs of minutes are too short for a memory of a thousand steps
_RMS_DECAY = 0.9
_BY_LAYER = ("lars", "lamb")  # whose rate depends on each layer's norms


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How weights follow the gradient.

    Attributes:
        optimizer: one of the names above. lr: highest learning rate.
        momentum: of sgd, lars, rmsprop and muon. nesterov: whether that of sgd looks ahead.
        weight_decay: of matrices and filters; norms and biases have none. Coupled (L2) for gd, sgd, rmsprop, adam and
            lars, decoupled for the others.
        l1: weight of the sum of absolute values of the same weights.
        late: whether some weights begin to learn later than others, which the fused kernel of sgd does not bear.
    """

    optimizer: str
    lr: float
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    l1: float = 0.0
    late: bool = False


Groups = list[dict[str, Any]]


def make_optimizer(
    model: nn.Module, rule: Rule, *, factors: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """Return an optimizer over a model's trainable parameters, decayed and not, each with its factor of the rate.

    `factors` are by the parameters' names, 1 where none is given.
    """
    # as few as possible: each takes time at a step
    grouped: dict[tuple[float, float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = factors.get(name, 1.0)
            shrinks = parameter.ndim > 1
            adapts = shrinks and rule.optimizer in _BY_LAYER
            key = (factor, rule.weight_decay if shrinks else 0.0, rule.l1 if shrinks else 0.0, adapts)
            grouped.setdefault(key, []).append(parameter)
    groups = [
        {"params": parameters, "factor": factor, "weight_decay": decay, "l1": l1, "always_adapt": adapts}
        for (factor, decay, l1, adapts), parameters in grouped.items()
    ]
    return _MAKERS[rule.optimizer](groups, rule)


def _make_sgd(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    momentum = 0.0 if rule.optimizer == "gd" else rule.momentum
    nesterov = rule.nesterov and momentum > 0
    return torch.optim.SGD(
        groups, lr=rule.lr, momentum=momentum, nesterov=nesterov, fused=not rule.late, foreach=rule.late
    )


def _make_rmsprop(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=rule.lr, alpha=_RMS_DECAY, momentum=rule.momentum, foreach=True)


def _make_adam(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=rule.lr, fused=True)


def _make_adamw(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rule.lr, betas=_BETAS, fused=True)


def _make_lars(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    from timm.optim.lars import Lars

    return Lars(groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov and rule.momentum > 0)


def _make_lamb(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    from timm.optim.lamb import Lamb

    # Its own limit of the gradient's norm is set aside: clip_norm is the one there is.
    return Lamb(groups, lr=rule.lr, decoupled_decay=True, max_grad_norm=None)


def _make_muon(groups: Groups, rule: Rule) -> torch.optim.Optimizer:
    from timm.optim.muon import Muon

    return Muon(groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov)


_MAKERS: dict[str, Callable[[Groups, Rule], torch.optim.Optimizer]] = {
    "gd": _make_sgd,
    "sgd": _make_sgd,
    "rmsprop": _make_rmsprop,
    "adam": _make_adam,
    "adamw": _make_adamw,
    "lars": _make_lars,
    "lamb": _make_lamb,
    "muon": _make_muon,
}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@torch.no_grad()
def add_l1(optimizer: torch.optim.Optimizer) -> None:
    """Add the gradient of each group's L1 term, l1 sign(w), to the gradients."""
    for group in optimizer.param_groups:
        if group["l1"]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.sign(), alpha=group["l1"])


_PLATEAU_EPOCHS = 3
_NO_SPAN = Span(amount=0.0, unit="share")
_ROUNDING = 1e-9  # of a progress that is k / n of a run


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a share of its highest, over the progress of a run.

    Attributes:
        shape: "constant", "cosine" (Loshchilov and Hutter 2017), "linear", "onecycle" (Smith 2018: from a 25th up
            along a cosine and down to nothing), "step" (times `factor` after each third of the run), "exponential"
            (evenly down to `factor` squared), or "plateau" (times `factor` whenever three epochs in a row have not
            brought a lower validation loss).
        warmup: how long the rate rises at the start. factor: in (0, 1]; above 1, an exponential rate rises.
        cycles: how often a cosine falls to nothing, each time from the highest rate (Huang et al. 2017).
        hold: progress from which on the rate stays what it is there.
    """

    shape: str
    warmup: Span = _NO_SPAN
    factor: float = 0.1
    cycles: int = 1
    hold: float = 1.0

    def at(self, now: Moment, val_losses: Iterable[float] = ()) -> float:
        """Return the factor in [0, 1] at a moment of the run, after epochs with these validation losses."""
        progress, top = min(now.progress, self.hold), self.warmup.end(now)
        if progress < top:
            risen = progress / top
            return 0.04 + 0.96 * (1 - math.cos(math.pi * risen)) / 2 if self.shape == "onecycle" else risen
        fallen = _after(top, progress)
        if self.shape in ("cosine", "onecycle"):
            return (1 + math.cos(math.pi * (self.cycles * fallen % 1 if fallen < 1 else 1))) / 2
        powers = {
            "step": min(2, int(3 * fallen)),
            "exponential": 2 * fallen,
            "plateau": count_plateaus(val_losses) if self.shape == "plateau" else 0,
        }
        return 1 - fallen if self.shape == "linear" else self.factor ** powers.get(self.shape, 0)

    def finished(self, now: Moment) -> int:
        """Return how many of several cycles have come to their end at a moment of the run; of one alone none."""
        if self.cycles == 1:
            return 0
        return int(self.cycles * _after(self.warmup.end(now), now.progress) + _ROUNDING)


def _after(top: float, progress: float) -> float:
    """Return the share of the time after a warm-up to the top that is over."""
    return max(0.0, min(1.0, (progress - top) / max(1e-12, 1 - top)))


def count_plateaus(losses: Iterable[float]) -> int:
    """Return how often three epochs in a row have not brought a lower loss than the lowest before them."""
    lowest, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == _PLATEAU_EPOCHS:
            plateaus, waited = plateaus + 1, 0
    return plateaus
