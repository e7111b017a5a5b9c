"""Stages: a network's layers in groups from its input to its head, for what treats early and late ones differently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

Stages = list[tuple[str, ...]]  # of each stage from the input on, the names of its modules and weights

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
_PARAMETRIZED = re.compile(r"\.parametrizations\.(\w+)\.[\w.]+$")


def split_layers(name: str, layers: nn.Sequential) -> Stages:
    """Cut layers in a row into stages: after each pool, and before each dense layer and each block of layers."""
    stages: Stages = []
    goes_on = False
    for child, layer in layers.named_children():
        goes_on = goes_on and not isinstance(layer, nn.Linear) and not any(layer.children())
        if any(True for _ in layer.parameters()):
            before = stages.pop() if goes_on else ()
            stages.append((*before, f"{name}.{child}"))
            goes_on = True
        goes_on = goes_on and not isinstance(layer, _POOLS)
    return stages


def place_weights(names: Iterable[str], stages: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """Return the number of each weight's stage by its name: 0 at the input, len(stages) for what no stage names.

    That is the head and what else belongs to the classes. What is added to a weight lies in that weight's stage.
    """
    return {name: _find_stage(_PARAMETRIZED.sub(r".\1", name), stages) for name in names}


def _find_stage(name: str, stages: Sequence[tuple[str, ...]]) -> int:
    for number, members in enumerate(stages):
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return number
    return len(stages)
