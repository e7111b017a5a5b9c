"""Several networks, or several views of a picture, as one network whose answer is the mean of their probabilities.

With members m of weight w_m, Σ w_m = 1, and views v, the merged network's logits are log(Σ_m w_m mean_v p_m(v(x))), so
that whoever takes the softmax of them has the mean back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, inliner, numpy_helper

from linnaeus.compression.views import View
from linnaeus.errors import BundleError
from linnaeus.images import Preprocess

_LARGEST = 2**31 - 2**20  # bytes of one ONNX file
_SMALLEST = 1e-30  # a probability has a logarithm: 0 counts as this
_LUMA = np.array([[0.299, 0.587, 0.114]])  # ITU-R 601, by which Pillow makes pictures grey


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One network of several.

    Attributes:
        network: an ONNX file's bytes. preprocess: how it wants its pictures.
        order: for each class of the whole, its place among the network's. weight: of its answer.
    """

    network: bytes
    preprocess: Preprocess
    order: tuple[int, ...]
    weight: float = 1.0


def merge_networks(branches: Sequence[Branch], preprocess: Preprocess, views: Sequence[View]) -> bytes:
    """Return one ONNX file for pictures prepared by `preprocess`: float32 (N, C, H, W) in, logits float32 (N, K) out.

    A branch that wants another normalization, size or colour gets it within the network. The weights of a branch are
    there once, however many views there are; each view costs as much time as the branch alone.

    Raises BundleError for networks that cannot be merged.
    """
    if sum(len(branch.network) for branch in branches) > _LARGEST:
        raise BundleError("networks of less than 2 GB together", got="more", fix="Take fewer or smaller ones.")
    sheet = _Sheet()
    pictures = [_show(sheet, view, preprocess) for view in views]
    models = [_open(branch.network) for branch in branches]
    answers = [
        _answer(sheet, branch, graph, _adapt(sheet, picture, preprocess, branch.preprocess), len(views))
        for branch, graph in zip(branches, (_take_weights(sheet, model) for model in models))
        for picture in pictures
    ]
    total = sheet.add("Sum", answers)
    sheet.add("Log", [sheet.add("Clip", [total, sheet.constant(np.float32(_SMALLEST))])], output="logits")
    shape = [preprocess.channels, preprocess.height, preprocess.width]
    return _write(sheet, models, shape, len(branches[0].order))


@dataclass(kw_only=True)
class _Sheet:
    """The nodes and constants of a network that is being put together."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    names: int = 0

    def name(self, kind: str) -> str:
        """Return a name that nothing bears yet."""
        self.names += 1
        return f"{kind}_{self.names}"

    def add(self, kind: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        found = output or self.name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [found], name=f"{found}_node", **attributes))
        return found

    def constant(self, values: NDArray[Any] | np.generic) -> str:
        """Add a constant and return its name."""
        found = self.name("constant")
        self.constants.append(numpy_helper.from_array(np.asarray(values), found))
        return found


def _open(network: bytes) -> onnx.ModelProto:
    """Return a network without functions of its own."""
    try:
        model = onnx.load_from_string(network)
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # protobuf and onnx raise many unrelated types for what is no network
        got = str(error).splitlines()[0][:200]
        raise BundleError("a network that can be merged", got=got, fix="Write the bundle anew.") from None


def _take_weights(sheet: _Sheet, model: onnx.ModelProto) -> onnx.GraphProto:
    """Move a network's weights to the sheet under names of their own, and return the rest."""
    graph = compose.add_prefix_graph(model.graph, f"{sheet.name('member')}/")
    sheet.constants += graph.initializer
    del graph.initializer[:], graph.value_info[:]
    return graph


def _show(sheet: _Sheet, view: View, preprocess: Preprocess) -> str:
    """Add what shows the input in a view."""
    picture = "images"
    for axis, places, side in (
        (2, view.rows(preprocess.height), preprocess.height),
        (3, view.columns(preprocess.width), preprocess.width),
    ):
        if not np.array_equal(places, np.arange(side)):
            picture = sheet.add("Gather", [picture, sheet.constant(places)], axis=axis)
    return picture


def _adapt(sheet: _Sheet, picture: str, ours: Preprocess, theirs: Preprocess) -> str:
    """Add what turns a picture prepared by `ours` into one for `theirs`."""
    size = (theirs.height, theirs.width)
    if size != (ours.height, ours.width):
        cubic = {"mode": "cubic", "cubic_coeff_a": -0.5} if theirs.interpolation == "bicubic" else {"mode": "linear"}
        inputs = [picture, "", "", sheet.constant(np.array(size, np.int64))]
        picture = sheet.add("Resize", inputs, antialias=1, axes=[2, 3], **cubic)
    if (ours.channels, ours.mean, ours.std) == (theirs.channels, theirs.mean, theirs.std):
        return picture
    filters, offset = _normalization(ours, theirs)
    return sheet.add("Conv", [picture, sheet.constant(filters), sheet.constant(offset)])


def _normalization(ours: Preprocess, theirs: Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return filters float32 (C', C, 1, 1) and offset float32 (C',) of the convolution from one norm to the other.

    x' = (M (s x + m) - m') / s', where M makes colours grey, or is the identity.
    """
    mix = _LUMA if theirs.channels < ours.channels else np.eye(ours.channels)
    mean, std = np.array(theirs.mean), np.array(theirs.std)
    filters = mix * np.array(ours.std) / std[:, None]
    offset = (mix @ np.array(ours.mean) - mean) / std
    return filters.astype(np.float32)[:, :, None, None], offset.astype(np.float32)


def _answer(sheet: _Sheet, branch: Branch, graph: onnx.GraphProto, picture: str, views: int) -> str:
    """Add a branch's nodes for one view, and return its probabilities in the order of the whole, weighed."""
    mine = compose.add_prefix_graph(graph, f"{sheet.name('view')}/", rename_initializers=False)
    sheet.add("Identity", [picture], output=mine.input[0].name)
    sheet.nodes += mine.node
    answer = sheet.add("Softmax", [mine.output[0].name], axis=1)
    if branch.order != tuple(range(len(branch.order))):
        answer = sheet.add("Gather", [answer, sheet.constant(np.array(branch.order, np.int64))], axis=1)
    return sheet.add("Mul", [answer, sheet.constant(np.float32(branch.weight / views))])


def _write(sheet: _Sheet, models: Sequence[onnx.ModelProto], shape: list[int], classes: int) -> bytes:
    versions: dict[str, int] = {}
    for domain, version in ((each.domain, each.version) for model in models for each in model.opset_import):
        if versions.setdefault(domain, version) != version:
            got = f"versions {versions[domain]} and {version} of {domain or 'ONNX'}"
            raise BundleError("networks of one version of ONNX's operators", got=got, fix="Write one of them anew.")
    graph = helper.make_graph(
        sheet.nodes,
        "merged",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", classes])],
        sheet.constants,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    version = max(model.ir_version for model in models)
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=version).SerializeToString())
