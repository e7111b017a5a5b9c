"""The course of learning: a head on frozen features first where there are pretrained ones, then the loop."""

from __future__ import annotations

import copy
import dataclasses
import math
import time

import torch

from linnaeus.data.loaders import Loader
from linnaeus.data.mixing import Mix
from linnaeus.durations import Moment, Span
from linnaeus.errors import MemoryLimitError
from linnaeus.learning.head import fit_probe
from linnaeus.learning.learner import FEWEST_JUDGED, JUDGING_SHARE, Learner, augmentation, make_loss
from linnaeus.learning.transfer import Thaw, begin_transfer, rate_factors
from linnaeus.models.adapters import merge
from linnaeus.models.folding import Folded, fold_norms, unfold_norms
from linnaeus.models.registry import Classifier, count_parameters
from linnaeus.results import EpochResult
from linnaeus.runtime import autocast, ran_out
from linnaeus.training.averaging import refresh_norms
from linnaeus.training.checkpoint import (
    Best,
    State,
    Tally,
    Weights,
    copy_weights,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from linnaeus.training.imbalance import resample
from linnaeus.training.loop import fit
from linnaeus.training.optim import Rule, Schedule, make_optimizer
from linnaeus.training.plan import Hooks, Plan
from linnaeus.training.tasks import Supervised, Task
from linnaeus.training.tracking import Tracker
from linnaeus.training.validation import judge

_JUDGE_PIXELS = 2**18  # of a batch on validation: its activations stay small, whatever the number of images
_NORM_IMAGES = 2048  # from which the batch statistics of averaged weights are computed


def learn(learner: Learner) -> None:
    """Train from the run's checkpoint if it has one, else from the start.

    Raises TrainingError when the loss stays non-finite or memory does not suffice; `learner.best` then holds the last
    good weights.
    """
    path = learner.folder.checkpoint if learner.folder is not None else None
    resumed = path is not None and path.is_file()
    learner.interrupts.patient = True
    if learner.seconds_left() <= 0:
        spent = time.perf_counter() - learner.started
        learner.warn(
            f"Reading the images took the whole budget ({spent:.0f} s): give more, or run again from the cache."
        )
    if learner.settings.pretrained and not start_from_weights(learner, resumed=resumed):
        return
    plan = make_plan(learner)
    state = new_state(learner, plan)
    _take_up(learner, state)
    learner.ended = "diverged"  # unless the loop comes back
    try:
        stop = learner.world.any(learner.stop(state.history))  # a resumed run may have been to end here
        learner.ended = "stopped" if stop else _run_loop(learner, state, plan)
    except MemoryLimitError:
        learner.ended = "memory"
        raise
    finally:
        learner.history, learner.snapshots = state.history, state.snapshots
        learner.trained = count_parameters(learner.model, learning=True)
        # Cut short before anything was judged, what there is is what is kept, unless it is known to be bad.
        learner.best = state.best or (None if learner.ended in ("diverged", "memory") else _last_weights(state))


def _take_up(learner: Learner, state: State) -> None:
    """Fill the state from the run's checkpoint if there is one; else save it if a head was fitted."""
    path = learner.folder.checkpoint if learner.folder is not None else None
    if path is not None and path.is_file():
        load_state(state, path)
        if not learner.world.leads:
            state.tally = Tally(skipped=state.tally.skipped)  # the first process has the sums of all
        if learner.world.leads and learner.folder is not None:
            learner.folder.write_epochs(state.history)
    elif learner.best is not None and learner.world.leads and path is not None:
        save_state(state, path)


def start_from_weights(learner: Learner, *, resumed: bool) -> bool:
    """Prepare a network with published weights, its head fitted. Returns whether to go on and fine-tune it."""
    if learner.settings.finetune != "norm":
        learner.norms = fold_norms(learner.model)
    if not resumed and not fit_probe(learner):
        return False
    begin_transfer(learner.model, learner.settings)
    if learner.best is not None:  # the same weights, with the names that they have now
        learner.best = dataclasses.replace(learner.best, weights=copy_weights(learner.model))
    return True


def _last_weights(state: State) -> Best | None:
    """Return the weights as they are, or None if they are not finite."""
    weights = copy_weights(state.judged)
    finite = all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
    return Best(weights=weights, score=0.0, loss=math.inf) if finite else None


def take_models(learner: Learner) -> tuple[Classifier, ...]:
    """Return what training found, on the CPU, as it was built: the best network, or those of two or more snapshots."""
    assert learner.best is not None
    model = learner.model.cpu().to(memory_format=torch.contiguous_format)
    found = [learner.best.weights]
    if learner.snapshots > 1 and learner.folder is not None:
        found = [load_weights(learner.folder.snapshot(number + 1)) for number in range(learner.snapshots)]
    return tuple(_fill(copy.deepcopy(model), weights, copy.deepcopy(learner.norms)) for weights in found)


def _fill(model: Classifier, weights: Weights, norms: Folded) -> Classifier:
    model.load_state_dict(weights)
    merge(model)
    unfold_norms(model, {name: norm.cpu() for name, norm in norms.items()})
    return model


def make_plan(learner: Learner) -> Plan:
    """Return how long and how to train, as the settings ask for."""
    settings = learner.settings
    limit = math.inf
    if settings.budget:
        learner.speed = learner.speed or learner.world.agree(_measure_speed(learner))
        limit = max(1e-3, learner.world.agree(learner.seconds_left()))
    return Plan(
        rule=Rule(
            optimizer=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            l1=settings.l1,
            weight_decay=settings.weight_decay,
            late=settings.finetune == "staged",
        ),
        schedule=Schedule(
            shape=settings.schedule,
            warmup=Span.of(settings.warmup),
            factor=settings.lr_drop,
            cycles=max(1, settings.snapshots),
            hold=1 - settings.swa,
        ),
        epochs=settings.epochs,
        steps=settings.steps or math.inf,
        time_limit=limit,
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        ema=settings.ema,
        swa=settings.swa,
        patience=settings.patience,
        size=settings.train_size,
        grow=settings.grow,
        freeze_norms=bool(settings.pretrained),
        precision=settings.precision,
        seed=settings.seed,
        checkpoint_every=settings.checkpoint_every,
        device=learner.device,
        world=learner.world,
    )


def new_state(learner: Learner, plan: Plan) -> State:
    """Return the state from which training starts."""
    model = learner.model
    return State(
        model=model,
        optimizer=make_optimizer(model, plan.rule, factors=rate_factors(model, learner.settings)),
        average=copy.deepcopy(model).eval() if plan.ema or plan.swa else None,
        scaler=torch.amp.GradScaler(learner.device.type) if plan.precision == "fp16" else None,
        best=learner.best,
        history=list(learner.history),
    )


@torch.inference_mode()
def _measure_speed(learner: Learner) -> float:
    """Return how many images a second the network judges, from one batch."""
    indices = learner.dataset.indices("train")[:128]
    blank = torch.zeros(8, learner.blueprint.channels, learner.blueprint.size, learner.blueprint.size)
    learner.model.eval()(blank.to(learner.device))
    start = time.perf_counter()
    pixels = torch.from_numpy(learner.dataset.prepared.pixels.take(indices).copy()).permute(0, 3, 1, 2)
    learner.model(learner.normalize(pixels.to(learner.device))).cpu()
    return len(indices) / (time.perf_counter() - start)


def open_training(learner: Learner) -> tuple[Task, Loader]:
    """Return what the steps of training compute, and the batches that they compute it from."""
    settings = learner.settings
    task = Supervised(normalize=learner.normalize, loss=make_loss(learner, learner.device))
    loader = learner.loader("train", batch_size=settings.batch_size, shuffle=True, augment=augmentation(settings))
    labels = learner.dataset.source.labels[loader.indices]
    seen = resample(loader.indices, labels, settings.sampling, seed=settings.seed)
    mix = Mix(mixup=settings.mixup, cutmix=settings.cutmix, classes=learner.blueprint.classes)
    return task, dataclasses.replace(loader, indices=seen, mix=mix)


def _run_loop(learner: Learner, state: State, plan: Plan) -> str:
    task, loader = open_training(learner)
    tracker = Tracker(learner.folder.path / "tensorboard") if learner.world.leads and learner.folder else None
    hooks = _make_hooks(learner, state, plan, tracker)
    try:
        ended = fit(state, task, loader, plan, hooks)
        if ended != "interrupted":
            _tell_warmup(learner, state, loader)
        return ended
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise MemoryLimitError(str(error).splitlines()[0][:120]) from None
    finally:
        if tracker is not None:
            tracker.close()


def _tell_warmup(learner: Learner, state: State, loader: Loader) -> None:
    """Say it where training ended while the learning rate was still rising."""
    warmup = Span.of(learner.settings.warmup)
    epochs = state.epoch + state.batch / loader.steps
    passed = warmup.passed(Moment(progress=1.0, steps=state.step, epochs=epochs, seconds=state.seconds))
    if passed < warmup.amount:
        learner.warn(f"Training ended within its warm-up ({warmup.plain()}): set a shorter warmup, such as 5%.")


def _make_hooks(learner: Learner, state: State, plan: Plan, tracker: Tracker | None) -> Hooks:
    most = int(max(FEWEST_JUDGED, JUDGING_SHARE / 2 * learner.settings.budget * learner.speed))
    val = learner.loader(
        "val",
        batch_size=max(16, _JUDGE_PIXELS // learner.blueprint.size**2),
        at_most=most if learner.settings.budget else 0,
    )

    def save(state: State) -> None:
        if tracker is not None and learner.folder is not None:
            save_state(state, learner.folder.checkpoint)

    def on_epoch(result: EpochResult) -> bool:
        learner.display.epoch(result)
        if tracker is not None and learner.folder is not None:
            learner.folder.append_epoch(result)
            tracker.write(result)
        return learner.stop(state.history)

    def on_parts(parts: int) -> None:
        learner.warn(f"Memory did not suffice for a step: its batch is computed in {parts} parts from now on.")

    def keep(state: State) -> None:
        if tracker is not None and learner.folder is not None:
            save_weights(copy_weights(state.judged), learner.folder.snapshot(state.snapshots))

    return Hooks(
        judge=lambda network: judge(network, val, learner.normalize, plan),
        save=save,
        on_epoch=on_epoch,
        interrupted=lambda: learner.interrupts.caught != 0,
        refresh=lambda network: _refresh(learner, plan, network),
        keep=keep,
        watch=lambda batches, total: learner.display.watch(batches, total, "training"),
        on_parts=on_parts,
        release=Thaw(learner.model) if learner.settings.finetune == "staged" else lambda progress: False,
    )


def _refresh(learner: Learner, plan: Plan, network: torch.nn.Module) -> None:
    """Compute the batch statistics of averaged weights from training images, the same in every process."""
    if plan.freeze_norms:
        return
    settings = learner.settings
    loader = learner.loader(
        "train", batch_size=settings.batch_size, shuffle=True, augment=augmentation(settings), at_most=_NORM_IMAGES
    )
    batches = dataclasses.replace(loader, rank=0, world=1).batches(side=lambda batch: plan.size)
    with autocast(plan.device, plan.precision):
        refresh_norms(network, (learner.normalize(batch.to(plan.device).pixels) for batch in batches))
