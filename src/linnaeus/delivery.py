"""From a trained network to what a user gets: a bundle that was proven and judged."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from linnaeus.bundle import Architecture, Bundle, write_bundle
from linnaeus.compression.export import Agreement, compare, to_onnx
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
from linnaeus.training.tasks import Normalizer

Answers = tuple[NDArray[np.int64], NDArray[np.float32]]

_CHECKED = 64  # images on which the exported network must agree with the trained one


@dataclass(frozen=True, kw_only=True)
class Product:
    """A trained network with all that it needs to be of use.

    Attributes:
        pretrained: whether it started from published weights.
        held_out: the parts of the data that training did not learn from.
    """

    model: Classifier
    entry: Entry
    blueprint: Blueprint
    dataset: Dataset
    settings: Settings
    pretrained: bool
    held_out: tuple[str, ...] = ("val", "test")

    def describe(self, onnx_bytes: int) -> dict[str, Any]:
        """Return name, size and origin of the network as JSON values."""
        return {
            "name": self.entry.name,
            "parameters": count_parameters(self.model),
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
    model = product.model.to("cpu").eval()
    files = _files(model, product)
    bundle = _bundle(product, folder)
    predictor = Predictor(bundle, threads=product.settings.threads, network=files["model.onnx"])
    agreement = _check(model, predictor, product.dataset)
    write_bundle(bundle, files)  # whoever stops us while we judge has a bundle, though without scores
    answers = _answer(predictor, product, display, at_most)
    bundle = replace(bundle, thresholds=_thresholds(bundle, product.dataset, answers))
    judgements = {
        part: judge_answers(bundle, product.dataset, indices, probabilities, part=part)
        for part, (indices, probabilities) in answers.items()
    }
    facts = {
        "scores": {part: judgement.scores.to_dict() for part, judgement in judgements.items()},
        "agreement": agreement.to_dict(),
    }
    write_bundle(replace(bundle, facts={**bundle.facts, **facts}), files)
    described = product.describe(len(files["model.onnx"]))
    return Delivery(agreement=agreement, judgements=judgements, model=described)


def _files(model: Classifier, product: Product) -> dict[str, bytes]:
    blueprint = product.blueprint
    weights = {name: value.contiguous() for name, value in model.published().state_dict().items()}
    files = {
        "model.onnx": to_onnx(model, channels=blueprint.channels, size=blueprint.size),
        "model.safetensors": safetensors.torch.save(weights),
    }
    table = io.BytesIO()
    np.save(table, product.dataset.parts_table(), allow_pickle=False)
    files["parts.npy"] = table.getvalue()
    if product.entry.timm:
        files["config.json"] = (json.dumps(_timm_config(product), indent=2) + "\n").encode()
    return files


def _timm_config(product: Product) -> dict[str, Any]:
    """Return what timm.create_model("local-dir:...") reads."""
    preprocess = product.dataset.preprocess
    return {
        "architecture": product.entry.timm,
        "num_classes": product.blueprint.classes,
        "num_features": product.model.width,
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
    }
    return Bundle(
        folder=folder,
        architecture=Architecture(name=blueprint.name, options=options),
        classes=source.classes,
        labelling=source.labelling,
        thresholds=() if source.labelling is SINGLE else (USUAL_THRESHOLD,) * len(source.classes),
        preprocess=product.dataset.preprocess,
        recipe=product.settings.to_dict(),
        facts=facts,
    )


def _check(model: Classifier, predictor: Predictor, dataset: Dataset) -> Agreement:
    """Compare PyTorch and ONNX Runtime on real images, spread over all parts."""
    good = dataset.prepared.good
    pixels = dataset.prepared.pixels.take(good[:: max(1, len(good) // _CHECKED)][:_CHECKED])
    with torch.inference_mode():
        normalize = Normalizer(dataset.preprocess, torch.device("cpu"))
        batch = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
        logits = model(normalize(batch)).float().numpy()
    agreement = compare(predictor.bundle.labelling.activate(logits), predictor.predict_pixels(pixels))
    if not agreement.holds:
        raise TrainingError(
            f"ONNX Runtime to agree with PyTorch within {agreement.tolerance}",
            got=f"probabilities that differ by {agreement.largest_difference:.2g}",
            fix="Train with another model, and report this one.",
        )
    return agreement


def _answer(predictor: Predictor, product: Product, display: Display, at_most: int) -> dict[str, Answers]:
    """Return the indices of the images of each part that is held out, and the probabilities for them."""
    answers = {}
    for part in product.held_out:
        indices = product.dataset.indices(part, at_most=at_most)
        if len(indices):
            probabilities = answer_images(predictor, product.dataset, indices, part=part, display=display)
            answers[part] = indices, probabilities
    return answers


def _thresholds(bundle: Bundle, dataset: Dataset, answers: Mapping[str, Answers]) -> tuple[float, ...]:
    """Return from which probability on each label is given: what does best on validation. Empty for one label each."""
    if bundle.labelling is SINGLE or "val" not in answers:
        return bundle.thresholds
    indices, probabilities = answers["val"]
    return choose_thresholds(probabilities, dataset.source.truth[indices])
