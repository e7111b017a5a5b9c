"""Transfer: which weights of a network with published weights learn, when and how fast.

    full       all
    head       the last layer alone, fitted on features of the frozen rest (linear probing)
    staged     the head, then one stage after the other from the head backwards     (Howard and Ruder 2018)
    bias       biases, those of norms too                                           (Ben Zaken et al. 2022, BitFit)
    norm       scales and shifts of norms, whose statistics stay as published       (Frankle et al. 2021)
    lora       a change of low rank beside the weights of convolutions and dense layers   (Hu et al. 2022)
    adapter    a linear layer of low rank before each of them                       (Luo et al. 2023, RepAdapter)

The head learns in all. Whatever is added is merged into the weights in the end (see `models/adapters.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from linnaeus.config import AUTO, FEW, Settings
from linnaeus.errors import ModelError, SettingError
from linnaeus.models.adapters import KINDS, adapt, is_smaller, list_layers
from linnaeus.models.registry import Classifier
from linnaeus.models.stages import place_weights
from linnaeus.runtime import seed_all

_THAWED_BY = 0.5  # progress at which the last stage begins to learn
_HEAD_RATE, _HEAD_RATE_OF_FEW = 3.0, 0.3  # of the body's, which is ten times as high where few weights of it learn
_NEEDED = {
    "bias": "biases to learn",
    "norm": "norms to learn",
    "lora": "convolutions or dense layers to change",
    "adapter": "convolutions or dense layers to adapt",
}


def check_transfer(settings: Settings, model: Classifier, name: str) -> None:
    """Refuse a way of fine-tuning that needs what the run or the network has not. Raises SettingError, ModelError."""
    method = settings.finetune
    if method not in (AUTO, "full") and not settings.pretrained:
        raise SettingError(
            f"published weights for finetune={method}",
            got="pretrained=false",
            fix="Set pretrained=true or name a file with weights=FILE; from nothing, all must learn: finetune=full.",
        )
    if settings.pretrained and not (isinstance(model.head, nn.Linear) and model.head.bias is not None):
        fix = "Set pretrained=false, or choose another model."
        raise ModelError(
            "a network that ends in one linear layer with a bias", got=f"one that ends in {model.head}", fix=fix
        )
    if method == "staged" and len(model.stages()) < 2:
        raise _refusal(name, method, "stages to thaw one after the other", ["full", "head"])
    if method in FEW and not _find(model, method, settings.rank):
        others = [other for other in FEW if other != method and _find(model, other, settings.rank)]
        lower = method in KINDS and _find(model, method, 1)
        needed = f"{_NEEDED[method]}, larger than rank={settings.rank} makes them" if lower else _NEEDED[method]
        raise _refusal(name, method, needed, [*(["a lower rank"] if lower else []), "full", "head", *others])


def _refusal(name: str, method: str, needed: str, fitting: Sequence[str]) -> SettingError:
    choices = [each if " " in each else f"finetune={each}" for each in fitting]
    fix = f"Set {', '.join(choices[:-1])} or {choices[-1]}, or choose another model."
    return SettingError(f"a network with {needed} for finetune={method}", got=f"{name}, which has none", fix=fix)


def begin_transfer(model: Classifier, settings: Settings) -> None:
    """Freeze what is not to learn, and add what is to learn in its place."""
    if settings.finetune not in FEW:
        return
    chosen = _find(model, settings.finetune, settings.rank)
    if settings.finetune in KINDS:
        seed_all(next(model.parameters()).device, settings.seed)
        layers = list_layers(model)
        for name in chosen:
            adapt(layers[name], settings.finetune, settings.rank)
    stages = model.stages()
    for name, stage in place_weights(dict(model.named_parameters()), stages).items():
        added = ".parametrizations." in name and not name.endswith(".original")
        if not (added or stage == len(stages) or name in chosen):
            model.get_parameter(name).requires_grad_(False)


def _find(model: Classifier, method: str, rank: int) -> list[str]:
    """Return the names of the weights (of the layers, for lora and adapter) before the head that a method changes."""
    if method in KINDS:
        layers = [name for name, layer in list_layers(model).items() if is_smaller(layer, method, rank)]
        return [name.removesuffix(".weight") for name in _before_head(model, [f"{name}.weight" for name in layers])]
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    return _before_head(model, biases if method == "bias" else _list_norms(model))


def _before_head(model: Classifier, names: Sequence[str]) -> list[str]:
    """Return those names of weights that lie in a stage."""
    stages = model.stages()
    return [name for name, stage in place_weights(names, stages).items() if stage < len(stages)]


def _list_norms(model: nn.Module) -> list[str]:
    """Return the names of the scales and shifts of norms; libraries have many norms, whose classes are called so."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 1
    ]


def rate_factors(model: Classifier, settings: Settings) -> dict[str, float]:
    """Return how many times the learning rate is each weight's, by its name.

    With `layer_decay` d, that of each stage is d times that of the next (Clark et al. 2020; Bao et al. 2022, BEiT).
    """
    stages, heads = model.stages(), {id(parameter) for parameter in model.head.parameters()}
    of_head = (_HEAD_RATE_OF_FEW if settings.finetune in FEW else _HEAD_RATE) if settings.pretrained else 1.0
    places = place_weights((name for name, _ in model.named_parameters()), stages)
    return {
        name: of_head if id(parameter) in heads else settings.layer_decay ** (len(stages) - places[name])
        for name, parameter in model.named_parameters()
    }


class Thaw:
    """Gradual unfreezing: the last stage learns at once, the others one by one until half of the run is over.

    A weight that is frozen costs no backward pass, and no decay, momentum or average moves it: its gradient is None.
    """

    def __init__(self, model: Classifier) -> None:
        stages = model.stages()
        places: Mapping[str, int] = place_weights((name for name, _ in model.named_parameters()), stages)
        self._stages: list[list[nn.Parameter]] = [[] for _ in stages]
        for name, parameter in model.named_parameters():
            if places[name] < len(stages) and parameter.requires_grad:
                self._stages[places[name]].append(parameter)
        self._frozen = 0

    def __call__(self, progress: float) -> bool:
        """Freeze and thaw for a progress in [0, 1]. Returns whether anything changed."""
        count = len(self._stages)
        frozen = count - min(count, 1 + int(progress / _THAWED_BY * count))
        if frozen == self._frozen:
            return False
        for number, parameters in enumerate(self._stages):
            for parameter in parameters:
                parameter.requires_grad_(number >= frozen)
        self._frozen = frozen
        return True
