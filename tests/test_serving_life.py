"""The life of a service: it outlives its workers, exchanges bundles, sees slow clients off and ends well."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from commands import SOURCES, describe_anew, run_python, sign
from linnaeus.errors import SettingError
from linnaeus.serving.terms import Limits, Terms, check_terms, name_bundles
from linnaeus.storage import new_folder
from servers import HEAVY, Server, ask, is_running, on_linux, picture, seconds_of, serving, wait_until

pytest_plugins = ("fixtures_run",)

HEAD = b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"


class Crowd:
    """Clients that ask without a pause, each on a connection that it keeps as long as the server does."""

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._ending = threading.Event()
        self.good: list[str] = []
        self.bad: list[str] = []
        self.late = False  # from now on new connections may be refused
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let all clients finish."""
        self._ending.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        while not self._ending.is_set():
            opened_late = self.late
            with contextlib.closing(self._server.connect()) as connection:
                try:
                    connection.connect()
                    while not self._ending.is_set() and connection.sock is not None:
                        reply = ask(connection, "POST", "/classify", picture())
                        (self.good if reply.status == 200 else self.bad).append(reply.body.decode())
                except OSError as error:
                    if opened_late:
                        return
                    self.bad.append(repr(error))


@contextlib.contextmanager
def crowd(server: Server, count: int = 6) -> Iterator[Crowd]:
    """Let clients ask while the block runs, and expect that nobody is failed."""
    clients = Crowd(server, count)
    wait_until(lambda: len(clients.good) + len(clients.bad) >= 2 * count)
    try:
        yield clients
    finally:
        clients.end()
    assert clients.bad == []


def test_the_command(run_folder: Path, tmp_path: Path) -> None:
    """`linnaeus serve` answers under the run's name, and Ctrl-C ends it with exit code 0."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "linnaeus", "serve", str(run_folder), "--port", "0"]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(SOURCES)}, stderr=stream)
    wait_until(lambda: " INFO Serving " in log.read_text() or process.poll() is not None)
    port = int(re.findall(r"http://\S+:(\d+)", log.read_text())[0])
    reply = Server(process=process, log=log, port=port).post("/classify", picture())
    assert reply.json()["model"] == run_folder.name
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_names_of_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle is called as it is told to be, or after its run; names that clash or do not fit are refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    here = str(tmp_path)
    assert name_bundles(["runs/x-1", "y/bundle", "z=runs/x-1"]) == {
        "x-1": f"{here}/runs/x-1", "y": f"{here}/y/bundle", "z": f"{here}/runs/x-1",
    }  # fmt: skip
    for wrong in (["a/x", "b/x"], ["a b"], ["../=x"], ["=x"], ["a=b"], ["/"]):
        with pytest.raises(SettingError, match="Write NAME="):
            name_bundles(wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_strangers_need_a_token(host: str, tmp_path: Path) -> None:
    """An address that others can reach is refused without a token, and with one that can be guessed."""
    with pytest.raises(SettingError, match="--token-file"):
        check_terms(Terms(bundles={}, host=host))
    for weak in ("", "short", "with spaces in it, long", "ü" * 20):
        (tmp_path / "token").write_text(weak)
        with pytest.raises(SettingError, match="token"):
            check_terms(Terms(bundles={}, host=host, token_file=str(tmp_path / "token")))
    with pytest.raises(SettingError):
        check_terms(Terms(bundles={}, token_file=str(tmp_path / "nowhere")))
    for ours in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        check_terms(Terms(bundles={}, host=ours))


WRONG = "import sys; from linnaeus.cli.main import main; main(['serve', *sys.argv[1:]])"


def test_what_cannot_be_served(bundle: Path, tmp_path: Path) -> None:
    """A bundle that is missing or damaged, and an address in use, end the command with one line and exit code 2."""
    (bundle / "model.onnx").write_bytes(b"damaged")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments in (("nowhere", "--port", "0"), (bundle, "--port", "0"), (bundle, "--port", port)):
            done = run_python(WRONG, *arguments)
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            assert done.stderr.startswith("Error: Expected ")
            assert done.stderr.count("\n") == 1


def test_the_missing_extra(bundle: Path, tmp_path: Path) -> None:
    """Without the packages of the extra the command says how they are installed."""
    code = f"import importlib.util as u; u.find_spec = lambda name: None\n{WRONG}"
    done = run_python(code, bundle, "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'Run: pip install "linnaeus[serve]"' in done.stderr


def test_no_accepted_request_is_lost(run_folder: Path, tmp_path: Path) -> None:
    """SIGTERM under load: what was sent is answered, /readyz says no while it drains, and the exit code is 0."""
    with serving(tmp_path, {"a": run_folder}, limits=Limits(linger=1.0, grace=20), workers=2) as server:
        statuses: list[int] = []
        with crowd(server) as clients, contextlib.closing(server.connect()) as watcher:
            ask(watcher, "GET", "/readyz")
            clients.late = True
            server.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(OSError):
                while not statuses or statuses[-1] != 503:
                    statuses.append(ask(watcher, "GET", "/readyz").status)
            assert server.process.wait(60) == 0
        assert statuses[-1] == 503
        assert len(clients.good) > 20


def test_what_is_being_decoded_is_finished(run_folder: Path, tmp_path: Path) -> None:
    """A request that SIGTERM finds in the middle of its work is answered, and the next on that connection is not."""
    with serving(tmp_path, {"a": run_folder}) as server:
        replies = []
        thread = threading.Thread(target=lambda: replies.append(server.post("/classify", HEAVY)))
        thread.start()
        wait_until(lambda: server.metric("linnaeus_images_inside") == 1)
        assert server.stop() == 0
        thread.join()
        assert replies[0].status == 200
        assert replies[0].headers["connection"] == "close"


def test_stalled_clients_do_not_keep_it_from_ending(run_folder: Path, tmp_path: Path) -> None:
    """With clients that send half a request and stop, it still ends by itself, soon, with exit code 0."""
    with (
        serving(tmp_path, {"a": run_folder}, limits=Limits(linger=0.2, grace=2, header=100, body_start=100)) as server,
        contextlib.ExitStack() as stack,
    ):
        for text in (b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\nabc") * 10:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(text)
        assert server.post("/classify", picture()).status == 200
        assert seconds_of(lambda: server.process.returncode or server.stop()) < 60
        assert server.process.returncode == 0


def closes(client: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    client.settimeout(60)
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            found += data
    return found


def drip(client: socket.socket) -> None:
    """Send a header that never ends, a byte at a time, until nobody listens."""
    with contextlib.suppress(OSError):
        client.sendall(HEAD + b"X-Slow: ")
        while True:
            client.sendall(b"a")
            time.sleep(0.02)


SLOW: dict[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "half a head": (HEAD, b""),
    "half a body": (HEAD + b"Content-Length: 9\r\n\r\nabc", b"HTTP/1.1 408 "),
    "half a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc", b"HTTP/1.1 408 "),
    "refused, half a body": (HEAD.replace(b"POST", b"PUT") + b"Content-Length: 9\r\n\r\nabc", b"HTTP/1.1 405 "),
    "idle after an answer": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200 "),
}


@pytest.fixture(scope="module")
def strict(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a service of little patience."""
    limits = Limits(header=0.4, body_start=0.4, write=0.4, linger=0.2)
    with serving(tmp_path_factory.mktemp("strict"), {"a": run_folder}, limits=limits) as running:
        yield running


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_client_is_cut(strict: Server, kind: str) -> None:
    """A connection on which a client stops is closed soon, with an answer where a request had begun."""
    text, answer = SLOW[kind]
    with socket.create_connection(("127.0.0.1", strict.port)) as client:
        client.sendall(text)
        found: list[bytes] = []
        assert seconds_of(lambda: found.append(closes(client))) < 30
    assert found[0].startswith(answer)
    assert bool(found[0]) == bool(answer)


def test_a_dripping_head_is_cut(strict: Server) -> None:
    """A head of which a byte comes now and then has the same deadline as one of which nothing comes."""
    with socket.create_connection(("127.0.0.1", strict.port)) as client:
        thread = threading.Thread(target=drip, args=(client,))
        thread.start()
        closes(client)
        thread.join(30)
        assert not thread.is_alive()


def test_an_answer_that_nobody_takes(strict: Server) -> None:
    """A client that asks again and again and reads nothing is cut off."""
    with socket.create_connection(("127.0.0.1", strict.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        with pytest.raises(ConnectionError):
            client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000_000)


def test_many_stalled_clients_harm_nobody(run_folder: Path, tmp_path: Path) -> None:
    """With 200 clients that stall, another is answered."""
    with serving(tmp_path, {"a": run_folder}) as server, contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(HEAD + b"Content-Length: 9\r\n\r\nabc")
        assert [server.post("/classify", picture()).status for _ in range(5)] == [200] * 5
        stack.close()


def replace(target: Path, change: Callable[[Path], None]) -> None:
    """Put a changed copy of a bundle in its place, as a training run does."""
    with new_folder(target) as folder:
        shutil.copytree(target, folder, dirs_exist_ok=True)
        change(folder)


def crash(bundle: Path) -> None:
    """Give a bundle a network that ends ONNX Runtime by a signal: 3,000 functions, each calling the next."""
    functions = []
    for i in range(3000):
        node = (
            helper.make_node(f"f{i + 1}", ["x"], ["y"], domain="d")
            if i < 2999
            else helper.make_node("Relu", ["x"], ["y"])
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
        functions.append(helper.make_function("d", f"f{i}", ["x"], ["y"], [node], opsets))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("f0", ["a"], ["b"], domain="d")], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)
    sign(bundle, model_onnx=model.SerializeToString())


def test_a_bundle_is_exchanged_under_load(bundle: Path, tmp_path: Path) -> None:
    """A new bundle answers after a moment, and not one request fails meanwhile; the version says who answers."""
    limits = Limits(watch=0.1, linger=0.2)
    with serving(tmp_path, {"a": bundle}, limits=limits) as server, crowd(server) as clients:
        first = server.post("/classify", picture()).json()["version"]
        for names in (["x", "y", "z"], ["p", "q", "r"]):
            replace(bundle, lambda folder, names=names: describe_anew(folder, classes=names))
            wait_until(lambda names=names: server.get("/models").json()["models"][0]["classes"] == names)
            answer = server.post("/classify", picture()).json()
            assert answer["predictions"][0]["label"] in names
            assert answer["version"] != first
        count = len(clients.good)
        wait_until(lambda: len(clients.good) > count + 6)
        assert server.metric('linnaeus_bundle_changes_total{model="a",result="taken"}') == 2
        assert server.metric(f'linnaeus_model_info{{model="a",version="{first}"}}') == 0
        assert f'"version": "{answer["version"]}"' in clients.good[-1]


@pytest.mark.parametrize("kind", ["damaged", "other ends", "crash", "gone", "nonsense"])
def test_a_bad_bundle_is_refused(bundle: Path, tmp_path: Path, kind: str) -> None:
    """A bundle that is damaged, does not fit, brings ONNX Runtime down or is gone changes nothing but the log."""
    changes: dict[str, Callable[[Path], object]] = {
        "damaged": lambda folder: (folder / "model.onnx").write_bytes(b"damaged"),
        "other ends": lambda folder: describe_anew(folder, classes=["a", "b"]),
        "crash": crash,
        "nonsense": lambda folder: sign(folder, model_onnx=b"nonsense"),
        "gone": shutil.rmtree,
    }
    with serving(tmp_path, {"a": bundle}, limits=Limits(watch=0.1, linger=0.2)) as server:
        before = server.post("/classify", picture()).json()
        if kind == "gone":
            changes[kind](bundle)
            time.sleep(0.5)
        else:
            replace(bundle, changes[kind])
            wait_until(lambda: "is refused" in server.said())
            assert server.metric('linnaeus_bundle_changes_total{model="a",result="refused"}') == 1
        after = server.post("/classify", picture()).json()
        assert (after["version"], after["predictions"]) == (before["version"], before["predictions"])
        assert "is replaced" not in server.said()


def test_a_mended_bundle_is_taken(bundle: Path, tmp_path: Path) -> None:
    """After a bad bundle a good one is taken, also when its files come one by one with the manifest first."""
    good = Path(shutil.copytree(bundle, tmp_path / "good"))
    describe_anew(good, classes=["x", "y", "z"])
    with serving(tmp_path, {"a": bundle}, limits=Limits(watch=0.1, linger=0.2)) as server:
        shutil.copy(good / "MANIFEST.sha256", bundle)
        wait_until(lambda: "is refused" in server.said())
        shutil.copy(good / "bundle.json", bundle)
        wait_until(lambda: server.get("/models").json()["models"][0]["classes"] == ["x", "y", "z"])


@pytest.mark.skipif(not on_linux, reason="finds the workers in /proc")
def test_dead_workers_are_replaced(run_folder: Path, tmp_path: Path) -> None:
    """A worker that is killed is replaced; who asks gets an answer from another one, or from the new one."""
    with serving(tmp_path, {"a": run_folder}, workers=2) as server:
        before = server.workers()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        assert server.post("/classify", picture()).status == 200
        wait_until(lambda: len(server.workers()) == 2 and before[0] not in server.workers())
        for worker in server.workers():
            os.kill(worker, signal.SIGKILL)
        assert server.post("/classify", picture()).status == 200, "new connections wait for a new worker"
        assert "ended by signal 9 and is replaced" in server.said()
        images = server.metric('linnaeus_images_total{model="a"}')
        assert images == 2, "counts outlive workers"
        wait_until(lambda: len(server.workers()) == 2)


@pytest.mark.skipif(not on_linux, reason="finds the workers in /proc")
def test_no_worker_outlives_the_supervisor(run_folder: Path, tmp_path: Path) -> None:
    """When the supervisor is killed, its workers end, too."""
    with serving(tmp_path, {"a": run_folder}) as server:
        (worker,) = server.workers()
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not is_running(worker))


def test_terms_travel(tmp_path: Path) -> None:
    """What a worker reads is what the supervisor was told."""
    terms = Terms(bundles={"a": "/x"}, hosts=("b", "c"), limits=Limits(window=0.25), token_file="t", workers=3, port=0)
    assert Terms.from_json(terms.to_json()) == terms
    assert np.isclose(terms.limits.window, 0.25)
