"""What a search may try: the settings that concern the network and the data, each with its range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from linnaeus.config import AUTO, RULES, Settings
from linnaeus.errors import ModelError, SettingError, suggest
from linnaeus.looking import Look
from linnaeus.models.registry import Blueprint, create_model
from linnaeus.ranges import Range
from linnaeus.recipes import Chooser, choose_training

_SMALLEST_STEPS = 4  # an epoch should have at least so many
_SHAPES = ("filters", "kernel_size")  # choices that may leave nothing of a small picture
_SETTLED = ("model", "pretrained")  # chosen once, so that all trials are alike in them

# Where a setting that has a range is worth nothing or does harm, and why.
_NOWHERE: dict[str, tuple[Callable[[Look], bool], str]] = {
    "flip": (lambda look: not look.settings.flip, "these pictures have a left and a right"),
    "shift": (lambda look: not look.situation.small, "crops shift photographs already"),
    "crop": (lambda look: look.situation.small, "small pictures are framed already"),
    "colour": (lambda look: look.situation.small or look.situation.grey, "these pictures are small or have no colour"),
    "label_smoothing": (lambda look: look.settings.loss == "focal", "focal takes hard labels"),
    "batch_size": (lambda look: look.settings.optimizer == "gd", "gradient descent sees all images in a step"),
}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting to search.

    Attributes:
        values: a range of numbers, or the choices. default: among them, where the search begins.
        whole: whether only whole numbers are meant.
    """

    name: str
    values: Range | tuple[Any, ...]
    default: Any
    whole: bool = False

    def __str__(self) -> str:
        if isinstance(self.values, Range):
            return str(self.values)
        return ", ".join(str(value) if value != "" else "none" for value in self.values)


Space = Sequence[Dimension]


def find_space(look: Look, given: Iterable[str], asked: Sequence[str] = ()) -> Space:
    """Return what is worth searching for a look at the data: what concerns its network and pictures and is not given.

    `asked` narrows it to these names. Raises SettingError for one that cannot be searched, and where nothing is left.
    """
    fixed = set(given)
    reasons = {name: "it is given" if name in fixed else _why_not(name, look) for name in RULES}
    for name in asked:
        if reasons.get(name, "there is no such setting"):
            open_ = [known for known, reason in reasons.items() if not reason]
            got = f"{name!r}: {reasons.get(name, 'there is no such setting')}"
            raise SettingError("settings that can be searched here", got=got, fix=suggest(name, open_))
    found = (_dimension(name, look) for name, reason in reasons.items() if not reason and name in (asked or reasons))
    space = [dimension for dimension in found if dimension.values != (dimension.default,)]
    if not space:
        raise SettingError("a setting to search", got="none that is not given", fix="Leave one of them open.")
    return space


def _why_not(name: str, look: Look) -> str:
    """Return why a setting is not searched, or "" if it is."""
    rules = RULES[name]
    if "search" not in rules:
        return "it has no range to search"
    if rules.get("network") and name not in look.entry.options:
        return f"{look.entry.name} has no such setting"
    is_nowhere, why = _NOWHERE.get(name, (lambda look: False, ""))
    return why if is_nowhere(look) else ""


def _dimension(name: str, look: Look) -> Dimension:
    """Return a setting's range or choices, with the default among them."""
    values, default = RULES[name]["search"], getattr(look.settings, name)
    if not isinstance(values, Range):
        fitting = (value for value in values if name not in _SHAPES or _fits(look, name, value))
        return Dimension(name=name, values=tuple(dict.fromkeys((default, *fitting))), default=default)
    if values.relative:
        return Dimension(name=name, values=values, default=1.0)
    whole = RULES[name]["kind"].types == (Integral,)
    if name == "batch_size":
        values = replace(values, high=max(values.low, min(values.high, look.situation.images // _SMALLEST_STEPS)))
    return Dimension(name=name, values=values.widened(default), default=default, whole=whole)


def _fits(look: Look, name: str, value: Any) -> bool:
    """Whether the network can be built with a value, all else as it is."""
    prepared = look.dataset.preprocess
    blueprint = Blueprint(
        name=look.entry.name,
        classes=len(look.dataset.source.classes),
        channels=prepared.channels,
        size=prepared.height,
        options=look.settings.replace({name: value}).of_network(),
    )
    try:
        create_model(blueprint)
    except ModelError:
        return False
    return True


def settle(look: Look, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that all trials have: those given, and those that decide what a trial costs."""
    length = ("budget",) if look.settings.budget else ("epochs",)
    return {**given, **{name: getattr(look.settings, name) for name in (*_SETTLED, *length)}}


def make_settings(space: Space, params: Mapping[str, Any], look: Look, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a trial, by name: those fixed, and those searched with their values."""
    chosen = {d.name: _round(params[d.name]) for d in space if not _is_relative(d)}
    chooser = Chooser(settings=Settings.of({**fixed, **chosen}))
    choose_training(chooser, look.situation)
    for dimension in filter(_is_relative, space):
        chosen[dimension.name] = _round(params[dimension.name] * getattr(chooser.settings, dimension.name))
    return {**fixed, **chosen}


def _is_relative(dimension: Dimension) -> bool:
    return isinstance(dimension.values, Range) and dimension.values.relative


def _round(value: Any) -> Any:
    """Return a number with four digits, as people write it, and anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def list_open(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of those settings that are given a value, not left "auto"."""
    return [name for name, value in settings.items() if value != AUTO]
