"""The catalogue of networks: what each weighs, how much it computes, and how long it takes on this machine."""

from __future__ import annotations

import fnmatch
import statistics
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from linnaeus.bundle import Architecture, Bundle
from linnaeus.compression.export import to_onnx
from linnaeus.display import Display
from linnaeus.errors import LinnaeusError, ModelError
from linnaeus.images import Preprocess
from linnaeus.models.registry import (
    FOREIGN,
    SMALL,
    Blueprint,
    Classifier,
    Entry,
    count_parameters,
    create_model,
    find_model,
    list_models,
)
from linnaeus.predictor import Predictor

SMALL_MACHINES = (
    "lenet5", "fastnet_small", "fastnet", "efficientnet_lite0", "timm:tinynet_e", "timm:mobilenetv3_small_100",
    "timm:mobilenetv4_conv_small", "timm:mobilenetv3_large_100",
)  # fmt: skip
MANY = 30  # networks of other libraries, above which describing all takes minutes
_SIDE = 32  # at which networks are described that adapt to the data
_FEW_CLASSES, _MANY_CLASSES = 10, 1000  # as in CIFAR-10 and ImageNet
_WARM_UP, _RUNS = 3, 15


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a network weighs and computes.

    Attributes:
        size, channels, classes: of what it is described for: colour pictures of the side that it was made for, or of
            32 pixels; 1,000 classes above 64 pixels, else 10.
        parameters: number of weights, auxiliary heads too.
        multiply_adds: of one picture in use: one for each product that is added up in a convolution, a linear layer or
            attention, as papers count (half of the "FLOPs" where a product and a sum are two). Norms, activations and
            pools, some per cent, are left out.
        small: whether it is one of those for small machines.
        milliseconds: for one picture through ONNX Runtime, as deployed; None if not measured.
    """

    name: str
    about: str
    size: int
    channels: int
    classes: int
    parameters: int
    multiply_adds: int
    weights: str
    licence: str
    small: bool
    milliseconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def choose_networks(pattern: str = "*", *, small: bool = False) -> list[Entry]:
    """Return the networks that match a pattern, as `list_models` does; if `small`, only those for small machines."""
    if small:
        return [find_model(name) for name in SMALL_MACHINES if fnmatch.fnmatch(name, pattern)]
    return list_models(pattern)


def describe_model(name: str, *, size: int = 0, measure: bool = False) -> ModelFacts:
    """Tell what a network weighs and computes, without its weights; `measure` runs it too.

    `size` is the pictures' side in pixels, 0 for that of the network. Raises ModelError.
    """
    entry = find_model(name)
    side = size or entry.size or entry.pretrained_size or max(_SIDE, entry.smallest)
    classes = _MANY_CLASSES if side > SMALL else _FEW_CLASSES
    blueprint = Blueprint(name=name, classes=classes, channels=3, size=side)
    count = _count_foreign if entry.own or name.startswith(FOREIGN) else _count_ours
    parameters, multiply_adds = count(blueprint)
    facts = ModelFacts(
        name=name, about=entry.about, size=side, channels=3, classes=classes, parameters=parameters,
        multiply_adds=multiply_adds, weights=entry.weights, licence=entry.licence, small=name in SMALL_MACHINES,
    )  # fmt: skip
    return replace(facts, milliseconds=measure_latency(blueprint)) if measure else facts


class _Unfilled(TorchFunctionMode):
    """Lets weights be allocated but not filled, so that a network of any size is built at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            tensor = args[0] if args else kwargs["tensor"]
            # Truncated normal numbers are drawn anew until all lie within their bounds, which zeros do.
            return tensor.zero_() if name == "normal_" else tensor
        return func(*args, **(kwargs or {}))


def _count_ours(blueprint: Blueprint) -> tuple[int, int]:
    """Count in the shapes that a batch of no pictures has: every layer runs, and nothing is computed."""
    with _Unfilled():
        model = create_model(blueprint).eval()
    products: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _count_products(module, products)
    with torch.inference_mode():
        model(torch.zeros(0, blueprint.channels, blueprint.size, blueprint.size))
    return count_parameters(model), sum(products)


def _count_products(layer: nn.Conv2d | nn.Linear, products: list[int]) -> RemovableHandle:
    for_each = layer.weight[0].numel()

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        products.append(output.shape[1:].numel() * for_each)

    return layer.register_forward_hook(count)


def _count_foreign(blueprint: Blueprint) -> tuple[int, int]:
    """Count the operations of a picture without values: torch's counter knows attention too, but loads slowly."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.device("meta"):
            model = create_model(blueprint).eval()
            with counter:
                model(torch.zeros(1, blueprint.channels, blueprint.size, blueprint.size))
    except NotImplementedError as error:  # a network that computes with values while it is built
        got, fix = f"{blueprint.name} ({error})", "Train it to see what it costs."
        raise ModelError("a network that can be built without weights", got=got, fix=fix) from None
    return count_parameters(model), counter.get_total_flops() // 2


def measure_latency(blueprint: Blueprint, *, threads: int = 0) -> float:
    """Return the milliseconds of one picture, from its pixels to its probabilities, through the Predictor.

    The network has fresh weights. The median of 15 runs after 3 to warm up.
    """
    predictor = _deploy(create_model(blueprint), blueprint, threads)
    pixels = np.zeros((1, blueprint.size, blueprint.size, blueprint.channels), np.uint8)
    seconds = []
    for _ in range(_WARM_UP + _RUNS):
        start = time.perf_counter()
        predictor.predict_pixels(pixels)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[_WARM_UP:])


def _deploy(model: Classifier, blueprint: Blueprint, threads: int) -> Predictor:
    channels, size = blueprint.channels, blueprint.size
    half = (0.5,) * channels
    bundle = Bundle(
        folder=Path(blueprint.name),
        architecture=Architecture(name=blueprint.name),
        classes=tuple(str(number) for number in range(blueprint.classes)),
        preprocess=Preprocess(height=size, width=size, channels=channels, fit="stretch", mean=half, std=half),
        recipe={},
        facts={},
    )
    return Predictor(bundle, threads=threads, network=to_onnx(model, channels=channels, size=size))


def describe_networks(entries: list[Entry], *, measure: bool, display: Display) -> list[dict[str, Any]]:
    """Return what `describe_model` tells of each network, by name, under a progress bar.

    Numbers are None of a network that cannot be built without weights, or cannot be run, which is said; and of all, if
    more than 30 are those of other libraries.
    """
    if sum(entry.name.startswith(FOREIGN) for entry in entries) > MANY:
        display.say(f"{len(entries):,} networks. Of {MANY} or fewer the costs are told too: narrow the pattern.")
        return [_bare_facts(entry) for entry in entries]
    watched = display.watch(entries, len(entries), "measuring" if measure else "counting")
    return [_try_to_describe(entry, measure=measure, display=display) for entry in watched]


def _try_to_describe(entry: Entry, *, measure: bool, display: Display) -> dict[str, Any]:
    try:
        return describe_model(entry.name, measure=measure).to_dict()
    except LinnaeusError as error:  # one odd network should not hide the others
        display.say(f"note: {entry.name}: {error}")
        return _bare_facts(entry)


def _bare_facts(entry: Entry) -> dict[str, Any]:
    known = {"about": entry.about, "weights": entry.weights, "licence": entry.licence, "size": entry.size or None}
    small = entry.name in SMALL_MACHINES
    return {field.name: None for field in fields(ModelFacts)} | {"name": entry.name, "small": small} | known
