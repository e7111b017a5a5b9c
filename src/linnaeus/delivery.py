"""From a trained network to what a user gets: a bundle that was proven and judged."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from linnaeus.bundle import Architecture, Bundle, write_bundle
from linnaeus.compression.export import Agreement, compare, to_onnx
from linnaeus.compression.merging import Branch, merge_networks
from linnaeus.compression.views import View, list_views
from linnaeus.config import Settings
from linnaeus.data.preparation import Dataset
from linnaeus.display import Display
from linnaeus.errors import TrainingError
from linnaeus.evaluation.multilabel import USUAL_THRESHOLD, choose_thresholds
from linnaeus.judging import Judgement, answer_images, judge_answers
from linnaeus.labelling import SINGLE
from linnaeus.models.registry import Blueprint, Classifier, Entry, count_parameters
from linnaeus.predictor import Predictor
from linnaeus.runtime import list_versions
from linnaeus.training.checkpoint import separate
from linnaeus.training.tasks import Normalizer

ENSEMBLE = "ensemble"  # the architecture of a bundle with several members
Answers = tuple[NDArray[np.int64], NDArray[np.float32]]  # the indices of some images, and probabilities for them

_CHECKED = 64  # images on which the exported network must agree with the trained one


@dataclass(frozen=True, kw_only=True)
class Product:
    """A trained network with all that it needs to be of use.

    Attributes:
        models: the network; several are snapshots of one run, whose mean answers.
        pretrained: whether it started from published weights.
        held_out: the parts of the data that training did not learn from. trained: how many weights learned.
        parts: uint8 (n, 17), which image had which part, where the data do not know it all.
        facts: what else the bundle should tell of itself.
    """

    models: tuple[Classifier, ...]
    entry: Entry
    blueprint: Blueprint
    dataset: Dataset
    settings: Settings
    pretrained: bool
    held_out: tuple[str, ...] = ("val", "test")
    trained: int = 0
    parts: NDArray[np.uint8] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def views(self) -> tuple[View, ...]:
        """The views of a picture whose mean answers."""
        return list_views(self.settings.tta, self.dataset.preprocess)

    def describe(self, onnx_bytes: int) -> dict[str, Any]:
        """Return name, size and origin of the network as JSON values."""
        several = len(self.models) > 1
        return {
            "name": f"{len(self.models)} snapshots of {self.entry.name}" if several else self.entry.name,
            "parameters": sum(count_parameters(model) for model in self.models),
            "trained_parameters": self.trained,
            "onnx_bytes": onnx_bytes,
            "base_weights": self.entry.weights if self.pretrained else "",
            "licence": self.entry.licence if self.pretrained else "",
        }


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What was delivered: how the bundle was proven and judged."""

    agreement: Agreement
    judgements: Mapping[str, Judgement]
    model: Mapping[str, Any]


def deliver(product: Product, folder: Path, *, display: Display, at_most: int = 0) -> Delivery:
    """Export a network, prove that the export agrees with it, judge it as it will be used, and write its bundle.

    `at_most` other than 0 judges no more images than that of each part, spread evenly.
    Raises TrainingError if ONNX Runtime and PyTorch disagree; no bundle is written then.
    """
    for model in product.models:
        model.to("cpu").eval()
    files = _files(product)
    bundle = _bundle(product, folder)
    predictor = Predictor(bundle, threads=product.settings.threads, network=files["model.onnx"])
    agreement = _check(product, predictor)
    write_bundle(bundle, files)  # whoever stops us while we judge has a bundle, though without scores
    dataset, parts = product.dataset, product.held_out
    answers = answer_parts(predictor, dataset, parts, display=display, at_most=at_most)
    bundle = replace(bundle, thresholds=_thresholds(bundle, dataset, answers))
    judgements = judge_parts(bundle, dataset, answers)
    write_bundle(with_results(bundle, agreement, judgements), files)
    described = product.describe(len(files["model.onnx"]))
    return Delivery(agreement=agreement, judgements=judgements, model=described)


def with_results(bundle: Bundle, agreement: Agreement, judgements: Mapping[str, Judgement]) -> Bundle:
    """Return a bundle whose facts tell how it was proven and judged."""
    scores = {part: judgement.scores.to_dict() for part, judgement in judgements.items()}
    return replace(bundle, facts={**bundle.facts, "scores": scores, "agreement": agreement.to_dict()})


def table_file(table: NDArray[np.uint8]) -> bytes:
    """Return the file of a table of images and their parts."""
    stream = io.BytesIO()
    np.save(stream, table, allow_pickle=False)
    return stream.getvalue()


def _files(product: Product) -> dict[str, bytes]:
    weights = [model.published().state_dict() for model in product.models]
    parts = product.dataset.parts_table() if product.parts is None else product.parts
    files = {
        "model.onnx": _network(product),
        "model.safetensors": weights_file(weights),
        "parts.npy": table_file(parts),
    }
    if product.entry.timm and len(product.models) == 1:
        files["config.json"] = (json.dumps(_timm_config(product), indent=2) + "\n").encode()
    return files


def weights_file(members: Sequence[Mapping[str, torch.Tensor]]) -> bytes:
    """Return the file of a network's weights; those of several bear the member's number before their names."""
    if len(members) == 1:
        return safetensors.torch.save(separate(members[0]))
    named = {f"{i}/{name}": value for i, weights in enumerate(members) for name, value in weights.items()}
    return safetensors.torch.save(separate(named))


def _network(product: Product) -> bytes:
    """Return the network that runs: of several models, or of several views, it gives the mean."""
    blueprint, models = product.blueprint, product.models
    networks = [to_onnx(model, channels=blueprint.channels, size=blueprint.size) for model in models]
    if len(networks) == len(product.views) == 1:
        return networks[0]
    preprocess, order = product.dataset.preprocess, tuple(range(blueprint.classes))
    branches = [
        Branch(network=network, preprocess=preprocess, order=order, weight=1 / len(networks)) for network in networks
    ]
    return merge_networks(branches, preprocess, product.views)


def _timm_config(product: Product) -> dict[str, Any]:
    """Return what timm.create_model("local-dir:...") reads."""
    preprocess = product.dataset.preprocess
    return {
        "architecture": product.entry.timm,
        "num_classes": product.blueprint.classes,
        "num_features": product.models[0].width,
        "label_names": list(product.dataset.source.classes),
        "model_args": {"in_chans": preprocess.channels},
        "pretrained_cfg": {
            "input_size": [preprocess.channels, preprocess.height, preprocess.width],
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "crop_pct": 1.0,
            "num_classes": product.blueprint.classes,
        },
    }


def _bundle(product: Product, folder: Path) -> Bundle:
    blueprint, source = product.blueprint, product.dataset.source
    options = {"channels": blueprint.channels, "size": blueprint.size, **blueprint.options}
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": source.name,
        "base_weights": product.entry.weights if product.pretrained else "",
        "licence": product.entry.licence if product.pretrained else "",
        "versions": list_versions(),
        **product.facts,
    }
    one = Architecture(name=blueprint.name, options=options)
    return Bundle(
        folder=folder,
        architecture=one if len(product.models) == 1 else name_ensemble([one] * len(product.models)),
        classes=source.classes,
        labelling=source.labelling,
        thresholds=() if source.labelling is SINGLE else (USUAL_THRESHOLD,) * len(source.classes),
        preprocess=product.dataset.preprocess,
        recipe=product.settings.to_dict(),
        facts=facts,
    )


def name_ensemble(members: Sequence[Architecture]) -> Architecture:
    """Return the architecture of a bundle with several members: what rebuilds each, in the order of their weights."""
    described = [{"name": member.name, "options": dict(member.options)} for member in members]
    return Architecture(name=ENSEMBLE, options={"members": described})


def _check(product: Product, predictor: Predictor) -> Agreement:
    """Compare PyTorch and ONNX Runtime on real images, spread over all parts."""
    pixels = product.dataset.prepared.pixels.take(spread(product.dataset.prepared.good))
    agreement = compare(_answer(product, pixels), predictor.predict_pixels(pixels))
    if not agreement.holds:
        raise TrainingError(
            f"ONNX Runtime to agree with PyTorch within {agreement.tolerance}",
            got=f"probabilities that differ by {agreement.largest_difference:.2g}",
            fix="Train with another model, and report this one.",
        )
    return agreement


def spread(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the few of some images, spread evenly, on which networks are compared."""
    return indices[:: max(1, len(indices) // _CHECKED)][:_CHECKED]


@torch.inference_mode()
def _answer(product: Product, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return PyTorch's probabilities float32 (N, K), the mean over models and views."""
    normalize = Normalizer(product.dataset.preprocess, torch.device("cpu"))
    activate = product.dataset.source.labelling.activate
    seen = [normalize(torch.from_numpy(view.show(pixels)).permute(0, 3, 1, 2)) for view in product.views]
    answers = [activate(model(images).float().numpy()) for model in product.models for images in seen]
    mean: NDArray[np.float32] = np.mean(answers, axis=0)
    return mean


def answer_parts(
    predictor: Predictor, dataset: Dataset, parts: Sequence[str], *, display: Display, at_most: int = 0
) -> dict[str, Answers]:
    """Answer for those parts of a data set that hold images, at most so many of each, spread evenly."""
    found = {part: dataset.indices(part, at_most=at_most) for part in parts}
    return {
        part: (indices, answer_images(predictor, dataset, indices, part=part, display=display))
        for part, indices in found.items()
        if len(indices)
    }


def judge_parts(bundle: Bundle, dataset: Dataset, answers: Mapping[str, Answers]) -> dict[str, Judgement]:
    """Score the answers for some parts of a data set."""
    return {
        part: judge_answers(bundle, dataset, indices, probabilities, part=part)
        for part, (indices, probabilities) in answers.items()
    }


def _thresholds(bundle: Bundle, dataset: Dataset, answers: Mapping[str, Answers]) -> tuple[float, ...]:
    """Return from which probability on each label is given: what does best on validation. Empty for one label each."""
    if bundle.labelling is SINGLE or "val" not in answers:
        return bundle.thresholds
    indices, probabilities = answers["val"]
    return choose_thresholds(probabilities, dataset.source.truth[indices])
