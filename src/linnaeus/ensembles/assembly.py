"""An ensemble: several bundles, or several views of a picture, as one bundle that was proven and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray

from linnaeus.bundle import Bundle, write_bundle
from linnaeus.compression.export import Agreement, compare
from linnaeus.compression.merging import Branch, merge_networks
from linnaeus.compression.views import list_views
from linnaeus.config import TTA
from linnaeus.data.preparation import Dataset
from linnaeus.delivery import (
    answer_parts,
    deliver,
    judge_parts,
    name_ensemble,
    spread,
    table_file,
    weights_file,
    with_results,
)
from linnaeus.display import Display, Silent
from linnaeus.ensembles.members import (
    Member,
    choose_pixels,
    common_parts,
    count_lost,
    join_tables,
    open_members,
    pixels_of,
)
from linnaeus.ensembles.soup import serve, stir
from linnaeus.ensembles.weighing import fit_weights, pick_members
from linnaeus.errors import BundleError, DataError, RunError, SettingError
from linnaeus.evaluation.metrics import score
from linnaeus.images import Preprocess
from linnaeus.judging import read_known
from linnaeus.predictor import Predictor
from linnaeus.results import Scores
from linnaeus.runtime import list_versions
from linnaeus.storage import storage_errors

HOWS = ("mean", "weighted", "greedy", "soup")
_EXACT = 1e-3
_RESIZED = 0.05  # pictures made smaller or grey within the network differ a little from those of the members


@dataclass(frozen=True, kw_only=True)
class Share:
    """A member's part in an ensemble: its weight, and its own scores on the images that judge the ensemble."""

    name: str
    weight: float
    scores: Mapping[str, Scores]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What `ensemble` returns. `scores` maps "val" and "test" to Scores; a part without common images is absent.

    `networks`: how many networks' answers make one of the bundle.
    """

    folder: str
    how: str
    tta: str
    networks: int
    members: Sequence[Share]
    scores: Mapping[str, Scores] = field(default_factory=dict)
    agreement: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all as JSON values."""
        return {
            "folder": self.folder,
            "how": self.how,
            "tta": self.tta,
            "networks": self.networks,
            "members": [
                {"name": m.name, "weight": m.weight, "scores": {part: s.to_dict() for part, s in m.scores.items()}}
                for m in self.members
            ],
            "scores": {part: scores.to_dict() for part, scores in self.scores.items()},
            "agreement": dict(self.agreement),
        }


def ensemble(
    bundles: Sequence[str | Path],
    *,
    out: str | Path,
    data: Any = None,
    how: str = "mean",
    tta: str = "none",
    display: Display | None = None,
) -> Ensemble:
    """Make one bundle of several with the same classes, or of one with several views of each picture.

    Args:
        bundles: bundles or run folders. out: the new bundle's folder, new or empty.
        data: whatever `train` takes, the images that the members were trained on. On those that are test in every
            member the ensemble is judged; without data it is proven on made pictures, and not judged.
        how: "mean" of the members' probabilities; "weighted", with the weights of the least loss on the images that
            are validation in every member; "greedy", selected on them with replacement (Caruana et al. 2004); "soup",
            one network of the mean weights of those members with which it does best on them (Wortsman et al. 2022).
        tta: views of a picture, as the setting.

    Raises:
        SettingError: nothing to combine, or views that a member has not learned from.
        BundleError: members that do not fit each other, or a merged network that does not give their mean.
        DataError: no common validation images to choose by.
        RunError: the folder is in use.
    """
    _check_request(bundles, out, how, tta)
    told = display or Silent()
    members = open_members(bundles, data, told)
    for member in members:
        _check_views(member, tta)
    parts = common_parts(members) if data is not None else np.full(len(members[0].dataset.source), -1, np.int8)
    draft = Draft(members=members, dataset=replace(members[0].dataset, split=parts), folder=Path(out), how=how, tta=tta)
    if how != "mean" and not len(draft.dataset.indices("val")):
        raise _nothing_to_choose_by(how, data is not None, len(draft.dataset.prepared.good))
    if data is None:
        told.say("  note: without --data the ensemble is proven on made pictures, and not judged")
    return _cook(draft, told) if how == "soup" else assemble(draft, _weigh(draft), told)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is to be put together.

    Attributes:
        dataset: the common images with their common parts, as the first member wants them.
        parts: which of them judge the ensemble and its members. facts: what else the bundle should tell of itself.
    """

    members: Sequence[Member]
    dataset: Dataset
    folder: Path
    how: str = "mean"
    tta: str = "none"
    parts: tuple[str, ...] = ("val", "test")
    facts: Mapping[str, Any] = field(default_factory=dict)

    def share(self, weights: NDArray[np.float64]) -> list[Share]:
        """Return each member with its weight and its own scores on the common images."""
        labels, classes = self.dataset.source.labels, self.dataset.source.classes
        parts = {part: self.dataset.indices(part) for part in self.parts if len(self.dataset.indices(part))}
        return [
            Share(
                name=member.name,
                weight=float(weight),
                scores={part: score(member.answer(at), labels[at], classes) for part, at in parts.items()},
            )
            for member, weight in zip(self.members, weights)
        ]


def _check_request(bundles: Sequence[str | Path], out: str | Path, how: str, tta: str) -> None:
    for name, value, known in (("how", how, HOWS), ("tta", tta, TTA)):
        if value not in known:
            raise SettingError(f"{name} to be one of {', '.join(known)}", got=repr(value), fix="Choose one of them.")
    if len(bundles) < 2 and (how != "mean" or tta == "none" or not bundles):
        fix = "Name more bundles, or let one answer for several views with --tta flip."
        raise SettingError("two bundles or more, or one and its views", got=f"{len(bundles)}", fix=fix)
    path = Path(out)
    with storage_errors(path):
        used = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if used:
        raise RunError(
            "an output folder that does not exist or is empty", got=f"{out!s}, in use", fix="Choose another."
        )


def _check_views(member: Member, tta: str) -> None:
    """Refuse views that a member has not learned from, or that it has already. Raises SettingError."""
    recipe = member.bundle.recipe
    if tta != "none" and recipe.get("tta", "none") != "none":
        got = f"{member.name}, which has tta={recipe['tta']}"
        raise SettingError("members without views of their own", got=got, fix="Leave --tta out.")
    if "flip" in tta and recipe.get("flip") is False:
        got = f"tta={tta} for {member.name}, trained with flip=false"
        raise SettingError("views like the pictures learned from", got=got, fix="Take --tta shifts, or none.")


def _nothing_to_choose_by(how: str, given: bool, images: int) -> DataError:
    return DataError(
        f"images that are validation in every member, to choose by with --how {how}",
        got=f"none of {images:,}" if given else "no --data",
        fix="Name the members' data with --data; where each member divided them otherwise, train them on data with "
        "parts of their own (folders train, val and test). Or take --how mean.",
    )


def _weigh(draft: Draft) -> NDArray[np.float64]:
    members, indices = draft.members, draft.dataset.indices("val")
    if draft.how == "mean":
        return np.full(len(members), 1 / len(members))
    labels = draft.dataset.source.labels[indices]
    truth = np.stack([member.answer(indices)[np.arange(len(indices)), labels] for member in members])
    return fit_weights(truth) if draft.how == "weighted" else pick_members(truth)


def assemble(draft: Draft, weights: NDArray[np.float64], display: Display) -> Ensemble:
    """Merge the members of a weight above 0 into one bundle that is proven, judged and written.

    Raises BundleError if the merged network does not give the mean of their answers; no bundle is written then.
    """
    shares = draft.share(weights)
    kept = [member for member, weight in zip(draft.members, weights) if weight > 0]
    preprocess, counted = choose_pixels(kept), weights[weights > 0]
    bundle = _describe(draft, kept, preprocess, shares)
    views = list_views(draft.tta, preprocess)
    branches = [_branch(member, weight) for member, weight in zip(kept, counted)]
    network = merge_networks(branches, preprocess, views)
    dataset = _as_seen(draft, bundle, display)
    predictor = Predictor(bundle, network=network)
    agreement = _prove(kept, counted, predictor, dataset, draft.tta)
    if lost := count_lost(draft.members, preprocess):
        display.say(f"  warning: {lost:,} images that members learned from are not in the data; they will not be known")
    files = _files(kept) | {"model.onnx": network, "parts.npy": table_file(join_tables(draft.members, dataset))}
    answers = answer_parts(predictor, dataset, draft.parts, display=display)
    judgements = judge_parts(bundle, dataset, answers)
    write_bundle(with_results(bundle, agreement, judgements), files)
    scores = {part: judgement.scores for part, judgement in judgements.items()}
    return _tell(draft, shares, len(kept) * len(views), scores, agreement)


def _branch(member: Member, weight: float) -> Branch:
    bundle = member.bundle
    network = bundle.onnx_file.read_bytes()
    return Branch(network=network, preprocess=bundle.preprocess, order=member.order, weight=float(weight))


def _as_seen(draft: Draft, bundle: Bundle, display: Display) -> Dataset:
    """Return the common images as an ensemble's bundle wants them, in their common parts."""
    key = pixels_of(bundle.preprocess)
    same = (member.dataset for member in draft.members if pixels_of(member.bundle.preprocess) == key)
    found = next(same, None) or read_known(draft.dataset.source, bundle, display)
    return replace(found, preprocess=bundle.preprocess, split=draft.dataset.split)


def _prove(
    members: Sequence[Member], weights: NDArray[np.float64], predictor: Predictor, dataset: Dataset, tta: str
) -> Agreement:
    """Compare the merged network with the mean of the members' own answers, on images spread over all parts."""
    indices, ours = spread(dataset.prepared.good), pixels_of(predictor.bundle.preprocess)
    expected = np.average([member.answer(indices, tta=tta) for member in members], axis=0, weights=weights)
    exact = all(pixels_of(member.bundle.preprocess) == ours for member in members)
    found = predictor.predict_pixels(dataset.prepared.pixels.take(indices))
    agreement = compare(expected.astype(np.float32), found, tolerance=_EXACT if exact else _RESIZED)
    if not agreement.holds:
        raise BundleError(
            f"a merged network that gives the mean of its members within {agreement.tolerance}",
            got=f"probabilities that differ by {agreement.largest_difference:.2g}",
            fix="Take members of one image_size and one number of channels."
            if not exact
            else "Leave members out one by one, and report the one.",
        )
    return agreement


def _files(members: Sequence[Member]) -> dict[str, bytes]:
    """Return the weights of members that have theirs, and what else belongs to one alone."""
    first = members[0].bundle
    paths = [member.bundle.weights_file for member in members]
    files = {}
    if all(path.is_file() for path in paths):
        files["model.safetensors"] = weights_file([safetensors.torch.load_file(path) for path in paths])
    config = first.folder / "config.json"
    return files | ({"config.json": config.read_bytes()} if len(members) == 1 and config.is_file() else {})


def _describe(draft: Draft, kept: Sequence[Member], preprocess: Preprocess, shares: Sequence[Share]) -> Bundle:
    """Return an ensemble's bundle: its recipe is what the recipes of all members have in common."""
    bundles = [member.bundle for member in kept]
    first = bundles[0]
    common = {
        name: value
        for name, value in first.recipe.items()
        if all(name in bundle.recipe and bundle.recipe[name] == value for bundle in bundles)
    }
    architectures = [bundle.architecture for bundle in bundles]
    views = {"tta": draft.tta} if draft.tta != "none" else {}
    return Bundle(
        folder=draft.folder,
        architecture=first.architecture if len(kept) == 1 else name_ensemble(architectures),
        classes=draft.dataset.source.classes,
        preprocess=preprocess,
        recipe=common | views,
        facts=_facts(bundles) | _members_facts(draft, shares) | dict(draft.facts),
    )


def _facts(bundles: Sequence[Bundle]) -> dict[str, Any]:
    def all_of(name: str) -> str:
        return "; ".join(sorted({str(bundle.facts.get(name, "")) for bundle in bundles} - {""}))

    origins = {name: all_of(name) for name in ("data", "base_weights", "licence")}
    return {"created": datetime.now(UTC).isoformat(timespec="seconds"), **origins, "versions": list_versions()}


def _members_facts(draft: Draft, shares: Sequence[Share]) -> dict[str, Any]:
    described = [
        {
            "name": share.name,
            "manifest_sha256": member.digest,
            "architecture": member.bundle.architecture.name,
            "classes": list(member.bundle.classes),
            "weight": share.weight,
            "scores": {part: scores.to_dict() for part, scores in share.scores.items()},
        }
        for member, share in zip(draft.members, shares)
    ]
    chosen_on = len(draft.dataset.indices("val")) if draft.how != "mean" else 0
    return {"ensemble": {"how": draft.how, "tta": draft.tta, "chosen_on": chosen_on, "members": described}}


def _cook(draft: Draft, display: Display) -> Ensemble:
    """Deliver a soup, a network like each of its members."""
    own = [share.scores["val"] for share in draft.share(np.zeros(len(draft.members)))]
    ranks = [(scores.accuracy.value, -scores.loss.value) for scores in own]
    model, chosen = stir(draft.members, draft.dataset, ranks, display)
    weights = np.array([1 / len(chosen) if i in chosen else 0.0 for i in range(len(draft.members))])
    shares = draft.share(weights)
    product = serve(model, draft.members[0], draft.dataset, tta=draft.tta)
    parts = join_tables(draft.members, draft.dataset)
    delivery = deliver(
        replace(product, parts=parts, facts=_members_facts(draft, shares)), draft.folder, display=display
    )
    scores = {part: judgement.scores for part, judgement in delivery.judgements.items()}
    return _tell(draft, shares, len(product.views), scores, delivery.agreement)


def _tell(
    draft: Draft, shares: Sequence[Share], networks: int, scores: Mapping[str, Scores], agreement: Agreement
) -> Ensemble:
    return Ensemble(
        folder=str(draft.folder),
        how=draft.how,
        tta=draft.tta,
        networks=networks,
        members=shares,
        scores=scores,
        agreement=agreement.to_dict(),
    )
