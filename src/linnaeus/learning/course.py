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
from linnaeus.models.folding import fold_norms, unfold_norms
from linnaeus.models.registry import Classifier
from linnaeus.results import EpochResult
from linnaeus.runtime import ran_out
from linnaeus.training.checkpoint import Best, State, Tally, copy_weights, load_state, save_state
from linnaeus.training.imbalance import resample
from linnaeus.training.loop import Hooks, Plan, fit
from linnaeus.training.optim import Rule, Schedule, make_optimizer
from linnaeus.training.tasks import Supervised
from linnaeus.training.tracking import Tracker
from linnaeus.training.validation import judge

_JUDGE_PIXELS = 2**18  # of a batch on validation: its activations stay small, whatever the number of images
_HEAD_FACTOR = 3.0


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
    if learner.settings.pretrained:
        learner.norms = fold_norms(learner.model)
        if not resumed and not fit_probe(learner):
            return
    plan = _make_plan(learner)
    state = _new_state(learner, plan)
    _take_up(learner, state)
    learner.ended = "diverged"  # unless the loop comes back
    try:
        learner.ended = _run_loop(learner, state, plan)
    except MemoryLimitError:
        learner.ended = "memory"
        raise
    finally:
        learner.history = state.history
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


def _last_weights(state: State) -> Best | None:
    """Return the weights as they are, or None if they are not finite."""
    weights = copy_weights(state.judged)
    finite = all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
    return Best(weights=weights, score=0.0, loss=math.inf) if finite else None


def take_best(learner: Learner) -> Classifier:
    """Return the network with the best weights that training found, on the CPU, as it was built."""
    assert learner.best is not None
    model = learner.model.cpu().to(memory_format=torch.contiguous_format)
    model.load_state_dict(learner.best.weights)
    unfold_norms(model, {name: norm.cpu() for name, norm in learner.norms.items()})
    return model


def _make_plan(learner: Learner) -> Plan:
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
            head_factor=_HEAD_FACTOR if settings.pretrained else 1.0,
        ),
        schedule=Schedule(shape=settings.schedule, warmup=Span.of(settings.warmup), factor=settings.lr_drop),
        epochs=settings.epochs,
        steps=settings.steps or math.inf,
        time_limit=limit,
        accumulate=settings.accumulate,
        clip_norm=settings.clip_norm,
        ema=settings.ema,
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


def _new_state(learner: Learner, plan: Plan) -> State:
    model = learner.model
    return State(
        model=model,
        optimizer=make_optimizer(model, plan.rule, head=model.head),
        average=copy.deepcopy(model).eval() if plan.ema else None,
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


def _run_loop(learner: Learner, state: State, plan: Plan) -> str:
    settings = learner.settings
    task = Supervised(normalize=learner.normalize, loss=make_loss(learner, learner.device))
    loader = learner.loader("train", batch_size=settings.batch_size, shuffle=True, augment=augmentation(settings))
    labels = learner.dataset.source.labels[loader.indices]
    seen = resample(loader.indices, labels, settings.sampling, seed=settings.seed)
    mix = Mix(mixup=settings.mixup, cutmix=settings.cutmix, classes=learner.blueprint.classes)
    loader = dataclasses.replace(loader, indices=seen, mix=mix)
    tracker = Tracker(learner.folder.path / "tensorboard") if learner.world.leads and learner.folder else None
    hooks = _make_hooks(learner, plan, tracker)
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


def _make_hooks(learner: Learner, plan: Plan, tracker: Tracker | None) -> Hooks:
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
        return False

    def on_parts(parts: int) -> None:
        learner.warn(f"Memory did not suffice for a step: its batch is computed in {parts} parts from now on.")

    return Hooks(
        judge=lambda network: judge(network, val, learner.normalize, plan),
        save=save,
        on_epoch=on_epoch,
        interrupted=lambda: learner.interrupts.caught != 0,
        watch=lambda batches, total: learner.display.watch(batches, total, "training"),
        on_parts=on_parts,
    )
