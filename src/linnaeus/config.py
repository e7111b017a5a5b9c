"""Every setting of a run: the one home of names, defaults, ranges and help texts.

Command line flags, `key=value` pairs, `config.toml`, keyword arguments and docs/settings.md are all made from
`Settings`. A value of "auto" is resolved once, in recipes.py, to what a run then uses and writes down.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from linnaeus.durations import Span, parse_duration
from linnaeus.errors import SettingError, suggest
from linnaeus.ranges import Range

AUTO = "auto"

_SIZES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_size(text: str) -> int:
    """Return the bytes that "500MB" or "8GB" stand for (decimal units). Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in _SIZES:
        raise ValueError(text)
    return int(float(match[1]) * _SIZES[match[2]])


def _parse_bool(text: str) -> bool:
    known = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return known[text.strip().lower()]


@dataclass(frozen=True)
class Kind:
    """How the text of a setting becomes its value, and how to name what is accepted."""

    name: str
    parse: Callable[[str], Any]
    types: tuple[type, ...]


def _parse_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text.strip() else ()


def _parse_weights(text: str) -> str | tuple[float, ...]:
    return text if text in CLASS_WEIGHTS else tuple(float(part) for part in text.split(","))


ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "relu6", "elu", "selu", "softplus", "gelu", "silu", "mish",
               "hardswish")  # fmt: skip
CLASS_WEIGHTS = ("none", "balanced", "effective")
LOSSES = ("cross_entropy", "focal", "bce", "mse")
FEW = ("bias", "norm", "lora", "adapter")  # ways of fine-tuning by which few weights learn
METHODS = ("full", "head", "staged", *FEW)
OPTIMIZERS = ("gd", "sgd", "rmsprop", "adam", "adamw", "lars", "lamb", "muon")
SAMPLING = ("none", "over", "under", "balanced")
SCHEDULES = ("constant", "cosine", "linear", "onecycle", "step", "exponential", "plateau")
TTA = ("none", "flip", "shifts", "flip_shifts")

INTEGER = Kind("a whole number", int, (Integral,))
NUMBER = Kind("a number", float, (Real,))
SWITCH = Kind("true or false", _parse_bool, (bool,))
TEXT = Kind("a text", str, (str,))
DURATION = Kind("a duration such as 30s, 5m or 1h30m", parse_duration, (Real,))
SPAN = Kind(
    "500 steps, 2 epochs, 30s, a share such as 5%, or a number", lambda text: Span.of(text).plain(), (Real, str)
)
INTEGERS = Kind("whole numbers from 1 on such as 32,64,64", _parse_numbers, (tuple, list))
WEIGHTS = Kind(
    "none, balanced, effective, or a number for each class such as 1,2.5", _parse_weights, (str, tuple, list)
)
SIZE = Kind("a size such as 500MB or 8GB", parse_size, (Integral,))


def _setting(default: Any, kind: Kind, text: str, **rules: Any) -> Any:
    """Declare one setting.

    Rules: low, high (inclusive), choices, auto (is "auto" allowed), network (whether it belongs to some networks alone,
    which have a default of their own), search (a Range or the choices that `linnaeus tune` tries beside the default).
    """
    rules.setdefault("auto", default == AUTO)
    return field(default=default, metadata={"kind": kind, "help": text, **rules})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a run can be told. Unknown names and values out of range raise SettingError."""

    # -- data
    val_fraction: Any = _setting(
        AUTO, NUMBER, "share of the images held back to choose by, where the data have no such part", low=0.01, high=0.5
    )
    test_fraction: float = _setting(
        0.15, NUMBER, "share of the images held back to judge by, where the data have no such part", low=0.0, high=0.5
    )
    image_size: Any = _setting(
        AUTO, INTEGER, "side of the square picture that the network sees, in pixels", low=4, high=1024
    )
    train_size: Any = _setting(
        AUTO,
        INTEGER,
        "side of the pictures in training; below image_size it saves time, and crops make up for it",
        low=4,
        high=1024,
    )
    channels: Any = _setting(AUTO, INTEGER, "3 for colour, 1 for grey", choices=(1, 3))
    fit: str = _setting(
        AUTO,
        TEXT,
        "how a picture becomes square: whole with bars, cut at the centre, or stretched",
        choices=("pad", "crop", "stretch"),
    )
    max_bad: float = _setting(0.01, NUMBER, "largest share of unreadable images that is passed over", low=0.0, high=1.0)
    cache_limit: int = _setting(
        8 * 10**9, SIZE, "most that packed images may take on disk; a set above it is decoded anew each epoch", low=0
    )
    workers: Any = _setting(
        AUTO, INTEGER, "threads that prepare batches ahead; 0 prepares them in the loop", low=0, high=64
    )
    path_column: str = _setting("path", TEXT, "column of a CSV or Parquet table that holds the image's path")
    label_column: str = _setting("label", TEXT, "column that holds the class name, or several of them")
    label_separator: str = _setting("", TEXT, "what parts several class names in one cell, such as ;")
    label_columns: str = _setting("", TEXT, "columns of 0 and 1, one for each class, such as cat,dog; no names then")
    split_column: str = _setting("split", TEXT, "column that holds train, val or test, if there is one")
    group_column: str = _setting(
        "group", TEXT, "column whose equal values stay on one side of a split, if there is one"
    )
    # -- model
    model: str = _setting(AUTO, TEXT, "name of the network; see `linnaeus models`", auto=True)
    pretrained: Any = _setting(AUTO, SWITCH, "start from published weights where the model has them")
    weights: str = _setting("", TEXT, "file of published weights to start from, .pth or .safetensors")
    filters: Any = _setting(
        AUTO, INTEGERS, "filters of each block, one number a block", low=1, high=8192, network=True,
        search=("16,32", "16,32,32", "32,64", "64,128,128"),
    )  # fmt: skip
    kernel_size: Any = _setting(AUTO, INTEGER, "side of a filter", low=1, high=31, network=True, search=(5,))
    activation: Any = _setting(
        AUTO, TEXT, "what follows each convolution and dense layer", choices=ACTIVATIONS, network=True,
        search=("leaky_relu", "elu", "gelu", "silu"),
    )  # fmt: skip
    slope: Any = _setting(AUTO, NUMBER, "slope of leaky_relu below zero", low=0.0, high=1.0, network=True)
    pooling: Any = _setting(
        AUTO, TEXT, "what a pool keeps of its window", choices=("max", "avg"), network=True, search=("avg",)
    )
    pool_size: Any = _setting(AUTO, INTEGER, "side of a pool's window", low=1, high=16, network=True)
    padding: Any = _setting(AUTO, SWITCH, "whether a convolution keeps the side of its input", network=True)
    batch_norm: Any = _setting(
        AUTO, SWITCH, "whether each convolution is followed by a batch norm", network=True, search=(True,)
    )
    dense: Any = _setting(
        AUTO, INTEGERS, "widths of the dense layers before the head", low=1, high=65_536, network=True,
        search=("32", "128", "256"),
    )  # fmt: skip
    dropout: Any = _setting(
        AUTO, NUMBER, "share of values dropped before dense layers", low=0.0, high=0.95, network=True,
        search=(0.2, 0.4, 0.6),
    )  # fmt: skip
    stochastic_depth: Any = _setting(
        AUTO, NUMBER, "share of images that skip the last residual block in training", low=0.0, high=0.9, network=True,
        search=(0.1, 0.2),
    )  # fmt: skip
    finetune: str = _setting(AUTO, TEXT, "what learns from published weights; see docs/concepts.md", choices=METHODS)
    rank: int = _setting(4, INTEGER, "rank of what lora and adapter add to a layer", low=1, high=1024)
    layer_decay: float = _setting(
        1.0, NUMBER, "rate of each stage, as a share of the next one's towards the head", low=0.05, high=1.0
    )
    # -- training
    epochs: Any = _setting(AUTO, INTEGER, "how often each training image is seen", low=1, high=100_000)
    steps: int = _setting(0, INTEGER, "most optimizer steps in all; 0 for no limit", low=0, high=10**9)
    budget: Any = _setting(AUTO, DURATION, "time that the whole command may take; 0 for no limit", low=0.0)
    batch_size: Any = _setting(
        AUTO, INTEGER, "images per optimizer step, over all processes", low=1, high=2**31,
        search=Range(low=16, high=512, log=True),
    )  # fmt: skip
    accumulate: Any = _setting(AUTO, INTEGER, "parts in which a batch is computed, to save memory", low=1, high=65_536)
    optimizer: str = _setting(
        AUTO, TEXT, "how weights follow the gradient", choices=OPTIMIZERS, search=("sgd", "rmsprop", "adam", "adamw")
    )
    lr: Any = _setting(
        AUTO, NUMBER, "highest learning rate", low=0.0, high=100.0,
        search=Range(low=0.1, high=10, log=True, relative=True),
    )  # fmt: skip
    momentum: Any = _setting(AUTO, NUMBER, "momentum of sgd, rmsprop, lars and muon", low=0.0, high=0.9999)
    nesterov: bool = _setting(True, SWITCH, "whether momentum looks ahead (Nesterov)")
    weight_decay: Any = _setting(
        AUTO, NUMBER, "weight decay of the matrices; norms and biases have none", low=0.0, high=10.0,
        search=Range(low=0.1, high=10, log=True, relative=True),
    )  # fmt: skip
    l1: float = _setting(0.0, NUMBER, "weight of the sum of the matrices' absolute values in the loss", low=0.0)
    schedule: str = _setting(AUTO, TEXT, "how the learning rate falls after warm-up", choices=SCHEDULES,
                              search=("cosine", "linear", "onecycle"))  # fmt: skip
    lr_drop: float = _setting(
        0.1, NUMBER, "factor of the learning rate at a drop of step, exponential or plateau", low=1e-6, high=1.0
    )
    warmup: Any = _setting(AUTO, SPAN, "how long the learning rate rises at the start", low=0.0, high=0.9)
    loss: str = _setting(AUTO, TEXT, "what training makes small", choices=LOSSES)
    focal_gamma: float = _setting(2.0, NUMBER, "how much less focal counts what is known well", low=0.0, high=10.0)
    class_weights: Any = _setting("none", WEIGHTS, "how much the images of each class count", low=0.0)
    sampling: str = _setting("none", TEXT, "how often images of small and large classes are seen", choices=SAMPLING)
    logit_adjustment: Any = _setting(
        AUTO, NUMBER, "how far the share of each class is taken out of the answers; 1 for balanced", low=0.0, high=4.0
    )
    label_smoothing: Any = _setting(
        AUTO, NUMBER, "share of the target that is spread over all classes", low=0.0, high=0.9,
        search=Range(low=0.0, high=0.2),
    )  # fmt: skip
    ema: Any = _setting(
        AUTO, NUMBER, "decay per step of the averaged weights that are judged; 0 judges the last", low=0.0, high=0.99999
    )
    swa: float = _setting(0.0, NUMBER, "share of the run, its end, whose weights are averaged", low=0.0, high=0.9)
    snapshots: int = _setting(
        0, INTEGER, "cycles of the learning rate; the ends of all make an ensemble, 0 or 1 makes none", low=0, high=50
    )
    tta: str = _setting("none", TEXT, "views whose mean answers: 2, 5 or 10 times as slow as none", choices=TTA)
    clip_norm: float = _setting(0.0, NUMBER, "largest norm of the gradient; 0 for no limit", low=0.0)
    patience: int = _setting(
        0, INTEGER, "epochs without a better validation result before training stops; 0 never stops", low=0
    )
    precision: str = _setting(AUTO, TEXT, "arithmetic of the network", choices=("fp32", "bf16", "fp16"))
    threads: Any = _setting(AUTO, INTEGER, "CPU threads; chosen by a short trial", low=1, high=1024)
    device: str = _setting(AUTO, TEXT, "where to compute", choices=("cpu", "cuda", "mps"))
    seed: int = _setting(0, INTEGER, "start of all chance; the same seed gives the same run", low=0, high=2**31 - 1)
    checkpoint_every: float = _setting(60.0, DURATION, "time between checkpoints within an epoch", low=0.0)
    # -- augmentation (training images only)
    flip: Any = _setting(AUTO, SWITCH, "mirror half of the images left to right", search=(True, False))
    grow: Any = _setting(
        AUTO,
        NUMBER,
        "share of train_size at which training begins; it grows to 1 in three steps, which saves time",
        low=0.25,
        high=1.0,
    )
    flip_up: bool = _setting(False, SWITCH, "turn a random half of the images upside down")
    scale: float = _setting(0.0, NUMBER, "largest change of size, as a share of it", low=0.0, high=0.9)
    shear: float = _setting(0.0, NUMBER, "largest shear, in degrees", low=0.0, high=60.0)
    brightness: float = _setting(0.0, NUMBER, "strength of random brightness", low=0.0, high=1.0)
    contrast: float = _setting(0.0, NUMBER, "strength of random contrast", low=0.0, high=1.0)
    saturation: float = _setting(0.0, NUMBER, "strength of random saturation", low=0.0, high=1.0)
    hue: float = _setting(0.0, NUMBER, "largest turn of the colour circle, as a share of it", low=0.0, high=0.5)
    grey: float = _setting(0.0, NUMBER, "share of the images that lose their colour", low=0.0, high=1.0)
    blur: float = _setting(0.0, NUMBER, "largest standard deviation of a Gaussian blur, in pixels", low=0.0, high=32.0)
    noise: float = _setting(
        0.0, NUMBER, "largest standard deviation of added noise, share of the range", low=0.0, high=1.0
    )
    policy: str = _setting(
        "none", TEXT, "random operations on each image", choices=("none", "randaugment", "trivialaugment")
    )
    policy_strength: float = _setting(0.3, NUMBER, "strength of randaugment", low=0.0, high=1.0)
    mixup: float = _setting(0.0, NUMBER, "alpha of mixup, which blends two images; 0 for none", low=0.0, high=16.0)
    cutmix: float = _setting(
        0.0, NUMBER, "alpha of CutMix, which pastes a box of another image; 0 for none", low=0.0, high=16.0
    )
    shift: Any = _setting(AUTO, NUMBER, "largest shift, as a share of the side", low=0.0, high=0.5,
                          search=Range(low=0.0, high=0.15))  # fmt: skip
    rotate: Any = _setting(AUTO, NUMBER, "largest rotation, in degrees", low=0.0, high=180.0,
                           search=Range(low=0.0, high=15.0))  # fmt: skip
    crop: Any = _setting(
        AUTO, NUMBER, "smallest share of the area that a random crop keeps; 1 for no crop", low=0.05, high=1.0,
        search=Range(low=0.2, high=1.0),
    )  # fmt: skip
    colour: Any = _setting(AUTO, NUMBER, "strength of random brightness, contrast and saturation", low=0.0, high=1.0,
                           search=Range(low=0.0, high=0.4))  # fmt: skip
    erase: Any = _setting(AUTO, NUMBER, "side of a square that is erased, as a share of the side", low=0.0, high=0.9,
                          search=Range(low=0.0, high=0.3))  # fmt: skip

    def __post_init__(self) -> None:
        for name in RULES:
            value = getattr(self, name)
            if check_value(name, value) != value:
                raise _refusal(name, value)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings with these values, each a text or already of its type, checked."""
        return cls().replace(values)

    def replace(self, values: Mapping[str, Any]) -> Settings:
        """Return a copy with some values changed, each checked."""
        return dataclasses.replace(self, **{name: check_value(name, value) for name, value in values.items()})

    def unresolved(self) -> list[str]:
        """Return the names of the settings that are still "auto" and concern every network."""
        return [name for name, value in self.to_dict().items() if value == AUTO and not RULES[name].get("network")]

    def of_network(self) -> dict[str, Any]:
        """Return the settings of the network itself that were given."""
        return {name: getattr(self, name) for name in NETWORK if getattr(self, name) != AUTO}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_toml(self) -> str:
        """Return the settings as a TOML document with the help text above each."""
        lines = []
        for name, value in self.to_dict().items():
            lines += [f"# {describe(name)}", f"{name} = {_toml_value(value)}"]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Settings:
        """Return the settings that `to_toml` wrote. Raises SettingError."""
        try:
            return cls.of(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise SettingError("a config.toml as linnaeus writes it", got=str(error), fix="Restore the file.") from None


RULES: dict[str, Mapping[str, Any]] = {f.name: f.metadata for f in dataclasses.fields(Settings)}
NETWORK = tuple(name for name, rules in RULES.items() if rules.get("network"))


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """Return the names and texts of `key=value` arguments. Raises SettingError for one without "="."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SettingError("settings as key=value", got=repr(pair), fix=f"Write {pair}=VALUE, or remove it.")
        values[name.strip().replace("-", "_")] = text.strip()
    return values


def check_value(name: str, value: Any) -> Any:
    """Return the value of a setting, parsed if it is a text, or raise SettingError."""
    if name not in RULES:
        raise SettingError("a setting that exists", got=repr(name), fix=_suggest_setting(name))
    rules = RULES[name]
    if value == AUTO and rules["auto"]:
        return AUTO
    parsed = _parse(name, value, rules)
    if any(_is_wrong(each, rules) for each in (parsed if isinstance(parsed, tuple) else (parsed,))):
        raise _refusal(name, value)
    return parsed


def _is_wrong(value: Any, rules: Mapping[str, Any]) -> bool:
    """Whether a parsed value, or one of several, is none of the choices or out of the range."""
    choices, low, high = rules.get("choices"), rules.get("low"), rules.get("high")
    if choices is not None:
        return value not in choices
    if isinstance(value, str):
        return False
    return (
        (low is not None and not value >= low)
        or (high is not None and not value <= high)
        or (isinstance(value, float) and not math.isfinite(value))
    )


def _suggest_setting(name: str) -> str:
    """Return the nearest name, or else the setting whose help text speaks of what the name says."""
    words = name.replace("_", " ").lower()
    about = [known for known, rules in RULES.items() if words in rules["help"]]
    near = suggest(name, RULES)
    if about and not near.startswith("Did you mean"):
        return f"Did you mean {' or '.join(about[:3])}?"
    return near if near.startswith("Did you mean") else "Run `linnaeus settings` to see them all."


def _parse(name: str, value: Any, rules: Mapping[str, Any]) -> Any:
    kind: Kind = rules["kind"]
    if isinstance(value, str):
        try:
            return kind.parse(value)
        except (ValueError, KeyError, OverflowError):
            raise _refusal(name, value) from None
    if tuple in kind.types and isinstance(value, Real) and not isinstance(value, bool):
        value = (value,)
    is_flag = isinstance(value, bool) and bool not in kind.types
    if is_flag or not isinstance(value, kind.types):
        raise _refusal(name, value)
    if isinstance(value, tuple | list):
        return _parse(name, ",".join(map(str, value)), rules)
    if isinstance(value, Integral) and Integral in kind.types:
        return int(value)  # NumPy's numbers, too, become Python's
    return float(value) if isinstance(value, Real) and Real in kind.types else value


def _refusal(name: str, value: Any) -> SettingError:
    return SettingError(f"{name} to be {accepted(name)}", got=repr(value), fix=f"{name}: {RULES[name]['help']}.")


def accepted(name: str) -> str:
    """Return what a setting accepts, in words: "a number from 0 to 1, or auto"."""
    rules = RULES[name]
    words: str = rules["kind"].name
    if choices := rules.get("choices"):
        words = f"one of {', '.join(map(str, choices))}"
    elif kind_holds_several(name):
        pass
    elif "low" in rules and "high" in rules:
        words += f" from {rules['low']} to {rules['high']}"
    elif "low" in rules:
        words += f", at least {rules['low']}"
    return words + (", or auto" if rules["auto"] else "")


def kind_holds_several(name: str) -> bool:
    """Whether a setting may be several values, whose range goes without saying."""
    kind: Kind = RULES[name]["kind"]
    return tuple in kind.types


def describe(name: str) -> str:
    """Return the help text of a setting with what it accepts."""
    return f"{RULES[name]['help']} ({accepted(name)})"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's
    return repr(value)
