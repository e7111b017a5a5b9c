"""linnaeus teaches a computer to name what it sees.

    import linnaeus

    run = linnaeus.train("photos", out="my-run")          # a folder with a folder of pictures for each class
    print(run.scores["test"].accuracy)
    print(linnaeus.load("my-run").predict("cat.jpg").labels)

Names are loaded when they are first used, so that `import linnaeus` needs neither torch nor time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from linnaeus.errors import explain_missing

if TYPE_CHECKING:
    from linnaeus.catalogue import describe_model as describe_model
    from linnaeus.comparison import compare as compare
    from linnaeus.config import Settings as Settings
    from linnaeus.crossval import cross_validate as cross_validate
    from linnaeus.ensembles.assembly import ensemble as ensemble
    from linnaeus.errors import LinnaeusError as LinnaeusError
    from linnaeus.estimator import ImageClassifier as ImageClassifier
    from linnaeus.images import read_image as read_image
    from linnaeus.judging import evaluate as evaluate
    from linnaeus.models.adopted import register_model as register_model
    from linnaeus.models.registry import list_models as list_models
    from linnaeus.predictor import Predictor as Predictor
    from linnaeus.predictor import load as load
    from linnaeus.results import Predictions as Predictions
    from linnaeus.results import Scores as Scores
    from linnaeus.runs import find_lr as find_lr
    from linnaeus.runs import train as train
    from linnaeus.tuning.tuner import tune as tune

_HOMES = {
    "ImageClassifier": "estimator",
    "LinnaeusError": "errors",
    "Predictions": "results",
    "Predictor": "predictor",
    "Scores": "results",
    "Settings": "config",
    "compare": "comparison",
    "cross_validate": "crossval",
    "describe_model": "catalogue",
    "ensemble": "ensembles.assembly",
    "evaluate": "judging",
    "find_lr": "runs",
    "list_models": "models.registry",
    "load": "predictor",
    "read_image": "images",
    "register_model": "models.adopted",
    "train": "runs",
    "tune": "tuning.tuner",
}

__all__ = [
    "ImageClassifier",
    "LinnaeusError",
    "Predictions",
    "Predictor",
    "Scores",
    "Settings",
    "compare",
    "cross_validate",
    "describe_model",
    "ensemble",
    "evaluate",
    "find_lr",
    "list_models",
    "load",
    "read_image",
    "register_model",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'linnaeus' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"linnaeus.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        raise explain_missing(error) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
