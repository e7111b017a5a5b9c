"""Optimizers over parameter groups, and the schedules of their learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from linnaeus.errors import SettingError

_BETAS = (0.9, 0.99)  # of adamw: runs of minutes are too short for a memory of a thousand steps


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How weights follow the gradient.

    Attributes:
        optimizer: "sgd" (Nesterov momentum), "adam" or "adamw".
        lr: highest learning rate. head_factor: how much larger it is for the head.
        weight_decay: of matrices and filters; norms and biases have none. L2 for sgd and adam, decoupled for adamw.
    """

    optimizer: str
    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    head_factor: float = 1.0


def make_optimizer(model: nn.Module, rule: Rule, *, head: nn.Module | None = None) -> torch.optim.Optimizer:
    """Return an optimizer over a model's trainable parameters, decayed and not, head and body apart."""
    in_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}  # as few as there are: each takes time at every step
    for parameter in model.parameters():
        if parameter.requires_grad:
            factor = rule.head_factor if id(parameter) in in_head else 1.0
            decay = rule.weight_decay if parameter.ndim > 1 else 0.0
            grouped.setdefault((factor, decay), []).append(parameter)
    groups = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in grouped.items()
    ]
    if rule.optimizer == "sgd":
        nesterov = rule.momentum > 0
        return torch.optim.SGD(groups, lr=rule.lr, momentum=rule.momentum, nesterov=nesterov, fused=True)
    if rule.optimizer == "adam":
        return torch.optim.Adam(groups, lr=rule.lr, fused=True)
    if rule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rule.lr, betas=_BETAS, fused=True)
    raise SettingError("optimizer to be sgd, adam or adamw", got=repr(rule.optimizer), fix="Choose one of them.")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a share of its highest, over the progress of a run.

    Attributes:
        shape: "constant", "cosine" (Loshchilov and Hutter 2017), "linear", or "onecycle" (Smith 2018: from a
            25th up along a cosine and down to nothing).
        warmup: share of the run in which the rate rises.
    """

    shape: str
    warmup: float = 0.0

    def at(self, progress: float) -> float:
        """Return the factor in [0, 1] at a progress in [0, 1]."""
        if progress < self.warmup:
            risen = progress / self.warmup
            return 0.04 + 0.96 * (1 - math.cos(math.pi * risen)) / 2 if self.shape == "onecycle" else risen
        fallen = min(1.0, (progress - self.warmup) / max(1e-12, 1 - self.warmup))
        if self.shape == "constant":
            return 1.0
        return 1 - fallen if self.shape == "linear" else (1 + math.cos(math.pi * fallen)) / 2
