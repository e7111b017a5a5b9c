"""Finding named data sets, and fetching them whole from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from linnaeus import fetching
from linnaeus.data import named
from linnaeus.data.named import NAMED, NamedSet, Remote, locate
from linnaeus.errors import DataError, DownloadError, StorageError
from linnaeus.fetching import download
from linnaeus.storage import cache_folder

BODY = bytes(range(256)) * 4000


def digest(data: bytes, kind: str = "sha256") -> str:
    """Return the digest in the form that download takes."""
    return f"{kind}:{hashlib.new(kind, data).hexdigest()}"


def archive(member: str = "set/train.bin") -> bytes:
    """Return a tar.gz that holds one file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    return stream.getvalue()


class _Handler(BaseHTTPRequestHandler):
    """Serves a good file, one cut in the middle, one without its length, and 404 for the rest."""

    def do_GET(self) -> None:
        """Answer by the last part of the path."""
        name = self.path.rpartition("/")[2]
        body = {"set.tar.gz": archive(), "evil.tar.gz": archive("../../evil")}.get(name, BODY)
        self.send_response(200 if name != "missing" else 404)
        if name != "unknown":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if name != "missing":
            self.wfile.write(body[: len(body) // 2] if name == "cut" else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """Run a server on this machine and give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_download_a_whole_file(server: str, tmp_path: Path, kind: str) -> None:
    """A good file arrives whole, its progress is told, and nothing else lies beside it."""
    told: list[tuple[int, int]] = []
    target = tmp_path / "new" / "file.bin"
    download(server + "good", target, digest=digest(BODY, kind), progress=lambda *pair: told.append(pair))
    assert target.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_download_without_a_length(server: str, tmp_path: Path) -> None:
    """A server that does not tell the length is trusted by the checksum alone."""
    download(server + "unknown", tmp_path / "f", digest=digest(BODY))
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "words"),
    [("good", "the checksum sha256:"), ("cut", "of 1,024,000 bytes|cut connection"), ("missing", "404")],
)
def test_downloads_that_fail(server: str, tmp_path: Path, name: str, words: str) -> None:
    """A wrong checksum, a cut connection and a missing file leave nothing and tell how to fetch it by hand."""
    expected = digest(b"something else") if name == "good" else digest(BODY)
    with pytest.raises(DownloadError, match=words) as caught:
        download(server + name, tmp_path / "f", digest=expected)
    assert server + name in caught.value.fix
    assert expected in caught.value.fix
    assert str(tmp_path / "f") in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_no_connection(tmp_path: Path) -> None:
    """Without a network, and for another kind of address, the error is a DownloadError."""
    for url in ("http://127.0.0.1:9/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[bad/x"):
        with pytest.raises(DownloadError, match="by hand"):
            download(url, tmp_path / "f", digest=digest(BODY))


def test_too_large_and_no_room(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the limit is given up, and a place that cannot be written is a StorageError."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        download(server + "good", tmp_path / "file" / "below", digest=digest(BODY))
    monkeypatch.setattr(fetching, "MAX_DOWNLOAD", 1000)
    with pytest.raises(DownloadError, match="more than 1,000"):
        download(server + "good", tmp_path / "f", digest=digest(BODY))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LINNAEUS_CACHE names the cache, otherwise it lies in the home folder."""
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LINNAEUS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "linnaeus"


@pytest.fixture
def tiny(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give named sets that the server holds, and an empty cache whose folder of data it returns."""
    monkeypatch.delenv("LINNAEUS_DATA", raising=False)
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path))
    mirrors = ("http://127.0.0.1:9/", server)
    files = {"set": archive(), "evil": archive("../../evil")}
    for name, data in files.items():
        remote = Remote(name=f"{name}.tar.gz", digest=digest(data, "md5"), mirrors=mirrors)
        monkeypatch.setitem(NAMED, name, NamedSet(folder=name, files=(remote,)))
    plain = Remote(name="good", digest=digest(BODY), mirrors=mirrors)
    monkeypatch.setitem(NAMED, "plain", NamedSet(folder="plain", files=(plain,)))
    return tmp_path / "data"


def test_locate_fetches_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is fetched from the first mirror that answers, unpacked whole, and found there the next time."""
    assert (locate("set") / "train.bin").read_bytes() == b"hello"
    assert (locate("plain") / "good").read_bytes() == BODY
    monkeypatch.setattr(named, "download", None)
    assert locate("set") == tiny / "set"
    assert locate("plain") == tiny / "plain"


def test_locate_prefers_the_data_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set below LINNAEUS_DATA is used as it lies there."""
    (tmp_path / "mine" / "set").mkdir(parents=True)
    monkeypatch.setenv("LINNAEUS_DATA", str(tmp_path / "mine"))
    assert locate("set") == tmp_path / "mine" / "set"
    assert not tiny.exists()


def test_a_file_put_there_by_hand_is_checked(tiny: Path) -> None:
    """A file in the cache is used if its checksum is right and named if it is not."""
    tiny.mkdir()
    (tiny / "set.tar.gz").write_bytes(gzip.compress(b"another"))
    with pytest.raises(DownloadError, match="Delete it"):
        locate("set")


def test_an_archive_cannot_write_outside(tiny: Path, tmp_path: Path) -> None:
    """An archive with a path that climbs out is refused and leaves no folder."""
    with pytest.raises(DownloadError, match="archive"):
        locate("evil")
    assert not (tiny / "evil").exists()
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_unknown_names() -> None:
    """A name mistyped offers the nearest."""
    with pytest.raises(DataError, match="Did you mean mnist"):
        locate("mnits")
