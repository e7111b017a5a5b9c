"""The service from outside: real requests to real servers on 127.0.0.1, answered as the Predictor answers."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from commands import CLASSES, describe_anew
from linnaeus.bundle import MANIFEST
from linnaeus.predictor import Predictor
from linnaeus.serving.guard import SECURITY_HEADERS
from linnaeus.serving.terms import Limits
from pictures import FORMATS, encode, png, scene, tiled_tiff, turned
from servers import HEAVY, Server, ask, form, picture, seconds_of, serving

pytest_plugins = ("fixtures_run",)

TOKEN = "correct-horse-battery"
NOTE = b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'


@pytest.fixture(scope="module")
def server(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a service with one model, to ask only."""
    limits = Limits(linger=0.2, body=200_000, window=0.05, batch=8, images=8)
    with serving(tmp_path_factory.mktemp("server"), {"colours": run_folder}, limits=limits) as running:
        yield running
        assert "Traceback" not in running.said()


def top_of(predictor: Predictor, image: object) -> list[dict[str, object]]:
    """Return what the service should say of an image."""
    return [{"label": label, "probability": p} for label, p in predictor.predict([image]).top(5)[0]]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_as_the_body(server: Server, predictor: Predictor, kind: str) -> None:
    """The file itself as the body, of each format, gets the answer that the Predictor gives, to the last bit."""
    data = encode(turned(scene(30, 20), 6), kind, **({"exif": 6} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
    reply = server.post("/classify", data)
    assert reply.status == 200
    said = reply.json()
    assert said.keys() == {"model", "version", "predictions", "milliseconds"}
    assert said["model"] == "colours"
    (found,) = said["predictions"]
    assert found["top"] == top_of(predictor, data)
    assert (found["label"], found["probability"]) == tuple(found["top"][0].values())
    stages = said["milliseconds"]
    assert stages.keys() == {"read", "decode", "wait", "compute", "total"}
    assert 0 < sum(stages.values()) - stages["total"] <= stages["total"] < 60_000


def test_several_pictures_in_a_form(server: Server, predictor: Predictor) -> None:
    """The files of a multipart form are answered in their order, each under its name; other fields are passed over."""
    files = {f"{i} ü.png": picture(i) for i in range(5)}
    body, kind = form(files)
    found = server.post("/classify", NOTE + body, content_type=kind).json()["predictions"]
    assert [each["name"] for each in found] == list(files)
    assert [each["top"] for each in found] == [top_of(predictor, data) for data in files.values()]


def test_top_and_model(server: Server) -> None:
    """`top` says how many classes are named, `model` which model is asked; what makes no sense is refused."""
    for top, count in ((1, 1), (2, 2), (99, 3)):
        (found,) = server.post(f"/classify?top={top}", picture()).json()["predictions"]
        assert len(found["top"]) == count
    assert server.post("/classify?model=colours", picture()).status == 200
    numbers = ("top=0", "top=-1", "top=x", "top=", "top=%C2%B2", "top=" + "9" * 5000)
    names = ("model=other", "model=", "model=../colours")
    for query, status in (*((query, 400) for query in numbers), *((query, 404) for query in names)):
        reply = server.post(f"/classify?{query}", picture())
        assert (reply.status, list(reply.json())) == (status, ["error"]), query


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no picture", 415),
        (b"%PDF-1.7 " + bytes(100), 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (b"GIF89a", 422),
        (picture()[:100], 422),
        (png(60_000, 1), 422),
        (png(19_000, 19_000), 422),
        (tiled_tiff(8, 30_000)[:150_000], 422),
    ],
)
def test_what_is_no_picture(server: Server, body: bytes, status: int) -> None:
    """Nothing, another format, a damaged file and a bomb are each refused by the status that says why."""
    reply = server.post("/classify", body)
    assert reply.status == status
    assert re.match(r"Expected .+", reply.json()["error"])


def test_a_bad_picture_among_good_ones(server: Server) -> None:
    """Of several pictures all that are bad are named, and nothing is answered for the others."""
    body, kind = form({"good.png": picture(), "cut.png": picture()[:90], "cut.jpg": picture(kind="JPEG")[:200]})
    reply = server.post("/classify", body, content_type=kind)
    assert reply.status == 422
    said = reply.json()["error"]
    assert "cut.png" in said
    assert "cut.jpg" in said
    assert "good.png" not in said


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"--edge", "multipart/form-data; boundary=edge"),
        (b"--edge\r\n\r\n\r\n--edge--\r\n", "multipart/form-data; boundary=edge"),
        (b"nonsense", "multipart/form-data; boundary=edge"),
        (form({str(i): picture() for i in range(9)})[0], "multipart/form-data; boundary=edge"),
        (form({"a": picture()})[0], "multipart/form-data; boundary=" + "x" * 500),
        (NOTE + b"--edge--\r\n", "multipart/form-data; boundary=edge"),
    ],
)  # fmt: skip
def test_a_form_that_is_none(server: Server, body: bytes, kind: str) -> None:
    """A form that is damaged, holds no file or too many is the client's mistake."""
    assert server.post("/classify", body, content_type=kind).status == 400


def test_a_body_that_is_too_large(server: Server) -> None:
    """One byte too many is refused with 413, told in advance or found on the way; the client can read the answer."""
    exactly = picture() + bytes(200_000 - len(picture()))
    assert server.post("/classify", exactly).status == 200
    assert server.post("/classify", exactly + b"x").status == 413
    assert server.post("/classify", iter([exactly, b"x"])).status == 413
    assert server.post("/classify", iter([bytes(100_000)] * 50)).status == 413


def test_a_large_body_is_not_waited_for(server: Server) -> None:
    """413 comes as soon as it is known: at the header, or while an endless body still comes."""
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"
    endless = b"186A0\r\n" + bytes(100_000) + b"\r\n"
    for text in (b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n", b"Content-Length: 300000\r\n\r\nabc",
                 b"Transfer-Encoding: chunked\r\n\r\n" + endless * 3):  # fmt: skip
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(head + text)
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_compressed_body_is_refused(server: Server) -> None:
    """No body is unpacked: it could be a bomb."""
    assert server.post("/classify", picture(), content_encoding="gzip").status == 415


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_picture_is_the_servers_fault(server: Server, data: st.DataObject) -> None:
    """Whatever is done to a picture, it is answered or refused, never by a 500."""
    whole = bytearray(encode(scene(16, 16), data.draw(st.sampled_from(FORMATS))))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    assert server.post("/classify", bytes(whole) or b"x").status in (200, 413, 415, 422)


def test_the_answer_does_not_depend_on_the_company(server: Server, predictor: Predictor) -> None:
    """Pictures of many clients are computed together, and each gets the answer that it gets alone, to the last bit."""
    expected = {seed: top_of(predictor, picture(seed)) for seed in range(40)}
    before = server.metric("linnaeus_batch_images_count"), server.metric('linnaeus_batch_images_bucket{le="1.0"}')
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda seed: server.post("/classify", picture(seed)), expected))
    assert [reply.json()["predictions"][0]["top"] for reply in replies] == list(expected.values())
    after = server.metric("linnaeus_batch_images_count"), server.metric('linnaeus_batch_images_bucket{le="1.0"}')
    assert after[0] - before[0] == 40
    assert after[1] - before[1] < 20, "hardly any were computed together"


def test_the_version_is_the_bundles(server: Server, run_folder: Path) -> None:
    """The version is the beginning of the hash of the manifest, and /models tells the classes with it."""
    import hashlib

    version = hashlib.sha256((run_folder / "bundle" / MANIFEST).read_bytes()).hexdigest()[:32]
    assert server.post("/classify", picture()).json()["version"] == version
    assert server.get("/models").json() == {
        "models": [{"name": "colours", "version": version, "classes": list(CLASSES)}]
    }


def test_health(server: Server) -> None:
    """A service that answers is live and ready."""
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert server.get(path).status == 200


def test_metrics(server: Server) -> None:
    """Requests, refusals, stages and batches are counted under Prometheus's rules for names."""
    line = 'linnaeus_requests_total{route="classify",status="415"}'
    before = server.metric(line), server.metric('linnaeus_images_total{model="colours"}')
    server.post("/classify", b"no picture")
    server.post("/classify", picture())
    after = server.metric(line), server.metric('linnaeus_images_total{model="colours"}')
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    text = server.get("/metrics").body.decode()
    for stage in ("decode", "wait", "compute"):
        assert f'linnaeus_stage_seconds_bucket{{le="+Inf",stage="{stage}"}}' in text
    version = server.get("/models").json()["models"][0]["version"]
    assert server.metric(f'linnaeus_model_info{{model="colours",version="{version}"}}') == 1
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    units = ("_total", "_seconds_bucket", "_seconds_sum", "_seconds_count", "_images_bucket", "_images_sum",
             "_images_count", "_info", "_inside")  # fmt: skip
    assert [name for name in names if not (name.startswith("linnaeus_") and name.endswith(units))] == []
    server.get("/etc/passwd")
    assert "passwd" not in server.get("/metrics").body.decode()


def test_the_description_names_every_route(server: Server) -> None:
    """/openapi.json has each route with its methods, and no other; every reference in it leads somewhere."""
    document = server.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        filled = path.replace("{name}", "colours").replace("{version}", "0" * 32)
        for method in ("get", "post", "put", "delete"):
            status = server.ask(method.upper(), filled, b"x").status
            assert (status != 405) == (method in methods), (method, path)
            if method in methods:
                assert str(status) in methods[method]["responses"], (method, path, status)
    from linnaeus.serving.app import _Routes

    assert set(document["paths"]) == {route.path for route in _Routes.table(_Routes.__new__(_Routes))}
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]


def test_the_page(server: Server) -> None:
    """The page and its files are there, name nothing from elsewhere, and a policy forbids all that they do not need."""
    shown = {path: server.get(path) for path in ("/", "/ui/page.js", "/ui/style.css")}
    assert [reply.headers["content-type"].split(";")[0] for reply in shown.values()] == [
        "text/html", "text/javascript", "text/css",
    ]  # fmt: skip
    for reply in shown.values():
        assert reply.status == 200
        assert b"http" not in reply.body
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    html = shown["/"].body.decode()
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", html)
    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == {"ui/page.js", "ui/style.css"}
    used = set(re.findall(r'data-text="(\w+)"', html)) | {"busy", "denied", "lost", "other"}
    script = shown["/ui/page.js"].body.decode()
    for block in re.findall(r"^  (?:en|zh): \{(.*?)^  \},", script, re.MULTILINE | re.DOTALL):
        assert set(re.findall(r"(\w+): \"", block)) == used


def test_unknown_paths_and_methods(server: Server) -> None:
    """What is not there is 404, a wrong method 405, both in JSON."""
    for path in ("/nope", "/v1/models", "/v2/repository/index", "/..%2f..%2fetc/passwd", "/docs"):
        assert server.get(path).status == 404
    assert server.get("/classify").status == 405
    assert server.ask("DELETE", "/v2/models/colours").json()["error"]


def test_security_headers_on_every_answer(server: Server) -> None:
    """Answers, refusals and what is no HTTP at all carry the headers that keep browsers from mischief."""
    replies = [
        server.get("/healthz"), server.get("/nope"), server.post("/classify", picture()),
        server.post("/classify", b"x"), server.get("/healthz", host="evil.example"), server.get("/classify"),
        server.post("/classify", iter([bytes(150_000)] * 2)), server.ask("HEAD", "/models"),
    ]  # fmt: skip
    for reply in replies:
        assert SECURITY_HEADERS.items() <= reply.headers.items(), reply
        assert "server" not in reply.headers
    with socket.create_connection(("127.0.0.1", server.port), 20) as client:
        client.sendall(b"what is this\r\n\r\n")
        answer = client.recv(2000).lower()
    assert answer.startswith(b"http/1.1 400 ")
    for name, value in SECURITY_HEADERS.items():
        assert f"{name}: {value}".lower().encode() in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example",
                                  "", "a b", "[::1", "localhost:x", "localhost@evil.example"])  # fmt: skip
def test_another_host_is_refused(server: Server, host: str) -> None:
    """A name that is not ours, which an attacker may have made to lead here, gets nothing."""
    assert server.get("/healthz", host=host).status in (421, 400)
    assert server.post("/classify", picture(), host=host).status in (421, 400)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "192.0.2.1:9"])
def test_our_own_names_are_known(server: Server, host: str) -> None:
    """Our own name and addresses in figures are ours, with any port."""
    assert server.get("/healthz", host=host).status == 200


def test_a_post_from_another_site_is_refused(server: Server) -> None:
    """A page of another origin cannot make a browser ask us; our own can, and a client that is no browser."""
    ours = f"http://127.0.0.1:{server.port}"
    assert server.post("/classify", picture(), origin=ours).status == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}", "", "http://127.0.0.1"):
        assert server.post("/classify", picture(), origin=origin).status == 403, origin
        assert server.post("/v2/models/colours/infer", b"{}", origin=origin).status == 403


def test_no_address_is_fetched(server: Server, tmp_path: Path) -> None:
    """Nothing that a client names is opened: neither an address nor a file."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.png"
        for body in (url.encode(), json.dumps({"url": url}).encode(), b"/etc/passwd", b"file:///etc/passwd"):
            assert server.post("/classify", body).status == 415
        for query in (f"?url={url}", f"?model={url}"):
            server.post(f"/classify{query}", picture())
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_token(run_folder: Path, tmp_path: Path) -> None:
    """With a token file, all but the health routes asks for the token, and only the whole token is good."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with serving(tmp_path, {"a": run_folder}, token_file=str(file), host="0.0.0.0") as server:
        for wrong in ({}, {"authorization": "Bearer"}, {"authorization": f"Bearer {TOKEN[:-1]}"},
                      {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"},
                      {"authorization": TOKEN}, {"authorization": "Bearer \xff"}):  # fmt: skip
            for path in ("/models", "/metrics", "/v2/models/a", "/openapi.json", "/nope"):
                reply = server.get(path, **wrong)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert server.post("/classify", picture(), **wrong).status == 401
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert server.get(path).status == 200
        assert server.post("/classify", picture(), authorization=f"Bearer {TOKEN}").status == 200
        assert server.get("/models", authorization=f"bearer {TOKEN}").status == 200
        assert server.get("/healthz", host="evil.example").status == 421
        assert TOKEN not in server.said()
        if commands := list(Path("/proc").glob(f"{server.process.pid}/task/*/children")):
            (worker,) = commands[0].read_text().split()
            assert TOKEN.encode() not in Path(f"/proc/{worker}/cmdline").read_bytes()


def test_several_models(run_folder: Path, bundle: Path, tmp_path: Path) -> None:
    """Several bundles answer under their names, at the same time; the first answers who names none."""
    describe_anew(bundle, classes=["x", "y", "z"])
    with serving(tmp_path, {"colours": run_folder, "letters": bundle}) as server:
        names = ["colours", "letters", None] * 8
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(lambda name: server.post("/classify" + (f"?model={name}" if name else ""),
                                                          picture()).json(), names))  # fmt: skip
        for name, answer in zip(names, said):
            assert answer["model"] == name or name is None
            known = CLASSES if answer["model"] == "colours" else ("x", "y", "z")
            assert {entry["label"] for entry in answer["predictions"][0]["top"]} == set(known)
        assert {each["name"] for each in server.get("/models").json()["models"]} == {"colours", "letters"}
        assert len({answer["version"] for answer in said}) == 2


def test_several_labels_a_picture(bundle: Path, tmp_path: Path) -> None:
    """Where a picture may have several labels, all that it is given are named, by both protocols."""
    describe_anew(bundle, format=2, labelling="multi-label", thresholds=[0.0, 1.0, 0.0])
    expected = Predictor(bundle).predict(picture())
    with serving(tmp_path, {"a": bundle}) as server:
        (found,) = server.post("/classify", picture()).json()["predictions"]
        assert found["labels"] == list(expected.labels[0]) == [CLASSES[0], CLASSES[2]]
        assert "label" not in found
        assert found["probability"] == expected.confidences[0]
        tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture()).decode()]}
        said = server.post("/v2/models/a/infer", json.dumps({"inputs": [tensor]})).json()
        assert json.loads(said["outputs"][1]["data"][0]) == found["labels"]


def test_too_much_is_refused_at_once(run_folder: Path, tmp_path: Path) -> None:
    """With the queue full, requests are refused before they are read or decoded, quickly, with a time to come back."""
    with (
        serving(tmp_path, {"a": run_folder}, limits=Limits(queue=2, linger=0.2)) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        work = [pool.submit(server.post, "/classify", HEAVY) for _ in range(2)]
        while server.metric("linnaeus_images_inside") < 2:
            time.sleep(0.01)
        refused, waits = [], []
        while not any(each.done() for each in work):
            waits.append(seconds_of(lambda: refused.append(server.post("/classify", HEAVY))))
        assert all(each.result().status == 200 for each in work)
        shed = [reply for reply in refused if reply.status == 503]
        assert len(shed) >= 2
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in shed)
        assert min(waits) < 0.2
        assert server.metric("linnaeus_refused_total") >= len(shed)
        assert server.post("/classify", picture()).status == 200


def test_bodies_that_fill_the_memory(run_folder: Path, tmp_path: Path) -> None:
    """All bodies together have a limit, too: beyond it clients are asked to come back, and the first is answered."""
    limits = Limits(bodies=100_000, linger=0.2)
    padded = picture() + bytes(90_000)
    with serving(tmp_path, {"a": run_folder}, limits=limits) as server:
        with contextlib.closing(server.connect()) as slow:
            slow.putrequest("POST", "/classify")
            slow.putheader("Content-Length", str(len(padded)))
            slow.endheaders(padded[:-1])
            while server.post("/classify", padded).status != 503:
                time.sleep(0.01)
            slow.send(padded[-1:])
            assert slow.getresponse().status == 200
        assert server.post("/classify", padded).status == 200


def test_a_connection_serves_many_requests(server: Server) -> None:
    """A connection stays open between requests, after refusals too, as long as the client sends them whole."""
    with contextlib.closing(server.connect()) as connection:
        statuses, sockets = [], set()
        for body in (picture(), b"x", picture(), bytes(250_000), picture()):
            statuses.append(ask(connection, "POST", "/classify", body).status)
            sockets.add(connection.sock)
        assert len(sockets) == 1
    assert statuses == [200, 415, 200, 413, 200]


def test_a_grey_photograph_of_a_phone(server: Server, predictor: Predictor) -> None:
    """A large JPEG is decoded small, and still as the Predictor does it."""
    stream = io.BytesIO()
    Image.fromarray(np.tile(scene(300, 400), (5, 5, 1))).convert("L").save(stream, "JPEG", quality=50)
    data = stream.getvalue()
    assert server.post("/classify", data).json()["predictions"][0]["top"] == top_of(predictor, data)
