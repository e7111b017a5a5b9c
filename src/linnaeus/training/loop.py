"""The one training loop. It knows no data set, no network and no metric by name."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from linnaeus.data.loaders import Batch, Loader
from linnaeus.durations import Moment
from linnaeus.errors import MemoryLimitError, TrainingError
from linnaeus.results import EpochResult, Validation
from linnaeus.runtime import World, autocast, free_memory, ran_out, seed_all
from linnaeus.training.averaging import add_to_mean, follow
from linnaeus.training.checkpoint import Best, State, Tally, copy_weights
from linnaeus.training.measures import count_right
from linnaeus.training.optim import add_l1, set_learning_rate
from linnaeus.training.plan import Hooks, Plan, side_at
from linnaeus.training.tasks import Task

_BAD_STEPS_IN_A_ROW = 3

Results = list[tuple[Batch, float, torch.Tensor]]  # of the parts of a batch: loss and logits


def fit(state: State, task: Task, loader: Loader, plan: Plan, hooks: Hooks) -> str:
    """Train from where the state is until the plan ends.

    Returns why it ended: "done", "time", "patience", "stopped" or "interrupted". Raises TrainingError after three
    non-finite losses in a row; the best weights so far are in `state.best`.
    """
    session = _Session(state=state, task=task, loader=loader, plan=plan, hooks=hooks)
    while not _is_over(state, plan):
        if plan.patience and state.epochs_since_best >= plan.patience:  # a resumed run may begin here, too
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


def _is_over(state: State, plan: Plan) -> bool:
    """Whether all that the plan asks for was done, and judged."""
    judged = bool(state.history) and state.history[-1].step == state.step
    return state.epoch >= plan.epochs or (state.step >= plan.steps and judged)


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
    task: Task
    loader: Loader
    plan: Plan
    hooks: Hooks
    network: nn.Module = field(init=False)
    zero: float = field(init=False)
    buffers: list[torch.Tensor] = field(init=False)
    fitting: set[tuple[int, bool]] = field(default_factory=set)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zero", time.perf_counter() - self.state.seconds)
        object.__setattr__(self, "buffers", list(self.state.model.buffers()))  # a walk that takes too long for a step
        self.wrap()

    @property
    def parts(self) -> int:
        """In how many parts a batch is computed: as many as were asked for, or as memory needs."""
        return max(self.plan.accumulate, self.state.parts)

    def wrap(self) -> None:
        """Let the processes share the gradients of those weights that learn now."""
        network = DistributedDataParallel(self.state.model) if self.plan.world.size > 1 else self.state.model
        object.__setattr__(self, "network", network)

    def count_seconds(self) -> None:
        """Bring the time spent training up to date, judging and saving included, by the first process's clock."""
        self.state.seconds = self.plan.world.agree(time.perf_counter() - self.zero)

    def restore(self, statistics: Iterable[torch.Tensor]) -> None:
        """Set the network's buffers back to copies that were taken of them."""
        for buffer, before in zip(self.buffers, statistics):
            buffer.copy_(before)

    def moment(self, batch: int) -> Moment:
        """Return how far the run is before a batch of the running epoch: by steps or time, whichever is further."""
        plan, each, seconds = self.plan, self.loader.steps, self.state.seconds
        steps = self.state.epoch * each + batch
        progress = max(steps / min(plan.epochs * each, plan.steps), seconds / plan.time_limit)
        return Moment(progress=min(1.0, progress), steps=steps, epochs=steps / each, seconds=seconds)

    def side(self, batch: int) -> int:
        """Return the side of the pictures of a batch of the running epoch."""
        return side_at(self.moment(batch).progress, self.plan.size, self.plan.grow)


def _train_epoch(session: _Session) -> str:
    """Train on the rest of the running epoch. Returns "" or why it was cut short."""
    state, plan, hooks, loader = session.state, session.plan, session.hooks, session.loader
    _set_mode(session.network, plan)
    saved = state.seconds
    left = int(min(loader.steps - state.batch, plan.steps - state.step))
    with contextlib.closing(loader.batches(state.epoch, start=state.batch, side=session.side)) as batches:
        for batch in hooks.watch(itertools.islice(batches, left), left):
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
    finished = session.plan.schedule.finished(session.moment(state.batch))
    while state.snapshots < finished:
        state.snapshots += 1
        session.hooks.keep(state)


def _train_step(session: _Session, batch: Batch) -> None:
    """One optimizer step, or none if the loss is not finite in any process."""
    state, plan = session.state, session.plan
    now = session.moment(state.batch)
    factor = plan.schedule.at(now, (result.val_loss for result in state.history))
    set_learning_rate(state.optimizer, plan.rule.lr * factor)
    if session.hooks.release(now.progress):
        session.wrap()
    statistics = [buffer.clone() for buffer in session.buffers]
    results = _backward_within_memory(session, batch, statistics)
    state.step += 1
    if not results:
        session.restore(statistics)  # a batch that overflows has spoilt the batch statistics, too
        _skip_step(state, batch)
        return
    state.bad_steps = 0
    _follow_gradient(state, plan, now.progress)
    for part, loss, logits in results:
        state.tally.loss += loss * len(part.labels)
        state.tally.correct += count_right(logits, part.labels)
        state.tally.seen += len(part.labels)


def _backward_within_memory(session: _Session, batch: Batch, statistics: list[torch.Tensor]) -> Results:
    """Compute the gradient in as few parts as memory allows, twice as many after each try that it did not.

    What a failed try has changed is set back, so that the step is that of its last try alone. Raises MemoryLimitError
    where the smallest part does not fit.
    """
    state, plan = session.state, session.plan
    key = (batch.pixels.shape[-1], state.batch == session.loader.steps - 1)
    if plan.world.size > 1 and key not in session.fitting:
        # Processes that wait for each other's gradients cannot agree to begin anew. So each first tries alone.
        while plan.world.any(not _has_room(session, batch, statistics)):
            _cut_smaller(session, batch)
        session.fitting.add(key)
    while True:
        _begin_step(session)
        try:
            return _backward(session, batch)
        except (RuntimeError, MemoryError) as error:
            if plan.world.size > 1 or not ran_out(error):
                raise
        session.restore(statistics)  # here, where the error no longer holds what the try has computed
        _cut_smaller(session, batch)


def _begin_step(session: _Session) -> None:
    """Bring chance and gradients to where each try of a step begins."""
    state, plan = session.state, session.plan
    seed_all(plan.device, plan.seed, state.epoch, state.batch, plan.world.rank)
    state.optimizer.zero_grad(set_to_none=True)


def _has_room(session: _Session, batch: Batch, statistics: list[torch.Tensor]) -> bool:
    """Compute a step's gradient in this process alone, for nothing but to see whether memory suffices."""
    _begin_step(session)
    try:
        _backward(session, batch, alone=True)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    finally:
        session.restore(statistics)
    return True


def _cut_smaller(session: _Session, batch: Batch) -> None:
    """Cut batches into twice as many parts from now on. Raises MemoryLimitError where they are the smallest already."""
    state, plan = session.state, session.plan
    images = max(1, round(len(batch.labels) / batch.share) // plan.world.size) if len(batch.labels) else 1
    few = 2 if any(isinstance(m, _BatchNorm) and m.training for m in session.network.modules()) else 1
    most, now = max(1, images // few), min(images, session.parts)
    if now >= most:
        raise MemoryLimitError(f"too little for {few} at a time of {batch.pixels.shape[-1]} pixels a side")
    state.parts = min(2 * now, most)
    state.optimizer.zero_grad(set_to_none=True)
    free_memory(plan.device)
    session.hooks.on_parts(state.parts)


def _backward(session: _Session, batch: Batch, *, alone: bool = False) -> Results:
    """Add up the gradient over the parts of a batch. Returns each with its loss and logits.

    Returns nothing if any process met a non-finite loss; `alone` asks none of the others.
    """
    state, plan = session.state, session.plan
    network, world = (state.model, World()) if alone else (session.network, plan.world)
    results = []
    parts = batch.split(session.parts, processes=plan.world.size)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        waits = contextlib.nullcontext() if last or world.size == 1 else network.no_sync()  # type: ignore[operator]
        with waits:
            with autocast(plan.device, plan.precision):
                result = session.task.step(network, part)
            value = result.loss.item()
            if world.any(not math.isfinite(value)):
                return []
            # Processes average their gradients; shares of the whole batch make that the mean over all its images.
            loss = result.loss * (part.share * world.size)
            (state.scaler.scale(loss) if state.scaler is not None else loss).backward()
        results.append((part, value, result.logits.detach()))
    return results


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
    found = _judge(session)
    best = math.isfinite(found.loss) and (state.best is None or state.best.beaten_by(found.score, found.loss))
    if best:
        state.best = Best(weights=copy_weights(state.judged), score=found.score, loss=found.loss)
    result = _sum_up(session, found, seconds=seconds, best=best)
    state.history.append(result)
    if state.batch == session.loader.steps:
        state.epoch, state.batch, state.tally = state.epoch + 1, 0, Tally()
    session.count_seconds()
    return result


def _judge(session: _Session) -> Validation:
    for buffer in session.state.judged.buffers():  # batch statistics are each process's own until the next step
        session.plan.world.share(buffer)
    if session.plan.swa and session.state.judged is session.state.average:
        session.hooks.refresh(session.state.judged)
    return session.hooks.judge(session.state.judged)


def _sum_up(session: _Session, found: Validation, *, seconds: float, best: bool) -> EpochResult:
    state, tally = session.state, session.state.tally
    loss, correct, seen = session.plan.world.sum([tally.loss, tally.correct, tally.seen])
    return EpochResult(
        stage=state.stage,
        epoch=state.epoch + 1,
        step=state.step,
        seconds=seconds,
        learning_rate=float(state.optimizer.param_groups[0]["lr"] / state.optimizer.param_groups[0]["factor"]),
        train_loss=loss / seen if seen else math.nan,
        train_accuracy=correct / seen if seen else math.nan,
        val_loss=found.loss,
        val_accuracy=found.accuracy,
        images_per_second=seen / seconds if seconds > 0 else math.nan,
        skipped_steps=tally.skipped,
        best=best,
        val_mean_ap=found.mean_ap,
    )


def _set_mode(network: nn.Module, plan: Plan) -> None:
    network.train()
    if plan.freeze_norms:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
