"""The one training loop. It knows no data set, no network and no metric by name."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from linnaeus.data.loaders import Batch, Loader
from linnaeus.errors import TrainingError
from linnaeus.results import EpochResult
from linnaeus.runtime import World, autocast, seed_all
from linnaeus.training.averaging import add_to_mean, follow
from linnaeus.training.checkpoint import Best, State, Tally, copy_weights
from linnaeus.training.optim import Rule, Schedule, add_l1, set_learning_rate
from linnaeus.training.tasks import Normalizer, Task

_BAD_STEPS_IN_A_ROW = 3
_HALF_FROM, _FULL_FROM = 0.25, 0.65  # progress at which growing pictures reach the middle and the full side

Watch = Callable[[Iterable[Batch], int], Iterable[Batch]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how to train.

    Attributes:
        epochs: after which training ends. time_limit: seconds of training after which it ends all the same; the
            schedule follows whichever runs out first.
        ema: decay per step of the weights' moving average. swa: share of the run, its end, over which they are averaged
            evenly instead (Izmailov et al. 2018). Of both, the average is judged.
        patience: epochs without a better result before it stops, 0 for never.
        size: side of the pictures. grow: share of it at which training begins (progressive resizing, Howard 2018).
        freeze_norms: keep the batch statistics of a pretrained network.
    """

    rule: Rule
    schedule: Schedule
    epochs: int
    time_limit: float = math.inf
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    swa: float = 0.0
    patience: int = 0
    size: int = 0
    grow: float = 1.0
    freeze_norms: bool = False
    precision: str = "fp32"
    seed: int = 0
    checkpoint_every: float = math.inf
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    world: World = field(default_factory=World)


def side_at(progress: float, size: int, grow: float) -> int:
    """Return the side of growing pictures at a progress in [0, 1], a multiple of 8 below the full one."""
    if progress >= _FULL_FROM or grow == 1.0:
        return size
    share = grow if progress < _HALF_FROM else (1 + grow) / 2
    return min(size, max(8, 8 * round(size * share / 8)))


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop asks of its surroundings.

    Attributes:
        judge: returns validation loss and accuracy of a network. save: writes a checkpoint.
        on_epoch: told of each finished epoch; returns whether to stop. interrupted: whether a signal asked to stop.
        refresh: brings the batch statistics of averaged weights up to date before they are judged.
        keep: keeps the weights at the end of a cycle of the learning rate, the `state.snapshots`-th.
        watch: wraps the batches of an epoch, to show progress.
    """

    judge: Callable[[nn.Module], tuple[float, float]]
    save: Callable[[State], None]
    on_epoch: Callable[[EpochResult], bool]
    interrupted: Callable[[], bool] = lambda: False
    refresh: Callable[[nn.Module], None] = lambda network: None
    keep: Callable[[State], None] = lambda state: None
    watch: Watch = lambda batches, total: batches


def fit(state: State, task: Task, loader: Loader, plan: Plan, hooks: Hooks) -> str:
    """Train from where the state is until the plan ends.

    Returns why it ended: "done", "time", "patience", "stopped" or "interrupted". Raises TrainingError after three
    non-finite losses in a row; the best weights so far are in `state.best`.
    """
    network: nn.Module = state.model
    if plan.world.size > 1:
        network = DistributedDataParallel(state.model)
    session = _Session(state=state, network=network, task=task, loader=loader, plan=plan, hooks=hooks)
    while state.epoch < plan.epochs:
        if plan.patience and _epochs_since_best(state) >= plan.patience:  # a resumed run may begin here, too
            return "patience"
        start = time.perf_counter()
        ended = _train_epoch(session)
        result = _close_epoch(session, time.perf_counter() - start)
        if ended != "interrupted":  # the checkpoint of an interruption was taken before the epoch was cut short
            _save(session)
        stop = plan.world.any(hooks.on_epoch(result))
        if ended or stop:
            return ended or "stopped"
        if state.seconds >= plan.time_limit:
            return "time"
    return "done"


def _save(session: _Session) -> None:
    """Write a checkpoint that holds the sums of all processes."""
    state, world = session.state, session.plan.world
    if world.size > 1:
        tally = state.tally
        loss, correct, seen = world.sum([tally.loss, tally.correct, tally.seen])
        whole = Tally(loss=loss, correct=correct, seen=seen, skipped=tally.skipped)
        state.tally = whole if world.leads else Tally(skipped=tally.skipped)
    session.hooks.save(state)


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What the steps of one call of `fit` share."""

    state: State
    network: nn.Module
    task: Task
    loader: Loader
    plan: Plan
    hooks: Hooks
    zero: float = field(init=False)
    buffers: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zero", time.perf_counter() - self.state.seconds)
        object.__setattr__(self, "buffers", list(self.state.model.buffers()))  # a walk that takes too long for a step

    def count_seconds(self) -> None:
        """Bring the time spent training up to date, judging and saving included, by the first process's clock."""
        self.state.seconds = self.plan.world.agree(time.perf_counter() - self.zero)

    def progress(self, batch: int, seconds: float) -> float:
        """Return the share of the run that is done, by steps or by time, whichever is further."""
        by_steps = (self.state.epoch * self.loader.steps + batch) / (self.plan.epochs * self.loader.steps)
        return min(1.0, max(by_steps, seconds / self.plan.time_limit))

    def side(self, batch: int) -> int:
        """Return the side of the pictures of a batch of the running epoch."""
        return side_at(self.progress(batch, self.state.seconds), self.plan.size, self.plan.grow)


def _train_epoch(session: _Session) -> str:
    """Train on the rest of the running epoch. Returns "" or why it was cut short."""
    state, plan, hooks, loader = session.state, session.plan, session.hooks, session.loader
    _set_mode(session.network, plan)
    saved = state.seconds
    with contextlib.closing(loader.batches(state.epoch, start=state.batch, side=session.side)) as batches:
        for batch in hooks.watch(batches, loader.steps - state.batch):
            _train_step(session, batch.to(plan.device))
            state.batch += 1
            session.count_seconds()
            _keep_snapshot(session)
            if plan.world.any(hooks.interrupted()):
                _save(session)
                return "interrupted"
            if state.seconds >= plan.time_limit:
                return "time"
            if state.seconds - saved > plan.checkpoint_every:
                _save(session)
                saved = state.seconds
    return ""


def _keep_snapshot(session: _Session) -> None:
    """Keep the weights if a cycle of the learning rate has just come to its end (Huang et al. 2017)."""
    state = session.state
    finished = session.plan.schedule.finished(session.progress(state.batch, state.seconds))
    while state.snapshots < finished:
        state.snapshots += 1
        session.hooks.keep(state)


def _train_step(session: _Session, batch: Batch) -> None:
    """One optimizer step, or none if the loss is not finite in any process."""
    state, plan = session.state, session.plan
    progress = session.progress(state.batch, state.seconds)
    seed_all(plan.device, plan.seed, state.epoch, state.batch, plan.world.rank)
    factor = plan.schedule.at(progress, (result.val_loss for result in state.history))
    set_learning_rate(state.optimizer, plan.rule.lr * factor)
    state.optimizer.zero_grad(set_to_none=True)
    statistics = [buffer.clone() for buffer in session.buffers]
    results = _backward(session, batch)
    state.step += 1
    if not results:
        for buffer, before in zip(session.buffers, statistics):
            buffer.copy_(before)  # a batch that overflows has spoilt the batch statistics, too
        _skip_step(state, batch)
        return
    state.bad_steps = 0
    _follow_gradient(state, plan, progress)
    for part, loss, logits in results:
        state.tally.loss += loss * len(part.labels)
        state.tally.correct += int((logits.argmax(dim=1) == part.labels).sum())
        state.tally.seen += len(part.labels)


def _backward(session: _Session, batch: Batch) -> list[tuple[Batch, float, torch.Tensor]]:
    """Add up the gradient over the parts of a batch. Returns each with its loss and logits.

    Returns nothing if any process met a non-finite loss.
    """
    state, plan, network = session.state, session.plan, session.network
    results = []
    parts = _cut(batch, plan.accumulate, plan.world.size)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        waits = contextlib.nullcontext() if last or plan.world.size == 1 else network.no_sync()  # type: ignore[operator]
        with waits:
            with autocast(plan.device, plan.precision):
                result = session.task.step(network, part)
            value = result.loss.item()
            if plan.world.any(not math.isfinite(value)):
                return []
            # Processes average their gradients; shares of the whole batch make that the mean over all its images.
            loss = result.loss * (part.share * plan.world.size)
            (state.scaler.scale(loss) if state.scaler is not None else loss).backward()
        results.append((part, value, result.logits.detach()))
    return results


def _cut(batch: Batch, parts: int, processes: int) -> list[Batch]:
    """Cut a batch into as many parts in every process, none of them empty."""
    n = len(batch.labels)
    parts = max(1, min(parts, round(n / batch.share) // processes)) if n else 1
    if parts == 1:
        return [batch]
    edges = [n * i // parts for i in range(parts + 1)]
    return [batch.cut(start, end) for start, end in itertools.pairwise(edges)]


def _skip_step(state: State, batch: Batch) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    state.bad_steps += 1
    state.tally.skipped += 1
    if state.bad_steps >= _BAD_STEPS_IN_A_ROW:
        images = ", ".join(str(i) for i in batch.samples[:8])
        raise TrainingError(
            "a finite loss",
            got=f"{state.bad_steps} batches in a row without one, at epoch {state.epoch + 1}, "
            f"batch {state.batch + 1} (images {images}, ...)",
            fix="Lower lr, set clip_norm=1 or precision=fp32. The best weights so far are kept.",
        )


def _follow_gradient(state: State, plan: Plan, progress: float) -> None:
    """Clip, step, and move the average after the weights."""
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    if plan.rule.l1:
        add_l1(state.optimizer)
    if plan.clip_norm:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), plan.clip_norm)
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        state.optimizer.step()
    if state.average is not None:
        _average(state, state.average, plan, progress)


def _average(state: State, average: nn.Module, plan: Plan, progress: float) -> None:
    """Take the weights after a step into the average, if they belong there."""
    if plan.ema:
        follow(average, state.model, plan.ema, state.step)
    elif progress >= 1 - plan.swa:
        add_to_mean(average, state.model, state.averaged)
    else:
        return
    state.averaged += 1


def _close_epoch(session: _Session, seconds: float) -> EpochResult:
    """Judge the network, remember it if it is the best, and start the next epoch."""
    state = session.state
    result = _judge_epoch(session, seconds)
    if result.best:
        state.best = Best(weights=copy_weights(state.judged), accuracy=result.val_accuracy, loss=result.val_loss)
    state.history.append(result)
    if state.batch == session.loader.steps:
        state.epoch, state.batch, state.tally = state.epoch + 1, 0, Tally()
    session.count_seconds()
    return result


def _judge_epoch(session: _Session, seconds: float) -> EpochResult:
    state, tally = session.state, session.state.tally
    loss, correct, seen = session.plan.world.sum([tally.loss, tally.correct, tally.seen])
    for buffer in state.judged.buffers():  # batch statistics are each process's own until the next step
        session.plan.world.share(buffer)
    if session.plan.swa and state.judged is state.average:
        session.hooks.refresh(state.judged)
    val_loss, val_accuracy = session.hooks.judge(state.judged)
    return EpochResult(
        stage=state.stage,
        epoch=state.epoch + 1,
        step=state.step,
        seconds=seconds,
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
        train_loss=loss / seen if seen else math.nan,
        train_accuracy=correct / seen if seen else math.nan,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        images_per_second=seen / seconds if seconds > 0 else math.nan,
        skipped_steps=tally.skipped,
        best=math.isfinite(val_loss) and (state.best is None or state.best.beaten_by(val_accuracy, val_loss)),
    )


def _epochs_since_best(state: State) -> int:
    best = max((i for i, result in enumerate(state.history) if result.best), default=0)
    return len(state.history) - 1 - best


def _set_mode(network: nn.Module, plan: Plan) -> None:
    network.train()
    if plan.freeze_norms:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@torch.inference_mode()
def judge(model: nn.Module, loader: Loader, normalize: Normalizer, plan: Plan) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy over a loader's images; NaN and 0 where there are none."""
    was_training = model.training
    model.eval()
    loss = correct = seen = 0.0
    for loaded in loader.batches() if len(loader.indices) else ():
        batch = loaded.to(plan.device)
        with autocast(plan.device, plan.precision):
            logits = model(normalize(batch.pixels))
        loss += float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
        correct += int((logits.argmax(dim=1) == batch.labels).sum())
        seen += len(batch.labels)
    model.train(was_training)
    loss, correct, seen = plan.world.sum([loss, correct, seen])
    return (loss / seen, correct / seen) if seen else (math.nan, 0.0)
