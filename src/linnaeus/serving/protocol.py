"""The Open Inference Protocol, version 2, over REST: its messages, with the extension for binary tensors.

A model takes one input and gives two outputs:

    images          BYTES (N), whole files of pictures: raw in a binary tensor, base64 in JSON;
                    or UINT8 (N, H, W, C), pixels with C of 1, 3 or 4
    probabilities   FP32 (N, K)
    labels          BYTES (N), the most probable class of each; where an image may have several, a list of them in JSON

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.decoding import Picture
from linnaeus.results import Predictions

EXTENSIONS = ("binary_tensor_data",)
HEADER_LENGTH = "inference-header-content-length"
INPUT = "images"
OUTPUTS = ("probabilities", "labels")
_LENGTH = struct.Struct("<I")
_MOST_VALUES = 2**28


class ProtocolError(Exception):
    """A message that is not of the protocol, or not for this model."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """An inference request. `outputs` maps the name of each output asked for to whether it shall be binary."""

    identifier: str | None
    images: Sequence[Picture]
    outputs: Mapping[str, bool]


def read_question(body: bytes, header_length: str | None, *, most: int) -> Question:
    """Return what a request asks, of at most so many images. Raises ProtocolError."""
    length = _parse_length(header_length, body)
    message = _parse_json(body[:length])
    identifier = message.get("id")
    _require(identifier is None or isinstance(identifier, str), "id to be a text")
    inputs = message.get("inputs")
    _require(
        isinstance(inputs, list)
        and len(inputs) == 1
        and isinstance(inputs[0], dict)
        and inputs[0].get("name") == INPUT,
        f"one input of the name {INPUT}",
    )
    images = _read_images(inputs[0], body[length:], most)  # type: ignore[index]
    return Question(identifier=identifier, images=images, outputs=_read_outputs(message))


def _parse_length(header_length: str | None, body: bytes) -> int:
    if header_length is None:
        return len(body)
    known = header_length.isascii() and header_length.isdigit() and len(header_length) < 12
    _require(known and int(header_length) <= len(body), f"{HEADER_LENGTH} from 0 to the length of the body")
    return int(header_length)


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"Expected a request in JSON. Got: {str(error)[:100]}") from None
    _require(isinstance(message, dict), "a request in JSON that is an object")
    return dict(message)


def _read_images(tensor: Mapping[str, Any], binary: bytes, most: int) -> Sequence[Picture]:
    shape = _read_shape(tensor, most)
    raw = _read_binary(tensor, binary)
    if tensor.get("datatype") == "BYTES" and shape[1:] in ([], [1]):
        files = split_bytes(raw) if raw is not None else _decode_base64(tensor.get("data"))
        _require(len(files) == shape[0], "as many files as the shape says")
        return files
    _require(tensor.get("datatype") == "UINT8" and len(shape) == 4, "BYTES (N), or UINT8 (N, height, width, channels)")
    _require(math.prod(shape) < _MOST_VALUES, "fewer pixels")
    values = np.frombuffer(raw, np.uint8) if raw is not None else _parse_values(tensor.get("data"))
    _require(values.size == math.prod(shape), "as many values as the shape says")
    return list(values.reshape(shape))


def _read_shape(tensor: Mapping[str, Any], most: int) -> list[int]:
    shape = tensor.get("shape")
    numbers = shape if isinstance(shape, list) and all(type(n) is int and 0 < n < 2**31 for n in shape) else []
    _require(len(numbers) >= 1 and numbers[0] <= most, f"a shape of numbers from 1 on, the first at most {most}")
    return numbers


def _read_binary(tensor: Mapping[str, Any], binary: bytes) -> bytes | None:
    """Return the bytes of a binary tensor, or None if its data are in the JSON."""
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        _require(not binary, "nothing after the JSON without binary_data_size")
        return None
    _require(type(size) is int and size == len(binary), "binary_data_size to be the length of what follows the JSON")
    return binary


def split_bytes(binary: bytes) -> list[bytes]:
    """Return the elements of a binary BYTES tensor: each is its length as uint32, little-endian, then its bytes."""
    elements, at = [], 0
    while at < len(binary):
        start = at + _LENGTH.size
        _require(start <= len(binary), "a whole binary tensor")
        at = start + _LENGTH.unpack_from(binary, start - _LENGTH.size)[0]
        _require(at <= len(binary), "a whole binary tensor")
        elements.append(binary[start:at])
    return elements


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """Return the binary BYTES tensor of elements."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def _decode_base64(data: Any) -> list[bytes]:
    flat = [text for part in data for text in (part if isinstance(part, list) else [part])] if _is_list(data) else []
    _require(all(isinstance(text, str) for text in flat), "files as base64 texts")
    try:
        return [base64.b64decode(text, validate=True) for text in flat]
    except ValueError:
        raise ProtocolError("Expected files as base64 texts, or a binary tensor.") from None


def _parse_values(data: Any) -> NDArray[np.uint8]:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):
        values = np.empty(0)
    whole = values.dtype.kind in "iu" and values.size > 0 and values.min() >= 0 and values.max() <= 255
    _require(whole, "data of whole numbers from 0 to 255")
    return values.astype(np.uint8)


def _read_outputs(message: Mapping[str, Any]) -> dict[str, bool]:
    every = _parameters(message).get("binary_data_output") is True
    wanted = message.get("outputs")
    if wanted is None or wanted == []:
        return dict.fromkeys(OUTPUTS, every)
    _require(_is_list(wanted) and all(isinstance(output, dict) for output in wanted), "a list of outputs")
    _require(all(output.get("name") in OUTPUTS for output in wanted), f"outputs of {' and '.join(OUTPUTS)}")
    return {output["name"]: _parameters(output).get("binary_data", every) is True for output in wanted}


def _parameters(part: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = part.get("parameters", {})
    _require(isinstance(parameters, dict), "parameters to be an object")
    return dict(parameters)


def write_answer(question: Question, predictions: Predictions, *, model: str, version: str) -> tuple[bytes, int | None]:
    """Return the body of a response and, where tensors follow it, the length of its JSON."""
    outputs, tail = [], b""
    for name, binary in question.outputs.items():
        tensor, values, raw = _output(name, predictions)
        if binary:
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            tensor["data"] = values
        outputs.append(tensor)
    message: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if question.identifier is not None:
        message["id"] = question.identifier
    head = json.dumps(message, allow_nan=False).encode()
    any_binary = any(question.outputs.values())
    return head + tail, len(head) if any_binary else None


def _output(name: str, predictions: Predictions) -> tuple[dict[str, Any], list[Any], bytes]:
    """Return an output's description, its values for JSON and its bytes for a binary tensor."""
    if name == "labels":
        several = predictions.thresholds is not None
        labels = [json.dumps(names) if several else names for names in predictions.labels]
        described = {"name": name, "datatype": "BYTES", "shape": [len(labels)]}
        return described, labels, join_bytes([label.encode(errors="replace") for label in labels])
    rows = predictions.probabilities
    described = {"name": name, "datatype": "FP32", "shape": list(rows.shape)}
    return described, rows.ravel().tolist(), rows.astype("<f4").tobytes()


def describe_model(name: str, version: str, classes: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of a model."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(classes)]},
            {"name": "labels", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _require(holds: bool, expected: str) -> None:
    if not holds:
        raise ProtocolError(f"Expected {expected}.")
