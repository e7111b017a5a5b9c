"""Published weights, fetched from a server on this machine: whole, checked, kept, and asked for once."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from linnaeus.errors import DownloadError
from linnaeus.models import weights
from linnaeus.models.registry import Blueprint, Entry, create_model, find_model
from linnaeus.models.weights import at_hand, load_pretrained


class _Server(ThreadingHTTPServer):
    """Serves files by name; of one whose name begins with "cut" only half arrives."""

    files: dict[str, bytes]
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer with a file, or 404."""
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        body = self.server.files.get(name, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if name.startswith("cut") else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """Run the server in the place of the publisher, with empty caches."""
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with _Server(("127.0.0.1", 0), _Handler) as http:
        http.files, http.asked = {}, []
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(weights, "_TORCHVISION", f"http://127.0.0.1:{http.server_address[1]}/models/")
        yield http
        http.shutdown()
        thread.join()


BLUEPRINT = Blueprint(name="resnet18", classes=5, channels=3, size=96)


def publish(server: _Server, name: str, *, prefix: str = "", damaged: bool = False) -> Entry:
    """Put fresh weights of a network on the server, under the name that bears their checksum."""
    stream = io.BytesIO()
    torch.manual_seed(3)
    torch.save(create_model(dataclasses.replace(BLUEPRINT, name=name)).published().state_dict(), stream)
    body = stream.getvalue()
    file = f"{prefix}{name}-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    server.files[file] = body[:-1] + b"x" if damaged else body
    return dataclasses.replace(find_model(name), weights=file)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "torchvision:squeezenet1_1"])
def test_weights_are_fetched_once(server: _Server, name: str) -> None:
    """They arrive whole with progress told, fill the network, lie in the cache, and are not asked for again."""
    entry, told = publish(server, name), []
    blueprint = dataclasses.replace(BLUEPRINT, name=name)
    assert not at_hand(entry)
    for _ in range(2):
        torch.manual_seed(4)
        model = create_model(blueprint)
        load_pretrained(model, entry, blueprint, progress=lambda *pair: told.append(pair))
        torch.manual_seed(3)
        expected = create_model(blueprint).published().state_dict()
        assert all(torch.equal(value, expected[n]) for n, value in model.published().state_dict().items())
    size = len(server.files[entry.weights])
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert server.asked == [entry.weights]
    assert at_hand(entry)


@pytest.mark.parametrize(
    ("kind", "words"), [("damaged", "the checksum sha256:"), ("cut", "bytes|cut connection"), ("missing", "404")]
)
def test_weights_that_do_not_arrive(server: _Server, kind: str, words: str, tmp_path: Path) -> None:
    """A wrong checksum, a cut connection and a missing file are DownloadErrors that leave no file behind."""
    entry = publish(server, "resnet18", prefix="cut-" if kind == "cut" else "", damaged=kind == "damaged")
    if kind == "missing":
        server.files.clear()
    model = create_model(BLUEPRINT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DownloadError, match=words) as caught:
        load_pretrained(model, entry, BLUEPRINT)
    assert f"belongs at {tmp_path / 'cache' / 'weights' / entry.weights}" in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not at_hand(entry)


def test_without_a_network(server: _Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nobody answers, the error says what to fetch and where it belongs; a file put there by hand is taken."""
    entry = publish(server, "resnet18")
    monkeypatch.setattr(weights, "_TORCHVISION", "http://127.0.0.1:9/models/")
    model = create_model(BLUEPRINT)
    with pytest.raises(DownloadError, match=f"by hand: http://127.0.0.1:9/models/{entry.weights}"):
        load_pretrained(model, entry, BLUEPRINT)
    place = tmp_path / "cache" / "weights" / entry.weights
    place.write_bytes(server.files[entry.weights])
    load_pretrained(model, entry, BLUEPRINT)
    assert server.asked == []


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg19_bn", "googlenet", "resnet18", "resnet152"])
def test_the_names_that_are_asked_for(name: str) -> None:
    """Each classic asks for the very file that torchvision publishes, whose name ends with its checksum."""
    models = pytest.importorskip("torchvision").models
    published = [each.url for each in models.get_model_weights(name)]
    assert weights._TORCHVISION + find_model(name).weights in published
