"""Soups: the mean of several networks' weights as one network, which costs no more than one (Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from linnaeus.compression.export import to_onnx
from linnaeus.config import RULES, Settings
from linnaeus.data.preparation import Dataset
from linnaeus.delivery import ENSEMBLE, Product
from linnaeus.display import Display
from linnaeus.ensembles.members import Member
from linnaeus.errors import BundleError
from linnaeus.judging import judge_images
from linnaeus.models.registry import Blueprint, Classifier, create_model, find_model
from linnaeus.predictor import Predictor
from linnaeus.training.averaging import refresh_norms
from linnaeus.training.checkpoint import Weights, copy_weights
from linnaeus.training.tasks import Normalizer

_NORM_IMAGES, _NORM_BATCH = 2048, 128


def stir(
    members: Sequence[Member], dataset: Dataset, scores: Sequence[tuple[float, float]], display: Display
) -> tuple[Classifier, list[int]]:
    """Stir a greedy soup: from the best member on, each joins if the mean of the weights does no worse with it.

    Args:
        dataset: the common images with their common parts; those of val choose.
        scores: accuracy and minus the loss of each member on them.

    Returns:
        the network, and which of the members are in it.

    Raises BundleError for members of several architectures or preprocessings.
    """
    _check_alike(members)
    ranked = sorted(range(len(members)), key=lambda i: scores[i], reverse=True)
    model, chosen, best = create_model(blueprint_of(members[0])), ranked[:1], scores[ranked[0]]
    weights = {i: _read_weights(members[i]) for i in ranked}
    for i in ranked[1:]:
        _fill(model, [weights[k] for k in (*chosen, i)], members[0], dataset)
        found = _judge(model, members[0], dataset, display)
        display.say(f"  soup of {len(chosen) + 1} with {members[i].name}: accuracy {100 * found[0]:.1f} %")
        if found[0] >= best[0]:
            chosen, best = [*chosen, i], found
    _fill(model, [weights[k] for k in chosen], members[0], dataset)
    return model, chosen


def serve(model: Classifier, member: Member, dataset: Dataset, *, tta: str) -> Product:
    """Return a soup as what is delivered, described like one of its members."""
    recipe = {name: value for name, value in member.bundle.recipe.items() if name in RULES}
    blueprint = blueprint_of(member)
    return Product(
        models=(model,),
        entry=find_model(blueprint.name),
        blueprint=blueprint,
        dataset=replace(dataset, preprocess=member.bundle.preprocess),
        settings=Settings.of(recipe).replace({"tta": tta}),
        pretrained=bool(recipe.get("pretrained")),
    )


def blueprint_of(member: Member) -> Blueprint:
    """Return what rebuilds a member's network."""
    architecture = member.bundle.architecture
    options = dict(architecture.options)
    channels, size = options.pop("channels"), options.pop("size")
    return Blueprint(name=architecture.name, classes=len(member.order), channels=channels, size=size, options=options)


def _check_alike(members: Sequence[Member]) -> None:
    first = members[0]
    for member in members:
        ours, theirs = first.bundle, member.bundle
        if theirs.architecture != ours.architecture or ours.architecture.name == ENSEMBLE:
            got = f"{theirs.architecture.name} in {member.name}, {ours.architecture.name} in {first.name}"
            raise BundleError("members of one architecture for a soup", got=got, fix="Take --how mean or greedy.")
        if theirs.preprocess != ours.preprocess:
            expected = "members of one preprocessing for a soup"
            fix = "Train all on the same parts of the data, or take --how mean or greedy."
            raise BundleError(expected, got=f"another in {member.name} than in {first.name}", fix=fix)


def _read_weights(member: Member) -> Weights:
    """Return a member's weights by our names, its classes in the ensemble's order."""
    model = create_model(blueprint_of(member))
    model.published().load_state_dict(safetensors.torch.load_file(member.bundle.weights_file))
    order, head = list(member.order), model.head
    if order != sorted(order):
        if not isinstance(head, torch.nn.Linear):
            fix = "Take --how mean or greedy."
            raise BundleError("classes in one order for a soup", got=f"another in {member.name}", fix=fix)
        with torch.no_grad():
            head.weight.copy_(head.weight[order].clone())
            head.bias.copy_(head.bias[order].clone())
    return copy_weights(model)


def mean_weights(several: Sequence[Weights]) -> Weights:
    """Return the mean of each float tensor, and the first's of every other."""
    return {
        name: torch.stack([weights[name] for weights in several]).mean(dim=0) if value.is_floating_point() else value
        for name, value in several[0].items()
    }


def _fill(model: Classifier, several: Sequence[Weights], member: Member, dataset: Dataset) -> None:
    """Give a network the mean of some weights, with batch statistics of its own unless they were frozen."""
    model.load_state_dict(mean_weights(several))
    model.eval()
    if len(several) > 1 and not member.bundle.recipe.get("pretrained"):
        indices = np.random.default_rng(0).permutation(dataset.indices("train", at_most=_NORM_IMAGES))
        if len(indices):
            refresh_norms(model, (_normalized(member, part) for part in _batches(indices)))


def _batches(indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(indices, -(-len(indices) // _NORM_BATCH))


def _normalized(member: Member, indices: NDArray[np.int64]) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(member.dataset.prepared.pixels.take(indices))).permute(0, 3, 1, 2)
    images: torch.Tensor = Normalizer(member.bundle.preprocess, torch.device("cpu"))(pixels)
    return images


def _judge(model: Classifier, member: Member, dataset: Dataset, display: Display) -> tuple[float, float]:
    """Return accuracy and minus the loss on val, by the network as it would be used."""
    blueprint = blueprint_of(member)
    network = to_onnx(model, channels=blueprint.channels, size=blueprint.size)
    bundle = replace(member.bundle, classes=dataset.source.classes)
    judged = judge_images(
        Predictor(bundle, network=network), dataset, dataset.indices("val"), part="val", display=display
    )
    return judged.scores.accuracy.value, -judged.scores.loss.value
