"""Averages of the weights along a run, and the batch statistics that belong to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def follow(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move an exponential average of weights and batch statistics (Polyak and Juditsky 1992), quickly at first.

    a = a + (1 - d) (w - a), d = min(decay, (1 + step) / (10 + step)).
    """
    _move(average, model, 1 - min(decay, (1 + step) / (10 + step)))


def add_to_mean(average: nn.Module, model: nn.Module, count: int) -> None:
    """Add a model to an even mean of so many, a = a + (w - a) / (count + 1) (Izmailov et al. 2018).

    The batch statistics of a mean of weights are not the mean of the batch statistics: see `refresh_norms`.
    """
    _move(average, model, 1 / (count + 1))


@torch.no_grad()
def _move(average: nn.Module, model: nn.Module, weight: float) -> None:
    kept, new = list(average.state_dict().values()), list(model.state_dict().values())
    floats = [i for i, value in enumerate(kept) if value.is_floating_point()]
    torch._foreach_lerp_([kept[i] for i in floats], [new[i] for i in floats], weight)
    for old, value in zip(kept, new):
        if not old.is_floating_point():
            old.copy_(value)


@torch.no_grad()
def refresh_norms(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Compute a network's batch statistics anew, as their means over batches of normalized images float (n, C, H, W).

    Only the norms see the batches as in training; dropout and the like rest. Without norms nothing is done.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    was_training, momenta = network.training, [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # an even mean over all batches
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    network.train(was_training)
