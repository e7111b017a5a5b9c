"""The Open Inference Protocol: its messages one by one, and spoken with NVIDIA's client for Triton."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import CLASSES
from linnaeus.predictor import Predictor
from linnaeus.serving.protocol import ProtocolError, join_bytes, read_question, split_bytes
from linnaeus.serving.terms import Limits
from pictures import scene
from servers import Server, picture, serving

pytest_plugins = ("fixtures_run",)

INFER = "/v2/models/colours/infer"
FILES = [picture(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def server(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a service with one model, to ask only."""
    with serving(tmp_path_factory.mktemp("server"), {"colours": run_folder}, limits=Limits(linger=0.2)) as running:
        yield running
        assert "Traceback" not in running.said()


def question(files: list[bytes], **more: Any) -> dict[str, Any]:
    """Return a request in JSON."""
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [len(files)], "data": data}], **more}


def test_a_question_in_json(server: Server, predictor: Predictor) -> None:
    """Files as base64 get the Predictor's probabilities and labels; the id comes back."""
    said = server.post(INFER, json.dumps(question(FILES, id="seven"))).json()
    expected = predictor.predict(FILES)
    assert (said["model_name"], said["id"]) == ("colours", "seven")
    assert said["model_version"] == server.get("/v2/models/colours").json()["versions"][0]
    probabilities, labels = said["outputs"]
    assert probabilities == {
        "name": "probabilities", "datatype": "FP32", "shape": [3, 3],
        "data": expected.probabilities.ravel().tolist(),
    }  # fmt: skip
    assert labels == {"name": "labels", "datatype": "BYTES", "shape": [3], "data": expected.labels}


def test_pixels_in_json(server: Server, predictor: Predictor) -> None:
    """Pixels, nested or flat, get the answer that the same array gets."""
    pixels = np.stack([scene(9, 11, seed=seed) for seed in range(2)])
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        tensor = {"name": "images", "datatype": "UINT8", "shape": list(pixels.shape), "data": data}
        said = server.post(INFER, json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]})).json()
        (output,) = said["outputs"]
        assert output["data"] == predictor.predict(pixels).probabilities.ravel().tolist()


def test_binary_tensors(server: Server, predictor: Predictor) -> None:
    """Tensors after the JSON, there and back, by the lengths that the headers and parameters tell."""
    raw = join_bytes(FILES)
    tensor = {"name": "images", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = server.post(INFER, head + raw, Inference_Header_Content_Length=str(len(head)))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")
    length = int(reply.headers["inference-header-content-length"])
    probabilities, labels = json.loads(reply.body[:length])["outputs"]
    sizes = [output["parameters"]["binary_data_size"] for output in (probabilities, labels)]
    assert sum(sizes) == len(reply.body) - length
    tail = reply.body[length:]
    expected = predictor.predict(FILES)
    assert tail[: sizes[0]] == expected.probabilities.tobytes()
    assert [label.decode() for label in split_bytes(tail[sizes[0] :])] == expected.labels


def test_metadata(server: Server) -> None:
    """The server, the model and its version describe themselves; other models and versions are not there."""
    about = server.get("/v2").json()
    assert (about["name"], about["extensions"]) == ("linnaeus", ["binary_tensor_data"])
    model = server.get("/v2/models/colours").json()
    assert model["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": [-1]}]
    assert model["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(CLASSES)]}
    one = f"/v2/models/colours/versions/{model['versions'][0]}"
    assert server.get(one).json() == model
    assert server.get(f"{one}/ready").status == server.get("/v2/models/colours/ready").status == 200
    assert server.post(f"{one}/infer", json.dumps(question(FILES))).status == 200
    for path in ("/v2/models/other", "/v2/models/colours/versions/1", "/v2/models/other/ready"):
        assert server.get(path).status == 404
    assert server.post("/v2/models/other/infer", json.dumps(question(FILES))).status == 404


@pytest.mark.parametrize(("body", "status"), [(b"no picture", 415), (FILES[0][:60], 422)])
def test_what_is_no_picture(server: Server, body: bytes, status: int) -> None:
    """A file that cannot be read is refused as /classify refuses it."""
    assert server.post(INFER, json.dumps(question([FILES[0], body]))).status == status


def _with(**changes: Any) -> bytes:
    asked = question(FILES[:1])
    asked["inputs"][0] |= changes
    return json.dumps(asked).encode()


def _pixels(data: Any, *, shape: Sequence[int] = (1, 1, 1, 3)) -> bytes:
    return _with(datatype="UINT8", shape=list(shape), data=data)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000,
        b"{}", b'{"inputs": {}}', b'{"inputs": []}', b'{"inputs": [1]}',
        _with(name="other"), _with(shape=[2]), _with(shape=[0]), _with(shape=[-1]), _with(shape=[]), _with(shape="1"),
        _with(shape=[True]), _with(shape=[1.0]), _with(shape=[1, 2]), _with(shape=[33]), _with(datatype="FP32"),
        _with(datatype=None), _with(data=None), _with(data=["?"]), _with(data=[1]), _with(data="x"), _with(data=["ü"]),
        _with(parameters=3), _with(parameters={"binary_data_size": 4}), _with(parameters={"binary_data_size": "0"}),
        _pixels([1, 2]), _pixels([1, 2, 256]), _pixels([1, 2, -1]), _pixels([1, 2, 0.5]), _pixels([[1], [2, 3]]),
        _pixels(10**400), _pixels([1], shape=[32, 10**9, 10**9, 3]), _pixels([1, 2, 3], shape=[3]),
        json.dumps(question(FILES, id=7)).encode(), json.dumps(question(FILES, outputs=7)).encode(),
        json.dumps(question(FILES, outputs=[{"name": "logits"}])).encode(),
        json.dumps(question(FILES, outputs=[7])).encode(),
        json.dumps(question(FILES, parameters=[])).encode(),
    ],
)  # fmt: skip
def test_what_is_no_question(body: bytes) -> None:
    """A message that breaks the protocol is refused with a sentence, whatever is wrong with it."""
    with pytest.raises(ProtocolError, match="Expected"):
        read_question(body, None, most=32)


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", "99999", "9" * 5000, "²", "+5"])
def test_a_wrong_length_of_the_json(length: str) -> None:
    """The length of the JSON is a number within the body."""
    with pytest.raises(ProtocolError):
        read_question(_with(), length, most=32)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["images", "BYTES", "UINT8", "probabilities", [1], [1, 2, 2, 3]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["inputs", "name", "datatype", "shape", "data", "parameters", "outputs", "id"]),
        inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(message=JSON, tail=st.binary(max_size=20), told=st.booleans())
def test_no_message_breaks_the_reader(message: Any, tail: bytes, told: bool) -> None:
    """Whatever a message holds, it is read or refused."""
    head = json.dumps(message).encode()
    with contextlib.suppress(ProtocolError):
        read_question(head + tail, str(len(head)) if told else None, most=32)


@given(elements=st.lists(st.binary(max_size=30), max_size=6), cut=st.integers(0, 40))
def test_binary_texts_are_split_as_they_were_joined(elements: list[bytes], cut: int) -> None:
    """Joined elements come back; a tensor that was cut is refused, or ends between two elements."""
    joined = join_bytes(elements)
    assert split_bytes(joined) == elements
    if 0 < cut <= len(joined):
        with contextlib.suppress(ProtocolError):
            assert split_bytes(joined[:-cut]) == elements[: len(split_bytes(joined[:-cut]))]
    with pytest.raises(ProtocolError):
        split_bytes(joined + struct.pack("<I", 5) + b"four")


CLIENT = """
import sys, json
import numpy as np
import tritonclient.http as triton
port, *files = sys.argv[1:]
client = triton.InferenceServerClient(f"127.0.0.1:{port}")
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("colours")
version = client.get_model_metadata("colours")["versions"][0]
assert client.is_model_ready("colours", version) and not client.is_model_ready("other")
assert client.get_server_metadata()["name"] == "linnaeus"
values = np.array([open(file, "rb").read() for file in files], dtype=np.object_)
question = triton.InferInput("images", [len(files)], "BYTES")
question.set_data_from_numpy(values, binary_data=True)
found = {}
for binary in (True, False):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "labels")]
    answer = client.infer("colours", [question], model_version=version, outputs=outputs, request_id="7")
    assert answer.get_response()["id"] == "7"
    found[binary] = (answer.as_numpy("probabilities").tolist(), [str(x, "utf-8") if isinstance(x, bytes) else str(x)
                                                                 for x in answer.as_numpy("labels")])
assert found[True] == found[False], found
pixels = np.full((2, 5, 6, 3), 99, np.uint8)
tensor = triton.InferInput("images", pixels.shape, "UINT8")
tensor.set_data_from_numpy(pixels)
assert client.infer("colours", [tensor]).as_numpy("probabilities").shape == (2, 3)
try:
    client.infer("other", [question])
except triton.InferenceServerException as error:
    assert "other" in str(error) or "served" in str(error), error
else:
    raise SystemExit("an unknown model answered")
client.close()
print(json.dumps(found[True]))
"""


def test_tritons_own_client(server: Server, predictor: Predictor, tmp_path: Path) -> None:
    """The client that is written for Triton finds health, metadata and answers, in binary tensors and in JSON."""
    pytest.importorskip("tritonclient.http", reason='needs: pip install "tritonclient[http]"')
    import subprocess

    paths = []
    for i, file in enumerate(FILES):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(file)
    command = [sys.executable, "-c", CLIENT, str(server.port), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    probabilities, labels = json.loads(done.stdout)
    expected = predictor.predict(FILES)
    assert (np.array(probabilities, np.float32) == expected.probabilities).all()
    assert labels == expected.labels
