"""How a run learns: a head on frozen features first where there are pretrained ones, then the loop."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from linnaeus.compression.export import to_onnx
from linnaeus.config import Settings
from linnaeus.data.augment import Augment
from linnaeus.data.loaders import Batch, Loader
from linnaeus.data.mixing import Mix
from linnaeus.data.preparation import Dataset
from linnaeus.display import Display
from linnaeus.errors import ModelError, SettingError
from linnaeus.models.folding import Folded, fold_norms, unfold_norms
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.results import EpochResult
from linnaeus.runfolder import RunFolder
from linnaeus.runtime import Interrupts, World, autocast
from linnaeus.training.checkpoint import Best, State, Tally, copy_weights, load_state, save_state
from linnaeus.training.imbalance import log_prior, normalize_weights, resample, weigh_classes
from linnaeus.training.loop import Hooks, Plan, fit, judge
from linnaeus.training.losses import Loss
from linnaeus.training.optim import Rule, Schedule, make_optimizer
from linnaeus.training.probe import Extract, Features, Head, extract_features, fit_head, fit_logistic, open_extractor
from linnaeus.training.tasks import Normalizer, Supervised
from linnaeus.training.tracking import Tracker

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
_FEATURE_BATCH = 16
_JUDGE_PIXELS = 2**18  # of a batch on validation: its activations stay small, whatever the number of images
_HEAD_FACTOR = 3.0
_FINISH_SECONDS = 2.5  # to export, prove and write a bundle and a report, judging aside
_TUNING_SPEED = 0.3  # of a training step to a frozen forward pass
_TUNING_EPOCHS = 1.5  # fewer were seen to do worse than the fitted head
_FIT_PASSES, _FIT_RATE = 80, 4e10  # over the features in one fit; operations a second
_MIRRORED_SECONDS = 2.0  # at least this much must be left to begin with mirrored pictures
_FEWEST_JUDGED = 100
_JUDGING_SHARE = 0.25  # of a budget that judging may take, before it is done on a sample
_LEAST_SHARE, _LEAST_SECONDS = 0.03, 2.0  # of a budget that go into judging even when it has run out


@dataclass(kw_only=True)
class Learner:
    """A network with its data and all that training it needs. `learn` fills in the rest.

    Attributes:
        best: the weights to keep, None if none are known to be good. history: what each epoch did.
        ended: why training ended, as `fit` says, "head" if only the head was fitted, or "diverged".
        held_out: the parts that the kept weights did not learn from.
        norms: the batch norms that were folded into the convolutions for the time of training.
        speed: images a second that the network judges, 0 while that is not known. notes: sentences for the report.
    """

    settings: Settings
    dataset: Dataset
    entry: Entry
    blueprint: Blueprint
    model: Classifier
    device: torch.device
    world: World
    display: Display
    interrupts: Interrupts
    started: float
    folder: RunFolder | None
    best: Best | None = None
    history: list[EpochResult] = field(default_factory=list)
    norms: Folded = field(default_factory=dict)
    ended: str = "done"
    held_out: tuple[str, ...] = ("val", "test")
    speed: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def normalize(self) -> Normalizer:
        """What turns pixels into the network's input."""
        return Normalizer(self.dataset.preprocess, self.device)

    def seconds_left(self) -> float:
        """Return how much of the budget is left for learning, the time to judge and finish put aside."""
        if not self.settings.budget:
            return math.inf
        # What is held out is judged once at the end; validation once more when training ends.
        to_judge = sum(len(self.dataset.indices(part)) for part in (*self.held_out, "val"))
        judging = min(to_judge / self.speed if self.speed else 0.0, _JUDGING_SHARE * self.settings.budget)
        return float(self._unspent() - judging - _FINISH_SECONDS)

    def sample_size(self) -> int:
        """Return how many images of each part there is time to judge, 0 for all of them."""
        if not self.settings.budget or not self.speed:
            return 0
        seconds = max(self._unspent() - _FINISH_SECONDS, _LEAST_SECONDS, _LEAST_SHARE * self.settings.budget)
        most = max(_FEWEST_JUDGED, int(seconds * self.speed / max(1, len(self.held_out))))
        largest = max((len(self.dataset.indices(part)) for part in self.held_out), default=0)
        if largest <= most:
            return 0
        self.warn(f"The budget left time to judge {most:,} images of each part, not all.")
        return most

    def warn(self, sentence: str) -> None:
        """Say something alarming now, and in the report."""
        self.note(sentence, kind="warning")

    def note(self, sentence: str, *, kind: str = "note") -> None:
        """Say something now, and in the report."""
        self.display.say(f"  {kind}: {sentence}")
        self.notes.append(sentence)

    def _unspent(self) -> float:
        return float(self.settings.budget) - (time.perf_counter() - self.started)

    def loader(
        self, part: str, *, batch_size: int, shuffle: bool = False, augment: Augment | None = None, at_most: int = 0
    ) -> Loader:
        """Return a loader of a part of the data, for this process; `at_most` as in `Dataset.indices`."""
        return Loader(
            pixels=self.dataset.prepared.pixels,
            labels=self.dataset.source.labels,
            indices=self.dataset.indices(part, at_most=at_most),
            batch_size=batch_size,
            augment=augment or Augment(),
            seed=self.settings.seed,
            shuffle=shuffle,
            workers=self.settings.workers,
            rank=self.world.rank,
            world=self.world.size,
        )


def learn(learner: Learner) -> None:
    """Train from the run's checkpoint if it has one, else from the start.

    Raises TrainingError when the loss stays non-finite; `learner.best` then holds the last good weights.
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
        if not resumed and not _fit_probe(learner):
            return
    plan = _make_plan(learner)
    state = _new_state(learner, plan)
    if path is not None and resumed:
        load_state(state, path)
        if not learner.world.leads:
            state.tally = Tally(skipped=state.tally.skipped)  # the first process has the sums of all
        if learner.world.leads and learner.folder is not None:
            learner.folder.write_epochs(state.history)
    elif learner.best is not None and learner.world.leads and path is not None:
        save_state(state, path)
    learner.ended = "diverged"  # unless the loop comes back
    try:
        learner.ended = _run_loop(learner, state, plan)
    finally:
        learner.history = state.history
        # Cut short before anything was judged, what there is is what is kept, unless it is known to be bad.
        learner.best = state.best or (None if learner.ended == "diverged" else _last_weights(state))


def _last_weights(state: State) -> Best | None:
    """Return the weights as they are, or None if they are not finite."""
    weights = copy_weights(state.judged)
    finite = all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
    return Best(weights=weights, accuracy=0.0, loss=math.inf) if finite else None


def _can_tune(learner: Learner) -> bool:
    """Whether the budget allows enough epochs of fine-tuning to do better than the head alone."""
    if not learner.settings.budget:
        return True
    images = learner.seconds_left() * learner.speed * _TUNING_SPEED
    return images > _TUNING_EPOCHS * len(learner.dataset.indices("train"))


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
        schedule=Schedule(shape=settings.schedule, warmup=settings.warmup, factor=settings.lr_drop),
        epochs=settings.epochs,
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
    task = Supervised(normalize=learner.normalize, loss=_make_loss(learner, learner.device))
    loader = learner.loader("train", batch_size=settings.batch_size, shuffle=True, augment=augmentation(settings))
    labels = learner.dataset.source.labels[loader.indices]
    seen = resample(loader.indices, labels, settings.sampling, seed=settings.seed)
    mix = Mix(mixup=settings.mixup, cutmix=settings.cutmix, classes=learner.blueprint.classes)
    loader = dataclasses.replace(loader, indices=seen, mix=mix)
    tracker = Tracker(learner.folder.path / "tensorboard") if learner.world.leads and learner.folder else None
    hooks = _make_hooks(learner, plan, tracker)
    try:
        return fit(state, task, loader, plan, hooks)
    finally:
        if tracker is not None:
            tracker.close()


def _make_hooks(learner: Learner, plan: Plan, tracker: Tracker | None) -> Hooks:
    most = int(max(_FEWEST_JUDGED, _JUDGING_SHARE / 2 * learner.settings.budget * learner.speed))
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

    return Hooks(
        judge=lambda network: judge(network, val, learner.normalize, plan),
        save=save,
        on_epoch=on_epoch,
        interrupted=lambda: learner.interrupts.caught != 0,
        watch=lambda batches, total: learner.display.watch(batches, total, "training"),
    )


def augmentation(settings: Settings) -> Augment:
    """Return what the settings of the same names ask for."""
    return Augment(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Augment)})


def _make_loss(learner: Learner, device: torch.device) -> Loss:
    """Return the loss that the settings ask for, with what it needs to know of the classes."""
    settings, classes = learner.settings, learner.blueprint.classes
    labels = learner.dataset.source.labels[learner.dataset.indices("train")]
    counts = np.bincount(labels, minlength=classes)
    return Loss(
        name=settings.loss,
        smoothing=settings.label_smoothing,
        gamma=settings.focal_gamma,
        weights=_to_tensor(_class_weights(settings, counts), device),
        adjustment=_to_tensor(settings.logit_adjustment * log_prior(counts), device),
    )


def _class_weights(settings: Settings, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weight of each class, float64 (K,). Raises SettingError for a wrong number of them."""
    given = settings.class_weights
    if isinstance(given, str):
        return weigh_classes(counts, given)
    if len(given) != len(counts) or not any(given):
        expected = f"class_weights with a number for each of the {len(counts)} classes"
        raise SettingError(expected, got=str(given), fix="Give them in the order of the classes.")
    return normalize_weights(np.array(given), counts)


def _to_tensor(values: NDArray[np.float64], device: torch.device) -> torch.Tensor | None:
    """Return float (K,), or None where all values are the same and change nothing."""
    return None if np.ptp(values) == 0 else torch.tensor(values, dtype=torch.float32, device=device)


class _Body(torch.nn.Module):
    """A network up to its features."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features float (N, D)."""
        return self.model.features(images)


def _fit_probe(learner: Learner) -> bool:
    """Fit the head on features of the frozen network. Returns whether to go on and fine-tune from it."""
    start = time.perf_counter()
    extract = _open_extractor(learner)
    val = _extract(learner, "val", extract, until=_JUDGING_SHARE)
    train = _extract(learner, "train", extract, until=1.0)
    classes = learner.blueprint.classes
    loss = _make_loss(learner, torch.device("cpu"))
    head = fit_head(train, val, loss=loss, classes=classes, penalties=PENALTIES)
    interrupted = learner.world.any(bool(learner.interrupts.caught))
    tune = not interrupted and not learner.world.any(not _can_tune(learner))
    weight, bias = head.weight, head.bias
    if not tune:
        learner.ended = "interrupted" if interrupted else "head"
        if not interrupted:
            learner.note("The budget leaves no time for fine-tuning that would do better: the head alone is fitted.")
            features = _add_features(learner, extract, train, val)
            if features is not train:
                weight, bias = fit_logistic(features, loss=loss, classes=classes, penalty=head.penalty)
    # Where time ran out, each process has seen other images: all go on with the first one's head.
    _set_head(learner, learner.world.share(weight), learner.world.share(bias))
    _remember_probe(learner, head, time.perf_counter() - start)
    return tune


def _add_features(learner: Learner, extract: Extract, train: Features, val: Features) -> Features:
    """Return the features that a head which will not be fine-tuned is fitted on.

    Where others judge it, validation has served its purpose, and its images teach the head too. What time is left
    shows it mirrored pictures.
    """
    features, parts = train, ["train"]
    if len(learner.dataset.indices("test")):
        features, parts = train.join(val), ["train", "val"]
        learner.held_out = ("test",)
        learner.note("The head was chosen on the validation images, then fitted on them as well.")
    for part in parts if learner.settings.flip else ():
        needed = _MIRRORED_SECONDS + _fit_seconds(learner, 2 * len(features.labels))
        if not learner.world.any(learner.seconds_left() < needed):
            features = features.join(_extract(learner, part, lambda x: extract(x.flip(3)), until=1.0, kind="mirrored "))
    return features


def _open_extractor(learner: Learner) -> Extract:
    body = _Body(learner.model).eval()
    if learner.device.type == "cpu":
        channels, size = learner.blueprint.channels, learner.blueprint.size
        return open_extractor(to_onnx(body, channels=channels, size=size), threads=learner.settings.threads)

    def extract(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), autocast(learner.device, learner.settings.precision):
            features: torch.Tensor = body(images.to(learner.device))
        return features.float().cpu()

    return extract


def _extract(learner: Learner, part: str, extract: Extract, *, until: float, kind: str = "") -> Features:
    """Compute features of a part, of as many images as the share `until` of the time left allows."""
    # In random order, so that those that the time allows are a fair sample.
    loader = learner.loader(part, batch_size=_FEATURE_BATCH, shuffle=True)
    # Every process computes all features: the head must be the same in all.
    loader = dataclasses.replace(loader, rank=0, world=1)
    normalize = Normalizer(learner.dataset.preprocess, torch.device("cpu"))
    start, done = time.perf_counter(), 0
    left = learner.seconds_left() * until

    with learner.display.progress(f"features of {kind}{part}") as advance:

        def watch(batch: Batch) -> bool:
            nonlocal done
            done += len(batch.labels)
            advance(done, len(loader.indices))
            spent = time.perf_counter() - start
            learner.speed = done / spent
            in_time = spent < left and learner.seconds_left() > _fit_seconds(learner, done)
            return in_time and not learner.interrupts.caught

        features = extract_features(loader, normalize, extract, watch=watch)
    if done < len(loader.indices):
        learner.warn(f"Time allowed features of {done:,} of {len(loader.indices):,} {kind}{part} images.")
    learner.speed = learner.world.agree(learner.speed)
    return features


def _fit_seconds(learner: Learner, images: int) -> float:
    """Estimate how long all fits of the head on so many images take, from their arithmetic."""
    operations = 6.0 * images * learner.model.width * learner.blueprint.classes
    return (len(PENALTIES) + 1) * _FIT_PASSES * operations / _FIT_RATE


def _set_head(learner: Learner, weight: torch.Tensor, bias: torch.Tensor) -> None:
    head = learner.model.head
    if not isinstance(head, torch.nn.Linear):
        got = f"one that ends in {type(head).__name__}"
        fix = "Set pretrained=false, or choose another model."
        raise ModelError("a network that ends in one linear layer", got=got, fix=fix)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _remember_probe(learner: Learner, head: Head, seconds: float) -> None:
    accuracy, loss = learner.world.agree(head.accuracy), learner.world.agree(head.loss)
    learner.best = Best(weights=copy_weights(learner.model), accuracy=accuracy, loss=loss)
    result = EpochResult(
        stage="head",
        epoch=0,
        step=0,
        seconds=seconds,
        learning_rate=0.0,
        train_loss=math.nan,
        train_accuracy=math.nan,
        val_loss=loss,
        val_accuracy=accuracy,
        images_per_second=learner.speed,
        best=True,
    )
    learner.history.append(result)
    learner.display.epoch(result)
    if learner.world.leads and learner.folder is not None:
        learner.folder.append_epoch(result)
