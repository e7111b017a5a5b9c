"""Checkpoints: the whole state comes back to the byte, and a damaged or foreign file is named."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from linnaeus.errors import RunError, StorageError
from linnaeus.results import EpochResult
from linnaeus.training.checkpoint import Best, State, Tally, copy_weights, load_state, save_state
from linnaeus.training.optim import Rule, make_optimizer
from test_storage import FAULTS, fail_everywhere, limited

RULES = {
    "sgd": Rule(optimizer="sgd", lr=0.1),
    "plain": Rule(optimizer="sgd", lr=0.1, momentum=0.0),
    "adam": Rule(optimizer="adam", lr=0.1),
    "adamw": Rule(optimizer="adamw", lr=0.1, weight_decay=0.1),
}


def new_state(rule: Rule, *, width: int = 4) -> State:
    """Return a fresh state of a convolution, a norm and a dense layer, channels last."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 16, 2))
    model = model.to(memory_format=torch.channels_last)
    return State(model=model, optimizer=make_optimizer(model, rule), average=copy.deepcopy(model).eval())


def train(state: State, steps: int) -> None:
    """Take some steps."""
    for i in range(steps):
        torch.manual_seed(i)
        state.optimizer.zero_grad()
        state.model(torch.randn(4, 3, 6, 6)).square().mean().backward()
        state.optimizer.step()
        state.step += 1


def bytes_of(state: State) -> list[torch.Tensor]:
    """Return all tensors of a state."""
    slots = [
        slots for group in state.optimizer.param_groups for slots in map(state.optimizer.state.get, group["params"])
    ]
    moments = [value for slot in slots for _, value in sorted((slot or {}).items()) if isinstance(value, torch.Tensor)]
    return [*state.model.state_dict().values(), *state.judged.state_dict().values(), *moments]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_state_comes_back(tmp_path: Path, rule: Rule) -> None:
    """Weights, norms, moments, numbers, tally, best and history are those that were saved, and so is what follows."""
    state = new_state(rule)
    train(state, 3)
    state.epoch, state.batch, state.seconds, state.bad_steps = 2, 5, 1 / 3, 1
    state.tally = Tally(loss=0.1 + 0.2, correct=7, seen=9, skipped=1)
    state.best = Best(weights=copy_weights(state.model), score=1 / 7, loss=1 / 3)
    state.history = [result(float("nan"))]
    state.optimizer.param_groups[0]["lr"] = 1 / 7
    save_state(state, tmp_path / "state")
    loaded = new_state(rule)
    load_state(loaded, tmp_path / "state")
    assert all(torch.equal(x, y) for x, y in zip(bytes_of(state), bytes_of(loaded), strict=True))
    for name in ("stage", "epoch", "batch", "step", "seconds", "bad_steps", "tally"):
        assert getattr(loaded, name) == getattr(state, name)
    assert str(asdict(loaded.history[0])) == str(asdict(state.history[0]))
    assert loaded.best is not None
    assert (loaded.best.score, loaded.best.loss) == (1 / 7, 1 / 3)
    assert all(torch.equal(loaded.best.weights[k], v) for k, v in state.best.weights.items())
    train(state, 3)
    train(loaded, 3)
    assert all(torch.equal(x, y) for x, y in zip(bytes_of(state), bytes_of(loaded)))


def result(loss: float) -> EpochResult:
    """Return an epoch's result."""
    return EpochResult(stage="train", epoch=1, step=1, seconds=1.0, learning_rate=0.1, train_loss=loss,
                       train_accuracy=0.5, val_loss=loss, val_accuracy=0.5, images_per_second=1.0)  # fmt: skip


def test_no_pickle(tmp_path: Path) -> None:
    """The file is plain safetensors with names that say what each tensor is."""
    state = new_state(RULES["sgd"])
    train(state, 1)
    save_state(state, tmp_path / "state")
    names = safetensors.torch.load_file(tmp_path / "state")
    assert {name.split("/")[0] for name in names} == {"model", "average", "optimizer"}


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: str(error) or "power cut")
def test_the_last_good_checkpoint_survives(tmp_path: Path, error: BaseException) -> None:
    """With a fault at every step of writing, a checkpoint can be loaded, the old one or the new one."""
    state, path = new_state(RULES["adamw"]), tmp_path / "state"
    train(state, 1)
    save_state(state, path)
    state.epoch = 7

    def check() -> None:
        loaded = new_state(RULES["adamw"])
        load_state(loaded, path)
        assert loaded.epoch in (0, 7)

    assert fail_everywhere(lambda: save_state(state, path), error, check) >= 4
    check()


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """Where the new checkpoint does not fit, StorageError says so, and the old one is untouched."""
    path = tmp_path / "state"
    save_state(new_state(RULES["sgd"]), path)
    before = path.read_bytes()
    with limited(1000), pytest.raises(StorageError, match="Free some space"):
        save_state(new_state(RULES["sgd"]), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_damaged_file(tmp_path: Path) -> None:
    """A file that is cut short, empty, foreign or of another network is a RunError, whatever is wrong with it."""
    path = tmp_path / "state"
    save_state(new_state(RULES["sgd"]), path)
    good = path.read_bytes()
    foreign = safetensors.torch.save({"model/0.weight": torch.zeros(1)})
    for bad in (b"", good[:7], good[: len(good) // 2], good[:-1], b"\xff" * 100, foreign):
        path.write_bytes(bad)
        with pytest.raises(RunError, match="checkpoint of this run"):
            load_state(new_state(RULES["sgd"]), path)
    path.write_bytes(good)
    with pytest.raises(RunError, match="checkpoint of this run"):
        load_state(new_state(RULES["sgd"], width=5), path)
    with pytest.raises(RunError, match="checkpoint of this run"):
        load_state(new_state(RULES["sgd"]), tmp_path / "absent")


def test_what_is_better() -> None:
    """The higher accuracy wins; among equals the lower loss; a NaN loss never wins."""
    best = Best(weights={}, score=0.5, loss=1.0)
    assert best.beaten_by(0.6, 2.0)
    assert best.beaten_by(0.5, 0.9)
    assert not best.beaten_by(0.5, 1.0)
    assert not best.beaten_by(0.4, 0.1)
    assert not best.beaten_by(0.5, float("nan"))
