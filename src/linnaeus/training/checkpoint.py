"""The whole state of training in one file, written atomically: safetensors with JSON in its header, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from linnaeus.errors import RunError
from linnaeus.results import EpochResult
from linnaeus.storage import write_file

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best weights on validation so far, with what they were chosen by: score, as in Validation, and loss."""

    weights: Weights
    score: float
    loss: float

    def beaten_by(self, score: float, loss: float) -> bool:
        """Whether another result is better: by score, then by loss."""
        return (score, -loss) > (self.score, -self.loss)


@dataclass(kw_only=True)
class Tally:
    """Sums over the batches of the running epoch."""

    loss: float = 0.0
    correct: float = 0.0
    seen: float = 0.0
    skipped: int = 0


@dataclass(kw_only=True)
class State:
    """All that training needs to go on as if it had never stopped.

    Attributes:
        model: what learns. average: that of its weights, which is judged; None judges the model itself, as does one
            that holds nothing yet. averaged: how many steps it holds. snapshots: how many cycles' ends were kept.
        epoch, batch: finished epochs, and finished batches of the running one. step: optimizer steps in all.
        seconds: time spent training, over all sessions. bad_steps: non-finite losses in a row.
        parts: in which a batch was last computed for want of memory.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    scaler: torch.amp.GradScaler | None = None
    stage: str = "train"
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    parts: int = 1
    averaged: int = 0
    snapshots: int = 0
    tally: Tally = field(default_factory=Tally)
    best: Best | None = None
    history: list[EpochResult] = field(default_factory=list)

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and kept."""
        return self.average if self.average is not None and self.averaged else self.model

    @property
    def epochs_since_best(self) -> int:
        """Epochs after the best one."""
        best = max((i for i, result in enumerate(self.history) if result.best), default=0)
        return len(self.history) - 1 - best


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of a network's state on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def separate(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Return tensors on the CPU that lie apart, as files want them: a layer may have two names in a network."""
    apart: Weights = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def save_weights(weights: Weights, path: Path) -> None:
    """Write a network's weights, as `copy_weights` returns them, whole or not at all. Raises StorageError."""
    write_file(path, safetensors.torch.save({name: value.contiguous() for name, value in weights.items()}))


def load_weights(path: Path) -> Weights:
    """Return the weights of a file. Raises RunError for one that is damaged or missing."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"weights of this run in {path}", got=str(error)[:200], fix="Start a new run.") from None


def save_state(state: State, path: Path) -> None:
    """Write a state whole or not at all. Raises StorageError."""
    tensors = _prefix("model", state.model.state_dict()) | _prefix("optimizer", _optimizer_tensors(state.optimizer))
    if state.average is not None:
        tensors |= _prefix("average", state.average.state_dict())
    if state.best is not None:
        tensors |= _prefix("best", state.best.weights)
    facts = {
        "numbers": {name: getattr(state, name) for name in _NUMBERS},
        "groups": [_numbers(group) for group in state.optimizer.param_groups],
        "scalars": [_scalars(group) for group in state.optimizer.param_groups],
        "counts": _optimizer_numbers(state.optimizer),
        "tally": asdict(state.tally),
        "best": {"score": state.best.score, "loss": state.best.loss} if state.best else None,
        "history": [asdict(result) for result in state.history],
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
    }
    data = safetensors.torch.save(
        separate(tensors),
        metadata={"linnaeus": json.dumps(facts)},
    )
    write_file(path, data)


_NUMBERS = ("stage", "epoch", "batch", "step", "seconds", "bad_steps", "parts", "averaged", "snapshots")


def load_state(state: State, path: Path) -> None:
    """Fill a freshly built state from a file. Raises RunError for one that is damaged or belongs to another network."""
    try:
        tensors = safetensors.torch.load_file(path)
        with safe_open(path, framework="pt") as opened:
            facts = json.loads(opened.metadata()["linnaeus"])
        _fill(state, tensors, facts)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        fix = "Start a new run; its folder's config.toml holds the settings."
        raise RunError(f"a checkpoint of this run in {path}", got=str(error).splitlines()[0][:200], fix=fix) from None


def _fill(state: State, tensors: Weights, facts: Mapping[str, Any]) -> None:
    state.model.load_state_dict(_under("model", tensors))
    if state.average is not None:
        state.average.load_state_dict(_under("average", tensors))
    _fill_optimizer(state.optimizer, _under("optimizer", tensors))
    for group, numbers, scalars in zip(state.optimizer.param_groups, facts["groups"], facts["scalars"], strict=True):
        group.update(numbers)
        group.update({name: torch.tensor(value) for name, value in scalars.items()})
    for name, numbers in facts["counts"].items():
        state.optimizer.state[_parameters(state.optimizer)[int(name)]].update(numbers)
    for name in _NUMBERS:
        setattr(state, name, facts["numbers"][name])
    state.tally = Tally(**facts["tally"])
    state.history = [EpochResult(**result) for result in facts["history"]]
    if facts["best"] is not None:
        state.best = Best(weights=_under("best", tensors), **facts["best"])
    if state.scaler is not None:
        state.scaler.load_state_dict(facts["scaler"])


def _prefix(name: str, tensors: Mapping[str, torch.Tensor]) -> Weights:
    return {f"{name}/{key}": value for key, value in tensors.items()}


def _under(name: str, tensors: Weights) -> Weights:
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + "/")}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Weights:
    return {
        f"{i}/{key}": value
        for i, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a number in a tensor, as some optimizers keep their count of steps."""
    return {name: float(value) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _optimizer_numbers(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, float]]:
    """Return what an optimizer keeps of each weight that is a number and no tensor, such as its count of steps."""
    found = {str(i): _numbers(optimizer.state.get(p, {})) for i, p in enumerate(_parameters(optimizer))}
    return {name: numbers for name, numbers in found.items() if numbers}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Weights) -> None:
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        parameter = parameters[int(index)]
        # The memory layout of the weight is kept too: another one may round differently in vectorised kernels.
        like = parameter if value.shape == parameter.shape else value
        kept = torch.empty_like(like, device=parameter.device)
        optimizer.state[parameter][key] = kept.detach().copy_(value)
