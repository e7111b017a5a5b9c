"""Every setting: its default, what it accepts and refuses, and its way through text and TOML."""

from __future__ import annotations

import math
import re
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnaeus.config import (
    AUTO,
    CLASS_WEIGHTS,
    DURATION,
    INTEGER,
    INTEGERS,
    NUMBER,
    RULES,
    SIZE,
    SPAN,
    SWITCH,
    TEXT,
    WEIGHTS,
    Settings,
    accepted,
    check_value,
    describe,
    parse_pairs,
    parse_size,
)
from linnaeus.durations import parse_duration
from linnaeus.errors import SettingError

NAMES = sorted(RULES)
WHOLE = [name for name in NAMES if RULES[name]["kind"] in (INTEGER, SIZE)]
REAL = [name for name in NAMES if RULES[name]["kind"] in (NUMBER, DURATION)]
SWITCHES = [name for name in NAMES if RULES[name]["kind"] is SWITCH]
CHOSEN = [name for name in NAMES if RULES[name].get("choices")]
SEVERAL = [name for name in NAMES if RULES[name]["kind"] in (INTEGERS, WEIGHTS)]
MOST = 2**31


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Return a strategy of all values that a setting accepts."""
    rules = RULES[name]
    kind, low, high = rules["kind"], rules.get("low"), rules.get("high")
    if rules.get("choices"):
        values: st.SearchStrategy[Any] = st.sampled_from(rules["choices"])
    elif kind in (INTEGER, SIZE):
        values = st.integers(low, MOST if high is None else high)
    elif kind in (NUMBER, DURATION):
        values = st.floats(low, high, allow_infinity=False, allow_nan=False)
    elif kind is INTEGERS:
        values = st.lists(st.integers(low, high), max_size=4).map(tuple)
    elif kind is WEIGHTS:
        numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=4).map(tuple)
        values = st.sampled_from(CLASS_WEIGHTS) | numbers
    elif kind is SPAN:
        values = st.floats(low, high) | st.sampled_from(["500 steps", "2.5 epochs", "30s"])
    elif kind is SWITCH:
        values = st.booleans()
    else:
        values = st.text(st.characters(exclude_categories=["Cs"]))
    return values | st.just(AUTO) if rules["auto"] else values


ALL_VALUES = st.fixed_dictionaries({}, optional={name: values_of(name) for name in NAMES})


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_valid(name: str) -> None:
    """The default of a setting passes its own check, as a value and as text."""
    default = getattr(Settings(), name)
    assert check_value(name, default) == default
    assert check_value(name, str(default)) == default


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_explains_itself(name: str) -> None:
    """A setting has a help text and a sentence of what it accepts, without a full stop at the end."""
    assert describe(name) == f"{RULES[name]['help']} ({accepted(name)})"
    assert len(RULES[name]["help"]) > 5
    assert not RULES[name]["help"].endswith(".")


@given(ALL_VALUES)
def test_toml_round_trip(values: dict[str, Any]) -> None:
    """What to_toml writes, from_toml and TOML's own parser read as it was."""
    settings = Settings.of(values)
    assert Settings.from_toml(settings.to_toml()) == settings
    assert tomllib.loads(settings.to_toml()) == settings.to_dict()


@given(ALL_VALUES)
def test_values_are_taken_as_they_are(values: dict[str, Any]) -> None:
    """A valid value is kept, of its own type, whether through `of` or the constructor."""
    settings = Settings.of(values)
    assert {name: getattr(settings, name) for name in values} == values
    assert Settings(**values) == settings
    assert all(type(getattr(settings, name)) is float for name in REAL if getattr(settings, name) != AUTO)


@given(ALL_VALUES)
def test_text_means_the_same_as_the_value(values: dict[str, Any]) -> None:
    """The text of a number, a switch or a choice is parsed to the value itself; a text is itself."""
    plain = {name: value for name, value in values.items() if RULES[name]["kind"] is not DURATION}
    as_text = {name: value if isinstance(value, str) else repr(value).strip("(,)") for name, value in plain.items()}
    assert Settings.of(as_text) == Settings.of(plain)


@pytest.mark.parametrize("name", [name for name in NAMES if "low" in RULES[name] and name not in SEVERAL])
def test_ranges_include_their_ends_and_no_more(name: str) -> None:
    """The ends of a range are accepted, what lies beyond them is refused with the range in the message."""
    rules, step = RULES[name], 1 if name in WHOLE else 0.001
    assert check_value(name, rules["low"]) == rules["low"]
    with pytest.raises(SettingError, match=f"Expected {name} to be .* {rules['low']}"):
        check_value(name, rules["low"] - step)
    if "high" in rules:
        assert check_value(name, rules["high"]) == rules["high"]
        with pytest.raises(SettingError, match=f"{name} to be .* {rules['high']}"):
            check_value(name, rules["high"] + step)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "9" * 400])
def test_numbers_are_finite(name: str, value: Any) -> None:
    """Neither infinity nor "not a number" is a setting."""
    with pytest.raises(SettingError, match=name):
        check_value(name, value)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [True, 1.5, "1,5", "", "many", None, [1], b"1"])
def test_whole_numbers_are_strict(name: str, value: Any) -> None:
    """A fraction, a truth value or an empty text is no whole number."""
    with pytest.raises(SettingError, match=name):
        check_value(name, value)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [True, "", "half", None, [0.5]])
def test_numbers_are_strict(name: str, value: Any) -> None:
    """A truth value or a word is no number."""
    with pytest.raises(SettingError, match=name):
        check_value(name, value)


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name: str) -> None:
    """True and false, yes and no, on and off, 1 and 0, in any case, and nothing else."""
    assert all(check_value(name, text) is True for text in ("true", "True", "yes", "on", "1", True))
    assert all(check_value(name, text) is False for text in ("false", "FALSE", "no", "off", "0", False))
    for value in (1, 0, 1.0, "", "maybe", None):
        with pytest.raises(SettingError, match=f"{name} to be true or false"):
            check_value(name, value)


@pytest.mark.parametrize("name", CHOSEN)
def test_choices_are_named(name: str) -> None:
    """Something that is not among the choices is refused with all of them."""
    with pytest.raises(SettingError) as caught:
        check_value(name, "7")
    assert all(str(choice) in caught.value.expected for choice in RULES[name]["choices"])


def test_texts_are_texts() -> None:
    """A number is no text."""
    for name in (name for name in NAMES if RULES[name]["kind"] is TEXT):
        with pytest.raises(SettingError, match=name):
            check_value(name, 7)


@pytest.mark.parametrize("name", NAMES)
def test_auto_is_for_some(name: str) -> None:
    """A setting that starts as "auto", and no other number or switch, accepts it."""
    if RULES[name]["auto"]:
        assert check_value(name, AUTO) == AUTO
        assert accepted(name).endswith(", or auto")
    elif RULES[name]["kind"] is not TEXT:
        with pytest.raises(SettingError, match=name):
            check_value(name, AUTO)


def test_unresolved() -> None:
    """What is still "auto" is named."""
    assert "lr" in Settings().unresolved()
    assert "lr" not in Settings(lr=0.1).unresolved()


def test_numbers_of_numpy_become_pythons() -> None:
    """A parameter grid of NumPy numbers is as good as one of Python's."""
    settings = Settings.of({"epochs": np.int64(3), "lr": np.float32(0.5), "budget": np.int32(7)})
    assert (settings.epochs, settings.lr, settings.budget) == (3, 0.5, 7.0)
    assert [type(value) for value in (settings.epochs, settings.lr, settings.budget)] == [int, float, float]


@pytest.mark.parametrize(
    ("wrong", "right"), [("epoch", "epochs"), ("batchsize", "batch_size"), ("learning_rat", "warmup"), ("lrs", "lr")]
)
def test_a_misspelt_setting_gets_the_nearest_names(wrong: str, right: str) -> None:
    """An unknown name is refused with the nearest ones, or with a list of what there is."""
    with pytest.raises(SettingError) as caught:
        Settings.of({wrong: 1})
    assert caught.value.got == repr(wrong)
    if wrong == "learning_rat":
        assert caught.value.fix.startswith(("Did you mean", "Known are:"))
    else:
        assert right in caught.value.fix
        assert caught.value.fix.startswith("Did you mean ")


def test_the_constructor_checks_too() -> None:
    """Settings cannot hold a value that is out of range or a text that was never parsed."""
    for wrong in ({"epochs": 0}, {"epochs": "3"}, {"val_fraction": 0.9}, {"optimizer": "magic"}, {"workers": True}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            Settings(**wrong)
    with pytest.raises(TypeError):
        Settings(colour_of_the_sky=1)


def test_pairs() -> None:
    """key=value is cut at the first "=", blanks around are dropped, and a hyphen is an underscore."""
    given_pairs = ["epochs=3", "batch-size = 8", "path_column=a=b", "model="]
    assert parse_pairs(given_pairs) == {"epochs": "3", "batch_size": "8", "path_column": "a=b", "model": ""}
    with pytest.raises(SettingError, match=r"Got 'fast'\. Write fast=VALUE, or remove it\."):
        parse_pairs(["fast"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        (" 1H 30M 5s ", 5405),
        ("0", 0),
        ("1.5m", 90),
        ("0.5", 0.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is a number of seconds or numbers with the units h, m and s."""
    assert parse_duration(text) == seconds
    assert Settings.of({"budget": text}).budget == seconds


@pytest.mark.parametrize(
    ("text", "value"), [("5%", 0.05), ("0.5", 0.5), ("500  Steps", "500 steps"), ("1 epoch", "1 epochs"), ("1m", "60s")]
)
def test_spans(text: str, value: float | str) -> None:
    """A warm-up is a number for a share and one plain text for all else, which TOML and JSON can hold."""
    settings = Settings.of({"warmup": text})
    assert settings.warmup == value
    assert Settings.from_toml(settings.to_toml()).warmup == value


@pytest.mark.parametrize("text", ["1", "91%", "-5 steps", "5 images", "", "soon"])
def test_no_spans(text: str) -> None:
    """A share beyond the range and anything else is refused with all that is accepted."""
    with pytest.raises(SettingError, match=r"warmup to be 500 steps, 2 epochs, 30s, a share such as 5%, or a number"):
        Settings.of({"warmup": text})


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "1d", "-5m", "5m!", "h5", "1,5h", "1e3"])
def test_no_durations(text: str) -> None:
    """Anything else is none."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("500", 500), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("2tb", 2 * 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    """A size is a number of bytes or a number with kB, MB, GB or TB."""
    assert parse_size(text) == size
    assert Settings.of({"cache_limit": text}).cache_limit == size


@pytest.mark.parametrize("text", ["", "MB", "5 apples", "-1", "1e9", "5MiB", "1GB2"])
def test_no_sizes(text: str) -> None:
    """Anything else is none."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_size(text)


def test_a_broken_config_file() -> None:
    """A file that is no TOML, or holds a setting of another time, is refused with a typed error."""
    with pytest.raises(SettingError, match=r"config\.toml as linnaeus writes it"):
        Settings.from_toml("epochs = ")
    with pytest.raises(SettingError, match="'speed'"):
        Settings.from_toml("speed = 3\n")


WRONG = [("filters", "32,x"), ("filters", (0,)), ("dense", [1, 2.5]), ("dense", "-3"), ("class_weights", "some"),
         ("class_weights", "1,-1")]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_several_values_are_each_checked(name: str, value: Any) -> None:
    """One wrong value among several refuses them all; one number alone is one of several."""
    with pytest.raises(SettingError, match=name):
        check_value(name, value)
    assert check_value("dense", 64) == (64,)
    assert check_value("dense", "") == ()
