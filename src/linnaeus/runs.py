"""The only place where names become objects: settings -> parts -> fit -> judged bundle and report in a run folder."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.config import AUTO, Settings
from linnaeus.data.preparation import Dataset, build_dataset
from linnaeus.data.sources import Source, open_source
from linnaeus.data.survey import Survey, survey
from linnaeus.delivery import Delivery, Product, deliver
from linnaeus.display import Display, Silent
from linnaeus.errors import DataError, RunError, SettingError, TrainingError
from linnaeus.images import Preprocess
from linnaeus.judging import columns_of
from linnaeus.learning import Learner, learn, take_best
from linnaeus.models.registry import Blueprint, Classifier, Entry, create_model, find_model
from linnaeus.models.weights import at_hand as weights_at_hand
from linnaeus.models.weights import load_pretrained
from linnaeus.recipes import Chooser, Situation, choose_model, choose_preprocess, choose_training
from linnaeus.reporting.summary import Story, write_report
from linnaeus.results import Choice, RunResult
from linnaeus.runfolder import RunFolder, check_free, create_run, open_run
from linnaeus.runtime import (
    Interrupts,
    World,
    autocast,
    available_cores,
    choose_device,
    choose_precision,
    choose_threads,
    join_world,
    keep_memory,
    list_versions,
    seed_all,
)
from linnaeus.training.loop import side_at

_LARGE = 64  # pixels a side, above which a trial takes two pictures
_SHOWN = 512  # pictures that a network may look at before it learns


@dataclass(kw_only=True)
class Run:
    """One run and its parts, as they come to be.

    Attributes:
        started: when the user asked, on the clock of time.perf_counter; a budget counts from then.
        folder: where the run is written; None in all processes but the first.
    """

    data: Any
    chooser: Chooser
    display: Display
    interrupts: Interrupts
    world: World
    started: float
    folder: RunFolder | None = None
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The settings as far as they are chosen."""
        return self.chooser.settings

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to the account of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timing[stage] = self.timing.get(stage, 0.0) + time.perf_counter() - start


def train(
    data: Any = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    display: Display | None = None,
    started: float | None = None,
    **settings: Any,
) -> RunResult:
    """Train a classifier on labelled images, judge it, and write its run folder.

    Args:
        data: a folder, a CSV or Parquet table, an .npz file, a named set, or a pair (images, labels).
        out: the run's folder, new or empty; by default the next free runs/NAME-1, runs/NAME-2, ...
        resume: the folder of a run to go on with, which keeps its settings and, unless given, its data.
        display: where the run speaks to; silent by default.
        settings: any of `Settings`, by name.

    Raises:
        LinnaeusError: whatever is wrong with the data, the settings or the disk, before anything is overwritten.
    """
    begun = time.perf_counter() if started is None else started
    with join_world() as world, Interrupts() as interrupts:
        told = display if display is not None and world.leads else Silent()
        chooser = Chooser(settings=Settings.of(settings), tell=told.choice)
        run = Run(data=data, chooser=chooser, display=told, interrupts=interrupts, world=world, started=begun)
        try:
            return _resume(run, Path(resume), settings) if resume is not None else _begin(run, out)
        finally:
            if run.folder is not None:
                run.folder.close()


def _begin(run: Run, out: str | Path | None) -> RunResult:
    if run.data is None:
        raise DataError("data to train on", got="none", fix="Name a folder: linnaeus train FOLDER")
    check_free(out)
    keep_memory()
    ground = _prepare(run)
    if run.world.leads:
        run.folder = create_run(out, ground.dataset.source.name)
    return _carry_out(run, ground)


def _resume(run: Run, path: Path, asked: dict[str, Any]) -> RunResult:
    """Go on with a run: its settings count, not today's defaults."""
    if asked:
        names = ", ".join(asked)
        raise RunError("a resumed run to keep its settings", got=f"new ones: {names}", fix="Leave them out.")
    keep_memory()
    folder = open_run(path) if run.world.leads else RunFolder(path=path)
    run.folder = folder
    facts = folder.facts()
    if facts.get("finished"):
        raise RunError("a run that was interrupted", got=f"{str(path)!r}, which is finished", fix="Start a new run.")
    run.chooser = Chooser(
        settings=folder.settings(), choices=[Choice(**choice) for choice in facts["choices"]], tell=run.display.choice
    )
    if run.data is None:
        run.data = facts["data"]
    if run.data is None:
        raise DataError("the data of the run, which lay in memory", got="none", fix="Pass them again beside resume.")
    run.display.say(f"Resuming {path}")
    ground = _prepare(run)
    if ground.dataset.signature != facts["signature"]:
        raise RunError(
            "the images that the run began with",
            got="others, or other classes",
            fix="Restore them, or start a new run.",
        )
    if run.world.leads and not folder.checkpoint.is_file():
        folder.write_epochs([])  # the run begins anew, and tells its epochs anew
    return _carry_out(run, ground)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What a run stands on before it learns: data, network and machine."""

    look: Survey
    dataset: Dataset
    entry: Entry
    blueprint: Blueprint
    model: Classifier
    device: torch.device


def _prepare(run: Run) -> Ground:
    """Look at the data, choose device, network and picture size, and read every image once.

    The images come last: they take the longest, and whatever is wrong with the rest should be said before.
    """
    if run.settings.model != AUTO:
        find_model(run.settings.model)
    device = choose_device(run.settings.device)
    run.chooser.choose("device", device.type, "the fastest that is here")
    source = _open(run)
    look = survey(source)
    entry = find_model(choose_model(run.chooser, look, len(source)))
    at_hand = weights_at_hand(entry, run.settings.weights)
    preprocess = choose_preprocess(run.chooser, look, entry, at_hand=at_hand)
    blueprint = Blueprint(
        name=entry.name,
        classes=len(source.classes),
        channels=preprocess.channels,
        size=preprocess.height,
        options=run.settings.of_network(),
    )
    with run.timed("building"):
        model = _build_model(run, entry, blueprint, device)
    with run.timed("reading images"):
        dataset = _read_images(run, source, preprocess, entry)
    return Ground(look=look, dataset=dataset, entry=entry, blueprint=blueprint, model=model, device=device)


def _open(run: Run) -> Source:
    with run.display.progress("fetching") as advance:
        source = open_source(run.data, columns=columns_of(run.settings), progress=advance)
    run.display.say(f"Data: {source.name}, {len(source):,} images of {len(source.classes)} classes")
    for note in source.notes:
        run.display.say(f"  note: {note}")
    return source


def _build_model(run: Run, entry: Entry, blueprint: Blueprint, device: torch.device) -> Classifier:
    """Build the network, with its published weights if it starts from them."""
    seed_all(device, run.settings.seed)
    model = create_model(blueprint)
    if run.settings.pretrained:
        with run.display.progress("fetching weights") as advance:
            load_pretrained(model, entry, blueprint, given=run.settings.weights, progress=advance)
    return model


def _read_images(run: Run, source: Source, preprocess: Preprocess, entry: Entry) -> Dataset:
    with run.display.progress("reading images") as advance:
        if not run.world.leads:
            run.world.wait()  # the first process packs, the others find the pack
        dataset = build_dataset(source, preprocess, run.settings, progress=advance)
        if run.world.leads:
            run.world.wait()
    if not (run.settings.pretrained and entry.mean):
        dataset = dataset.normalized(*dataset.measure())
    _tell_parts(run.display, dataset)
    if not dataset.prepared.packed:
        run.display.say("  note: the pack would exceed cache_limit or the disk; images are decoded anew each epoch")
    return dataset


def _tell_parts(display: Display, dataset: Dataset) -> None:
    parts = ", ".join(f"{len(dataset.indices(part)):,} {part}" for part in ("train", "val", "test"))
    display.say(f"Parts: {parts} ({'as given' if dataset.own_parts else 'split by class'})")
    for image in dataset.prepared.bad:
        display.say(f"  unreadable, left out: {image.path}: {image.reason}")
    if dataset.straddling:
        display.say(f"  warning: {dataset.straddling} pictures have copies on another side of your split")


def _carry_out(run: Run, ground: Ground) -> RunResult:
    """Train the network, and deliver the best of it, also when training was cut short or failed."""
    with run.timed("building"):
        learner = _build_learner(run, ground)
    if run.folder is not None and run.world.leads:
        _write_start(run, run.folder, ground.dataset)
    failure: TrainingError | None = None
    with run.timed("training"):
        try:
            learn(learner)
        except TrainingError as error:
            failure = error
    if learner.best is None:
        raise failure or TrainingError(
            "weights that are finite numbers", got="others", fix="Lower lr, set clip_norm=1 or precision=fp32."
        )
    result = _finish(run, learner)
    if failure is not None:
        raise failure
    return result


def _build_learner(run: Run, ground: Ground) -> Learner:
    dataset, entry, look, device = ground.dataset, ground.entry, ground.look, ground.device
    now = Situation.of(dataset, entry, look, run.settings, device=device.type)
    choose_training(run.chooser, now)
    _check_sizes(run.settings, entry)
    _check_sense(run.settings)
    if entry.looks:
        _show_pictures(ground.model, dataset)
    model = ground.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _try_out(run.settings, model, ground)
    _set_precision(run, model, device)
    _set_threads(run, model, dataset, device)
    assert not run.settings.unresolved(), run.settings.unresolved()
    return Learner(
        settings=run.settings, dataset=dataset, entry=entry, blueprint=ground.blueprint, model=model, device=device,
        world=run.world, display=run.display, interrupts=run.interrupts, started=run.started, folder=run.folder,
    )  # fmt: skip


def _check_sense(settings: Settings) -> None:
    """Refuse settings that contradict each other. Raises SettingError."""
    soft = [name for name in ("label_smoothing", "mixup", "cutmix") if getattr(settings, name)]
    if settings.loss == "focal" and soft:
        got = ", ".join(f"{name}={getattr(settings, name)}" for name in soft)
        raise SettingError("hard labels for loss=focal", got=got, fix=f"Set {soft[0]}=0, or choose another loss.")


def _check_sizes(settings: Settings, entry: Entry) -> None:
    """Refuse to train at another size a network whose shape depends on it. Raises SettingError."""
    if not entry.any_size and (settings.train_size != settings.image_size or settings.grow != 1.0):
        got = f"train_size={settings.train_size}, grow={settings.grow}"
        expected = f"one picture size, {settings.image_size}, for {entry.name}"
        raise SettingError(expected, got=got, fix="Leave train_size and grow out, or choose another model.")


def _try_out(settings: Settings, model: Classifier, ground: Ground) -> None:
    """Train a copy on the smallest batch of the smallest pictures that the run will have. Raises SettingError."""
    side = side_at(0.0, settings.train_size, settings.grow)
    few = max(1, min(2, min(settings.batch_size, len(ground.dataset.indices("train"))) // settings.accumulate))
    images = torch.zeros(few, ground.blueprint.channels, side, side, device=ground.device)
    try:
        copy.deepcopy(model).train()(images)
    except (RuntimeError, ValueError) as error:
        raise SettingError(
            f"pictures and batches that are large enough for {ground.entry.name}",
            got=f"{few} of {side} pixels at a time ({str(error).splitlines()[0][:120]})",
            fix="Set a larger train_size or batch_size, grow=1, accumulate=1, or choose another model.",
        ) from None


def _show_pictures(model: Classifier, dataset: Dataset) -> None:
    """Let a network take what it needs from some training pictures."""
    pixels = dataset.prepared.pixels.take(dataset.indices("train", at_most=_SHOWN))
    model.look_at(torch.from_numpy(dataset.preprocess.normalize(np.ascontiguousarray(pixels))))


def _set_precision(run: Run, model: Classifier, device: torch.device) -> None:
    """Use the fastest precision that does the network no harm. No clock decides: the same run gives the same bytes."""
    if run.settings.precision != AUTO:
        return
    precision, why = choose_precision(device), "what this device computes fastest"
    if device.type == "cpu" and precision != "fp32":
        if run.settings.pretrained and list(model.foldable()):
            precision, why = "fp32", "the filters that norms are folded into need all digits"
        elif any(isinstance(module, torch.nn.Conv2d) and module.groups > 1 for module in model.modules()):
            precision, why = "fp32", "CPUs have no fast bf16 gradient of depthwise convolutions"
    run.chooser.choose("precision", precision, why)


def _set_threads(run: Run, model: Classifier, dataset: Dataset, device: torch.device) -> None:
    """Use the threads that the user fixed or that a short trial finds to be faster."""
    if run.settings.threads == AUTO:
        if device.type != "cpu" or run.world.size > 1:
            run.chooser.choose("threads", available_cores(), "the cores of this process")
        else:
            run.chooser.choose("threads", _trial(run, model, dataset), "faster in a short trial")
    torch.set_num_threads(run.settings.threads)


def _trial(run: Run, model: Classifier, dataset: Dataset) -> int:
    """Try a copy of the network on a few blank pictures, in the arithmetic of the run."""
    side = run.settings.train_size
    few = 2 if side > _LARGE else min(128, run.settings.batch_size)
    images = torch.zeros(few, dataset.preprocess.channels, side, side).contiguous(memory_format=torch.channels_last)
    with autocast(torch.device("cpu"), run.settings.precision):
        return choose_threads(copy.deepcopy(model).train(), images)


def _write_start(run: Run, folder: RunFolder, dataset: Dataset) -> None:
    folder.write_settings(run.settings)
    folder.write_facts(_facts(run, dataset, finished=False))


def _facts(run: Run, dataset: Dataset, *, finished: bool) -> dict[str, Any]:
    data = run.data if isinstance(run.data, str | Path) else None
    where = str(Path(data).resolve()) if data is not None and Path(data).exists() else data
    return {
        "format": 1,
        "data": None if where is None else str(where),
        "signature": dataset.signature,
        "classes": list(dataset.source.classes),
        "choices": [asdict(choice) for choice in run.chooser.choices],
        "finished": finished,
    }


def _finish(run: Run, learner: Learner) -> RunResult:
    """Deliver the bundle and the report. Only the first process writes; the others come back without scores."""
    if run.folder is None or not run.world.leads:
        return RunResult(
            folder="", bundle="", report="", scores={}, epochs=learner.history, choices=run.chooser.choices
        )
    if learner.ended == "interrupted":
        run.display.say("Stopping: what was learned is judged and written; another signal stops at once.")
    with run.timed("judging"):
        delivery = deliver(_product(learner), run.folder.bundle, display=run.display, at_most=learner.sample_size())
    stopped = learner.ended if learner.ended in ("interrupted", "patience", "diverged") else ""
    story = _tell_story(run, learner, delivery, stopped)
    write_report(run.folder.path, story, learner.dataset, delivery.judgements)
    if learner.ended != "interrupted":
        run.folder.write_facts(_facts(run, learner.dataset, finished=True))
    return RunResult(
        folder=str(run.folder.path),
        bundle=str(run.folder.bundle),
        report=str(run.folder.report),
        scores={part: judgement.scores for part, judgement in delivery.judgements.items()},
        epochs=learner.history,
        choices=run.chooser.choices,
        bad_images=learner.dataset.prepared.bad,
        stopped_early=stopped,
        # One that came after training had ended changed nothing; one may have come to another process of the run.
        signal=(run.interrupts.caught or signal.SIGTERM) if learner.ended == "interrupted" else 0,
    )


def _product(learner: Learner) -> Product:
    return Product(
        model=take_best(learner),
        entry=learner.entry,
        blueprint=learner.blueprint,
        dataset=learner.dataset,
        settings=learner.settings,
        pretrained=bool(learner.settings.pretrained),
        held_out=learner.held_out,
    )


def _tell_story(run: Run, learner: Learner, delivery: Delivery, stopped: str) -> Story:
    assert run.folder is not None
    total = time.perf_counter() - run.started
    run.timing["start-up and rest"] = max(0.0, total - sum(run.timing.values()))
    return Story(
        folder=str(run.folder.path),
        data=str(run.data) if isinstance(run.data, str | Path) else "",
        model=delivery.model,
        choices=run.chooser.choices,
        epochs=learner.history,
        agreement=delivery.agreement.to_dict(),
        timing=run.timing,
        settings=run.settings.to_dict(),
        versions=list_versions(),
        stopped_early=stopped,
        notes=learner.notes,
    )
