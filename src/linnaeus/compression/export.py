"""Export to ONNX, and the proof that the exported network says what the trained one says."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from linnaeus.errors import ModelError

_OPSET = 18


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two networks' probabilities lie apart on the same images."""

    images: int
    largest_difference: float
    tolerance: float
    same_labels: bool

    @property
    def holds(self) -> bool:
        """Whether they agree: every probability within the tolerance."""
        return self.largest_difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def to_onnx(network: nn.Module, *, channels: int, size: int) -> bytes:
    """Return a network as an ONNX file: float32 (N, channels, size, size) in, float32 (N, D) out, N free.

    Raises ModelError for a network that ONNX cannot express.
    """
    frozen = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    example = torch.zeros(2, channels, size, size)
    try:
        return _trace(frozen, example)
    except Exception:  # the tracer raises many unrelated types; the slower exporter then says what is wrong
        return _export(frozen, example)


def _trace(network: nn.Module, example: torch.Tensor) -> bytes:
    """Export by tracing: a fifth of a second where torch.export takes four, which a run of 30 s would feel."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            buffer,  # type: ignore[arg-type]  # a buffer works, the annotation names paths only
            dynamo=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    return buffer.getvalue()


def _export(network: nn.Module, example: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
        assert program is not None
        program.save(buffer, include_initializers=True)  # type: ignore[arg-type]  # likewise
    except Exception as error:
        raise ModelError(
            "a network that ONNX can express", got=str(error).splitlines()[0][:200], fix="Choose another model."
        ) from error
    return buffer.getvalue()


def compare(ours: NDArray[np.float32], theirs: NDArray[np.float32], *, tolerance: float = 1e-3) -> Agreement:
    """Compare two networks' probabilities float32 (N, K) of the same images."""
    difference = float(np.abs(ours - theirs).max()) if len(ours) else 0.0
    return Agreement(
        images=len(ours),
        largest_difference=difference,
        tolerance=tolerance,
        same_labels=bool((ours.argmax(axis=1) == theirs.argmax(axis=1)).all()),
    )
