"""Writing and reading bundles, and every way in which one can be damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from commands import describe_anew, sign
from linnaeus.bundle import MANIFEST, Architecture, Bundle, find_bundle, read_bundle, write_bundle
from linnaeus.errors import BundleError, StorageError
from linnaeus.images import Preprocess
from linnaeus.predictor import Predictor

pytest_plugins = ("fixtures_run",)

PREPROCESS = Preprocess(height=8, width=8, channels=1, fit="pad", mean=(0.5,), std=(0.25,))
FILES = {"model.onnx": b"network", "model.safetensors": b"weights"}
OFFSETS = ("first", "second", "middle", "last but one", "last")


def a_bundle(folder: Path, **changes: Any) -> Bundle:
    """Return a description of a bundle to write."""
    facts = {
        "architecture": Architecture(name="simple_cnn", options={"channels": 1, "size": 8}),
        "classes": ("cat", "Dackel äöü", "\udcff"),
        "preprocess": PREPROCESS,
        "recipe": {"epochs": 3},
        "facts": {"scores": {}},
    }
    return Bundle(folder=folder, **(facts | changes))


def test_round_trip(tmp_path: Path) -> None:
    """What was written is read, by the bundle's path or its run's, and the files lie beside."""
    written = a_bundle(tmp_path / "run" / "bundle")
    write_bundle(written, FILES)
    assert read_bundle(tmp_path / "run" / "bundle") == written
    assert read_bundle(str(tmp_path / "run")) == written
    assert written.onnx_file.read_bytes() == b"network"
    assert written.weights_file.read_bytes() == b"weights"
    assert sorted(path.name for path in written.folder.iterdir()) == sorted([*FILES, "bundle.json", MANIFEST])
    assert list((tmp_path / "run").iterdir()) == [written.folder]


def test_the_manifest_is_what_sha256sum_reads(tmp_path: Path) -> None:
    """The manifest has the form of the usual tool: hash, two blanks, name."""
    write_bundle(a_bundle(tmp_path / "b"), FILES)
    lines = (tmp_path / "b" / MANIFEST).read_text().splitlines()
    data = (tmp_path / "b" / "bundle.json").read_bytes()
    assert lines[0] == f"{hashlib.sha256(data).hexdigest()}  bundle.json"
    assert len(lines) == 3


def test_writing_again_replaces(tmp_path: Path) -> None:
    """A second bundle takes the place of the first, whole."""
    write_bundle(a_bundle(tmp_path / "b"), FILES | {"config.json": b"{}"})
    write_bundle(a_bundle(tmp_path / "b", classes=("x", "y")), FILES)
    assert read_bundle(tmp_path / "b").classes == ("x", "y")
    assert not (tmp_path / "b" / "config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_last_good_version_is_found(tmp_path: Path) -> None:
    """A crash between moving the old bundle aside and moving the new one in leaves the old one to be read."""
    write_bundle(a_bundle(tmp_path / "bundle"), FILES)
    (tmp_path / "bundle").rename(tmp_path / "bundle.previous")
    assert find_bundle(tmp_path / "bundle").name == "bundle.previous"
    assert read_bundle(tmp_path).classes == a_bundle(tmp_path).classes


def test_a_number_that_json_has_not_is_not_written(tmp_path: Path) -> None:
    """Facts that are no JSON stop the writing, and nothing is left behind."""
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(a_bundle(tmp_path / "b", facts={"loss": float("nan")}), FILES)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that cannot be made is a StorageError that names it."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        write_bundle(a_bundle(tmp_path / "file" / "b"), FILES)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", [*FILES, "bundle.json", MANIFEST])
@settings(max_examples=25)
@given(bits=st.integers(1, 255))
def test_any_byte_flipped_is_refused(
    name: str, offset: str, bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bundle of which one byte of one file differs is not opened."""
    folder = tmp_path_factory.mktemp("flipped")
    write_bundle(a_bundle(folder / "b"), FILES)
    damaged = bytearray((folder / "b" / name).read_bytes())
    place = {"first": 0, "second": 1, "middle": len(damaged) // 2, "last but one": len(damaged) - 2}
    damaged[place.get(offset, len(damaged) - 1)] ^= bits
    (folder / "b" / name).write_bytes(damaged)
    with pytest.raises(BundleError):
        read_bundle(folder / "b")
    shutil.rmtree(folder)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_byte_of_the_manifest_counts(tmp_path: Path, flip: int) -> None:
    """Wherever a byte of the manifest is flipped, the bundle is refused."""
    write_bundle(a_bundle(tmp_path / "b"), FILES)
    manifest = tmp_path / "b" / MANIFEST
    whole = manifest.read_bytes()
    for place in range(len(whole)):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with pytest.raises(BundleError):
            read_bundle(tmp_path / "b")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", [*FILES, "bundle.json", MANIFEST])
def test_a_file_cut_short_or_gone_is_refused(tmp_path: Path, name: str, share: float) -> None:
    """A file that is shorter than it was, or missing, refuses the bundle."""
    write_bundle(a_bundle(tmp_path / "b"), FILES)
    file = tmp_path / "b" / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(BundleError):
        read_bundle(tmp_path / "b")
    file.unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "model\0onnx", "a\rb", "model.onnx  x"]
)
def test_a_manifest_that_names_other_places_is_refused(tmp_path: Path, name: str) -> None:
    """Only plain names of files in the folder itself may stand in a manifest, even where the hash is right."""
    write_bundle(a_bundle(tmp_path / "b"), FILES)
    (tmp_path / "secret").write_bytes(b"x")
    with (tmp_path / "b" / MANIFEST).open("a", newline="") as manifest:
        manifest.write(f"{hashlib.sha256(b'x').hexdigest()}  {name}\n")
    with pytest.raises(BundleError):
        read_bundle(tmp_path / "b")


def test_a_pipe_in_a_bundle_is_refused(tmp_path: Path) -> None:
    """A file that is a pipe is refused at once instead of being waited for."""
    write_bundle(a_bundle(tmp_path / "b"), FILES)
    (tmp_path / "b" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "b" / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        read_bundle(tmp_path / "b")


def test_a_newer_format_asks_for_an_upgrade(bundle: Path) -> None:
    """A bundle of a later linnaeus says how to get it."""
    describe_anew(bundle, format=3)
    with pytest.raises(BundleError, match=r"format 2 or older\. Got format 3\. Run: pip install --upgrade linnaeus"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "1"},
        {"format": None},
        {"classes": []},
        {"classes": ["one"]},
        {"classes": ["a", 2]},
        {"classes": ["a", "a", "b"]},
        {"classes": "abc"},
        {"classes": {"a": 1, "b": 2, "c": 3}},
        {"classes": 3},
        {"architecture": "resnet"},
        {"architecture": {"name": "resnet"}},
        {"preprocess": {}},
        {"preprocess": None},
        {"preprocess": PREPROCESS.to_dict() | {"height": -1}},
        {"preprocess": PREPROCESS.to_dict() | {"height": 10**9}},
        {"preprocess": PREPROCESS.to_dict() | {"std": [0.0]}},
        {"preprocess": PREPROCESS.to_dict() | {"code": "import os"}},
        {"recipe": None},
        {"recipe": [1]},
        {"facts": "none"},
    ],
)
def test_a_wrong_description_is_refused(bundle: Path, changes: dict[str, Any]) -> None:
    """A description of which a value is of the wrong kind or range is refused, though the hashes are right."""
    describe_anew(bundle, **changes)
    with pytest.raises(BundleError):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1", "{}", '{"format": 1}', "[" * 100_000, "\ufeff{}", '{"format": 1' + "0" * 5000]
)
def test_a_description_that_is_no_such_json_is_refused(bundle: Path, text: str) -> None:
    """A description that is not the JSON it should be is refused, though the hashes are right."""
    sign(bundle, bundle_json=text.encode())
    with pytest.raises(BundleError):
        read_bundle(bundle)


def test_a_manifest_without_the_network_is_refused(bundle: Path) -> None:
    """A manifest must list the network and its description."""
    manifest = bundle / MANIFEST
    lines = manifest.read_text().splitlines(keepends=True)
    for name in ("model.onnx", "bundle.json"):
        manifest.write_text("".join(line for line in lines if name not in line))
        with pytest.raises(BundleError, match=f"Expected {name}"):
            read_bundle(bundle)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    """A path where nothing is, and a folder that is no bundle, are told apart."""
    with pytest.raises(BundleError, match="which does not exist"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=f"which holds no {MANIFEST}"):
        read_bundle(tmp_path)


# -- networks that mean harm, in bundles whose hashes are right


def network(*, shape: tuple[int | str, ...] = ("n", 3, 18, 18), classes: int | str = 3, **changes: Any) -> bytes:
    """Return an ONNX network that answers with the mean of each picture, or with what `changes` ask for."""
    nodes = changes.get("nodes") or [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    side = int(np.prod([n for n in shape[1:] if isinstance(n, int)]))
    columns = classes if isinstance(classes, int) else 3
    weights = changes.get("weights") or numpy_helper.from_array(np.ones((side, columns), np.float32), "w")
    kind = changes.get("kind", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name in changes.get("inputs", ["images"])],
        [helper.make_tensor_value_info("logits", kind, ("n", classes))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def weights_in(location: str) -> TensorProto:
    """Return weights that lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[972, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(972 * 3 * 4))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_a_right_network_is_opened(bundle: Path) -> None:
    """The networks of these tests are refused for the harm in them alone: one without it works."""
    sign(bundle, model_onnx=network())
    assert Predictor(bundle).predict(np.zeros((9, 9, 3), np.uint8)).probabilities.tolist() == [
        [pytest.approx(1 / 3)] * 3
    ]


@pytest.mark.parametrize("where", ["weights.bin", "../weights.bin", "{absolute}", "./weights.bin", "b/../weights.bin"])
def test_a_network_cannot_read_other_files(
    bundle: Path, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights outside the network's own file are never read: not from here, not from the bundle, not from anywhere."""
    (tmp_path / "here" / "b").mkdir(parents=True)
    for folder in (bundle, bundle.parent, tmp_path / "here", tmp_path):
        (folder / "weights.bin").write_bytes(bytes(972 * 3 * 4))
    monkeypatch.chdir(tmp_path / "here")
    sign(bundle, model_onnx=network(weights=weights_in(where.format(absolute=tmp_path / "weights.bin"))))
    with pytest.raises(BundleError, match="can run"):
        Predictor(bundle)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no network",
        network()[:-40],
        network(shape=("n", 3, 18, 17)),
        network(shape=("n", 1, 18, 18)),
        network(shape=("n", 3, "h", "w")),
        network(classes=2),
        network(classes=1000),
        network(kind=TensorProto.DOUBLE),
        network(inputs=["images", "more"]),
        network(nodes=[helper.make_node("NoSuchOperator", ["images"], ["logits"])]),
        network(nodes=[helper.make_node("Stolen", ["images"], ["logits"], domain="evil")]),
    ],
)
def test_a_wrong_network_is_refused(bundle: Path, data: bytes) -> None:
    """A network that is none, or takes or gives something else than the description says, is not opened."""
    sign(bundle, model_onnx=data)
    with pytest.raises(BundleError):
        Predictor(bundle)


@pytest.mark.parametrize(
    "nodes",
    [
        [
            helper.make_node("Flatten", ["images"], ["f"]),
            helper.make_node("Log", ["f"], ["g"]),
            helper.make_node("MatMul", ["g", "w"], ["logits"]),
        ],
        [helper.make_node("Flatten", ["images"], ["f"]), helper.make_node("Reshape", ["f", "w64"], ["logits"])],
    ],
)
def test_a_network_that_answers_nonsense_is_refused(bundle: Path, nodes: list[onnx.NodeProto]) -> None:
    """Answers that are no numbers, and failures within the network, are errors of the bundle."""
    if "w64" in nodes[-1].input:
        nodes = [helper.make_node("Cast", ["w"], ["w64"], to=TensorProto.INT64), *nodes]
        weights = numpy_helper.from_array(np.array([7, 3], np.float32), "w")
        sign(bundle, model_onnx=network(nodes=nodes, weights=weights))
    else:
        sign(bundle, model_onnx=network(nodes=nodes))
    with pytest.raises(BundleError):
        Predictor(bundle).predict(np.full((18, 18, 3), 0, np.uint8))


def test_what_the_hashes_do_not_list_is_not_read(bundle: Path) -> None:
    """A file that somebody adds to a bundle changes nothing."""
    before = json.loads((bundle / "bundle.json").read_text())["classes"]
    (bundle / "model.onnx.data").write_bytes(b"x")
    (bundle / "sitecustomize.py").write_text("raise SystemExit")
    assert list(Predictor(bundle).classes) == before
