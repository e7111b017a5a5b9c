"""The only place where names become objects: settings -> parts -> fit -> judged bundle and report in a run folder."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linnaeus.config import Settings
from linnaeus.data.preparation import Dataset
from linnaeus.delivery import Delivery, Product, deliver
from linnaeus.display import Display, Silent
from linnaeus.errors import DataError, RunError, SettingError, TrainingError
from linnaeus.ground import Ground, lay_ground, read_images, tell_parts
from linnaeus.learning.course import learn, take_models
from linnaeus.learning.learner import Learner, Oversight
from linnaeus.learning.rates import RangeTest, test_rates
from linnaeus.learning.transfer import check_transfer
from linnaeus.models.registry import Blueprint, Classifier, Entry, create_model
from linnaeus.models.weights import load_pretrained
from linnaeus.recipes import Chooser, Situation, choose_training
from linnaeus.reporting.ranging import write_range_test
from linnaeus.reporting.summary import Story, write_report
from linnaeus.results import Choice, RunResult
from linnaeus.runfolder import RunFolder, check_free, create_run, open_run
from linnaeus.runtime import (
    Interrupts,
    World,
    choose_device,
    join_world,
    keep_memory,
    list_versions,
    seed_all,
)
from linnaeus.trials import check_sense, choose_arithmetic, find_doubts, try_out

_SHOWN = 512  # pictures that a network may look at before it learns


@dataclass(kw_only=True)
class Run:
    """One run and its parts, as they come to be.

    Attributes:
        started: when the user asked, on the clock of time.perf_counter; a budget counts from then.
        folder: where the run is written; None in all processes but the first.
        oversight: of whoever started it.
    """

    data: Any
    chooser: Chooser
    display: Display
    interrupts: Interrupts
    world: World
    started: float
    folder: RunFolder | None = None
    oversight: Oversight = field(default_factory=Oversight)
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The settings as far as they are chosen."""
        return self.chooser.settings

    @contextlib.contextmanager
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
    oversight: Oversight | None = None,
    **settings: Any,
) -> RunResult:
    """Train a classifier on labelled images, judge it, and write its run folder.

    Args:
        data: a folder, a CSV or Parquet table, an .npz file, a named set, or a pair (images, labels).
        out: the run's folder, new or empty; by default the next free runs/NAME-1, runs/NAME-2, ...
        resume: the folder of a run to go on with, which keeps its settings and, unless given, its data.
        display: where the run speaks to; silent by default.
        oversight: which parts may be judged, and whether to stop; by default validation and test, and never.
        settings: any of `Settings`, by name.

    Raises:
        LinnaeusError: whatever is wrong with the data, the settings or the disk, before anything is overwritten.
    """
    begun = time.perf_counter() if started is None else started
    with join_world() as world, Interrupts() as interrupts:
        told = display if display is not None and world.leads else Silent()
        chooser = Chooser(settings=Settings.of(settings), tell=told.choice)
        run = Run(data=data, chooser=chooser, display=told, interrupts=interrupts, world=world, started=begun,
                  oversight=oversight or Oversight())  # fmt: skip
        try:
            return _resume(run, Path(resume), settings) if resume is not None else _begin(run, out)
        finally:
            if run.folder is not None:
                run.folder.close()


def find_lr(
    data: Any, *, out: str | Path | None = None, display: Display | None = None, **settings: Any
) -> tuple[RangeTest, Path]:
    """Find which learning rates suit a run: the range test of Smith (2017), from the start that the run would have.

    Args:
        data, out, display, settings: as `train` takes them. A budget is passed over: the test has 200 steps at most.

    Returns:
        What was found, and the page with its curve in the run folder that was made for it.

    Raises:
        SettingError: for settings that train no more than the head, beside all that `train` raises.
    """
    if settings.get("finetune") == "head":
        raise SettingError("weights that follow a gradient", got="finetune=head", fix="Leave finetune out.")
    with join_world() as world, Interrupts() as interrupts:
        told = display or Silent()
        chooser = Chooser(settings=Settings.of({**settings, "budget": 0}), tell=told.choice)
        run = Run(data=data, chooser=chooser, display=told, interrupts=interrupts, world=world,
                  started=time.perf_counter())  # fmt: skip
        _check_begin(run, out)
        start = _prepare(run)
        found = test_rates(_build_learner(run, start))
        folder = create_run(out, start.dataset.source.name)
        with contextlib.closing(folder):
            return found, write_range_test(folder.path, found.to_dict(), name=start.dataset.source.name)


def _check_begin(run: Run, out: str | Path | None) -> None:
    if run.data is None:
        raise DataError("data to train on", got="none", fix="Name a folder: linnaeus train FOLDER")
    check_free(out)
    keep_memory()


def _begin(run: Run, out: str | Path | None) -> RunResult:
    _check_begin(run, out)
    start = _prepare(run)
    with run.timed("building"):
        learner = _build_learner(run, start)  # before there is a folder: it refuses what contradicts itself
    if run.world.leads:
        run.folder = create_run(out, start.dataset.source.name)
    return _carry_out(run, learner)


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
    start = _prepare(run)
    if start.dataset.signature != facts["signature"]:
        raise RunError(
            "the images that the run began with",
            got="others, or other classes",
            fix="Restore them, or start a new run.",
        )
    if run.world.leads and not folder.checkpoint.is_file():
        folder.write_epochs([])  # the run begins anew, and tells its epochs anew
    with run.timed("building"):
        learner = _build_learner(run, start)
    return _carry_out(run, learner)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from: its ground, every image read, and a network on a device."""

    ground: Ground
    dataset: Dataset
    blueprint: Blueprint
    model: Classifier
    device: torch.device


def _prepare(run: Run) -> Start:
    """Look at the data, choose device, network and picture size, and read every image once.

    The images come last: they take the longest, and whatever is wrong with the rest should be said before.
    """
    device = choose_device(run.settings.device)
    run.chooser.choose("device", device.type, "the fastest that is here")
    ground = lay_ground(run.data, run.chooser, run.display)
    blueprint = ground.blueprint(run.settings)
    with run.timed("building"):
        model = _build_model(run, ground.entry, blueprint, device)
    with run.timed("reading images"):
        dataset = _read_images(run, ground)
    return Start(ground=ground, dataset=dataset, blueprint=blueprint, model=model, device=device)


def _build_model(run: Run, entry: Entry, blueprint: Blueprint, device: torch.device) -> Classifier:
    """Build the network, with its published weights if it starts from them."""
    seed_all(device, run.settings.seed)
    model = create_model(blueprint)
    check_transfer(run.settings, model, entry.name)
    if run.settings.pretrained:
        with run.display.progress("fetching weights") as advance:
            load_pretrained(model, entry, blueprint, given=run.settings.weights, progress=advance)
    return model


def _read_images(run: Run, ground: Ground) -> Dataset:
    if not run.world.leads:
        run.world.wait()  # the first process packs, the others find the pack
    dataset = read_images(ground, run.settings, run.display)
    if run.world.leads:
        run.world.wait()
    if not (run.settings.pretrained and ground.entry.mean):
        dataset = dataset.normalized(*dataset.measure())
    tell_parts(dataset, run.display)
    return dataset


def _carry_out(run: Run, learner: Learner) -> RunResult:
    """Train the network, and deliver the best of it, also when training was cut short or failed."""
    learner.folder = run.folder
    if run.folder is not None and run.world.leads:
        _write_start(run, run.folder, learner.dataset)
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


def _build_learner(run: Run, start: Start) -> Learner:
    """Choose the rest of the settings, and bring all that training needs together. Raises SettingError."""
    dataset, entry, device = start.dataset, start.ground.entry, start.device
    look = start.ground.look
    now = Situation.of(dataset, entry, look, run.settings, device=device.type)
    choose_training(run.chooser, now)
    check_sense(run.settings, entry, images=now.images, labelling=now.labelling)
    for doubt in find_doubts(run.settings, images=now.images):
        run.display.say(f"  note: {doubt}")
    if entry.looks:
        _show_pictures(start.model, dataset)
    model = start.model.to(device, memory_format=start.model.memory_format)  # type: ignore[call-overload]
    try_out(model, run.settings, start.blueprint, images=len(dataset.indices("train")))
    choose_arithmetic(run.chooser, model, start.blueprint, device=device, processes=run.world.size)
    torch.set_num_threads(run.settings.threads)
    assert not run.settings.unresolved(), run.settings.unresolved()
    learner = Learner(
        settings=run.settings, dataset=dataset, entry=entry, blueprint=start.blueprint, model=model, device=device,
        world=run.world, display=run.display, interrupts=run.interrupts, started=run.started, folder=None,
        held_out=run.oversight.parts, stop=run.oversight.stop,
    )  # fmt: skip
    if learner.passes > 1:
        learner.note(f"Each answer of the bundle takes {learner.passes} times as long, by its views and snapshots.")
    return learner


def _show_pictures(model: Classifier, dataset: Dataset) -> None:
    """Let a network take what it needs from some training pictures."""
    pixels = dataset.prepared.pixels.take(dataset.indices("train", at_most=_SHOWN))
    model.look_at(torch.from_numpy(dataset.preprocess.normalize(np.ascontiguousarray(pixels))))


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
    early = ("interrupted", "patience", "diverged", "memory", "stopped")
    stopped = learner.ended if learner.ended in early else ""
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
        models=take_models(learner),
        entry=learner.entry,
        blueprint=learner.blueprint,
        dataset=learner.dataset,
        settings=learner.settings,
        pretrained=bool(learner.settings.pretrained),
        held_out=learner.held_out,
        trained=learner.trained,
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
