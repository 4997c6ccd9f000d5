"""Tar files at an address: a server of this test's own, which answers for parts of files."""

import multiprocessing
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from shard_files import image, tar

from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources import remote
from mvmae.data.sources.base import labels, stamp
from mvmae.data.sources.open import open_source
from mvmae.data.sources.remote import Cache
from mvmae.errors import UserError

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


class Server(ThreadingHTTPServer):
    """Files of a folder, their parts, and what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, list[tuple[str, str, int]]()
        self.fails = self.ranges = 0
        self.has_ranges = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def parts(self) -> list[int]:
        """Bytes sent of tar files, an answer each."""
        return [
            size for command, path, size in self.asked if command == "GET" and path.endswith(".tar")
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        file = self.server.folder / path.lstrip("/")
        if self.server.fails:
            self.server.fails -= 1
            return self.answer(503, b"")
        if not file.is_file():
            return self.answer(404, b"")
        content, headers = file.read_bytes(), {"ETag": f'"{file.stat().st_mtime_ns}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        headers["Accept-Ranges"] = "bytes" if self.server.has_ranges else "none"
        if asked and self.server.has_ranges:
            first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], headers)
        return self.answer(200, content, headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.server.asked.append((self.command, self.path.partition("?")[0], len(content)))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_words: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MVMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02))
    (tmp_path / "web").mkdir()
    served = Server(tmp_path / "web")
    thread = threading.Thread(target=served.serve_forever, args=(0.05,))
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def shards(server) -> Path:
    """Two tar files of three images each, in two classes."""
    for shard in range(2):
        tar(
            server.folder / f"s-{shard}.tar",
            {f"{'xy'[n % 2]}/{n}.png": image(10 * shard + n) for n in range(3)},
        )
    return server.folder


def open_shards(server, name: str = "s-{0..1}.tar"):
    return open_source([f"{server.address}/{name}"], 3)


def cached(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("blocks/*/*"))


def test_images_at_an_address_are_those_on_the_disk(server, shards):
    there, here = open_shards(server), open_source([str(shards)], 3)
    assert len(there) == 6
    assert there.classes == here.classes == ("x", "y")
    assert labels(there).tolist() == labels(here).tolist()
    for index in (5, 0, 3, 1, 4, 2):
        assert torch.equal(there.read(index), here.read(index))
    assert there.path(4) == f"{server.address}/s-1.tar/y/1.png"


def test_each_byte_is_sent_once_and_then_lies_in_the_cache(server, shards, tmp_path):
    source = open_shards(server)
    for _ in range(2):
        for index in range(6):
            source.content(index)
    sizes = [(shards / f"s-{shard}.tar").stat().st_size for shard in range(2)]
    assert sum(server.parts()) == sum(sizes) == cached(tmp_path / "cache")
    server.asked.clear()
    again = open_shards(server)
    for index in range(6):
        assert again.content(index) == source.content(index)
    assert server.parts() == []
    assert stamp(again) == stamp(source)


def test_an_index_beside_the_tar_file_saves_reading_all_of_it(server, shards, capsys):
    open_source([str(shards)], 3)  # writes them
    source = open_shards(server)
    assert server.parts() == []
    assert source.content(5) == image(12)
    assert "reading the whole file" not in capsys.readouterr().err


def test_a_damaged_index_at_the_address_is_not_believed(server, shards, capsys):
    open_source([str(shards)], 3)
    for file in shards.glob("*.index"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert open_shards(server).content(2) == image(2)
    assert capsys.readouterr().err.count("reading the whole file") == 2


def test_what_does_not_fit_into_the_cache_is_sent_an_image_at_a_time(
    server, shards, tmp_path, monkeypatch, capsys
):
    open_source([str(shards)], 3)
    monkeypatch.setenv("MVMAE_CACHE_GB", "0")
    source = open_shards(server)
    assert "each image is fetched when it is needed" in capsys.readouterr().err
    assert [source.content(index) for index in (4, 4)] == [image(11)] * 2
    assert server.parts() == [len(image(11))] * 2
    assert cached(tmp_path / "cache") == 0


def test_a_file_that_changed_is_fetched_again(server, shards):
    assert open_shards(server, "s-0.tar").content(1) == image(1)
    facts = (shards / "s-0.tar").stat()
    tar(shards / "s-0.tar", {f"{'xy'[n % 2]}/{n}.png": image(7 - n) for n in range(3)})
    os.utime(shards / "s-0.tar", ns=(0, facts.st_mtime_ns + 10**9))
    assert open_shards(server, "s-0.tar").content(1) == image(6)


def test_a_server_that_fails_for_a_while_is_asked_again(server, shards):
    source = open_shards(server)
    source.storage.cache.folder = shards.parent / "another"
    server.fails = 2
    assert source.content(5) == image(12)
    server.fails = 9
    with pytest.raises(UnreadableImageError, match="cannot be fetched"):
        source.content(0)
    server.fails = 0


def test_a_server_that_sends_whole_files_only_is_refused(server, shards, monkeypatch):
    server.has_ranges = False
    monkeypatch.setattr(remote, "BLOCK", 1024)
    with pytest.raises(UserError, match="does not send parts of files"):
        open_shards(server, "s-0.tar")


class Bucket:
    """A folder, with the three calls of a file system of fsspec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def glob(self, address):
        return [file.name for file in self.folder.glob(address.removeprefix("s3://"))]

    def info(self, address):
        return {"size": len(self.cat_file(address))}

    def cat_file(self, address, start=None, end=None):
        return (self.folder / address.removeprefix("s3://")).read_bytes()[start:end]


def test_a_pattern_stands_for_every_tar_file_that_matches(shards, monkeypatch):
    monkeypatch.setattr("fsspec.filesystem", lambda *args, **options: Bucket(shards))
    source = open_source(["s3://s-*.tar"], 3)
    paths = [source.path(index) for index in range(len(source))]
    assert (paths[0], paths[5]) == ("s3://s-0.tar/x/0.png", "s3://s-1.tar/x/2.png")
    assert source.content(5) == image(12)


def test_signed_addresses_keep_their_key_to_themselves(server, shards, capsys):
    source = open_shards(server, "s-0.tar?key=secret")
    assert source.content(0) == image(0)
    with pytest.raises(UserError, match="no such file") as error:
        open_shards(server, "gone.tar?key=secret")
    assert "secret" not in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.tar", "no such file: http://127.0.0.1"),
        ("s-*.tar", "web servers cannot list files; write"),
        ("text.tar", r"text\.tar is not a tar file"),
    ],
)
def test_addresses_without_tar_files_say_so(server, shards, name, message):
    (shards / "text.tar").write_text("not a tar file" * 100)
    with pytest.raises(UserError, match=message):
        open_shards(server, name)


def test_files_and_addresses_are_not_mixed(server, shards):
    with pytest.raises(UserError, match="some of DATA are addresses"):
        open_source([str(shards / "s-0.tar"), f"{server.address}/s-1.tar"], 3)


def _read_all(source, queue) -> None:
    queue.put([source.content(index) for index in range(len(source))])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # as loaders do on Linux
def test_other_processes_have_connections_of_their_own(server, shards, monkeypatch, method):
    open_source([str(shards)], 3)
    monkeypatch.setenv("MVMAE_CACHE_GB", "0")
    source = open_shards(server)
    first = source.content(0)  # this process has a connection
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_read_all, args=(source, queue))
    process.start()
    found = queue.get(timeout=60)
    process.join(10)
    assert found[0] == first
    assert found == [image(10 * shard + n) for shard in range(2) for n in range(3)]


# The cache


def test_the_blocks_that_were_not_used_for_longest_go_first(tmp_path):
    cache = Cache(tmp_path, limit=4000)
    for number in range(4):
        cache.block("file", number, 1000, lambda number=number: bytes([number]) * 1000)
        name = next(path for path in tmp_path.glob("*/*") if path.name == str(number))
        os.utime(name, ns=(number, number))
    cache.block("file", 0, 1000, lambda: pytest.fail("it is there"))  # used now
    cache.block("file", 4, 1000, lambda: b"4" * 1000)
    cache.sweep()
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["0", "3", "4"]


def test_a_block_that_was_cut_short_is_fetched_again(tmp_path):
    cache = Cache(tmp_path, limit=10**6)
    cache.block("file", 0, 10, lambda: b"0123456789")
    file = next(tmp_path.glob("*/*"))
    file.write_bytes(b"01234")
    assert cache.block("file", 0, 10, lambda: b"0123456789") == b"0123456789"
    assert file.read_bytes() == b"0123456789"


def test_a_cache_that_cannot_be_written_to_costs_time_only(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file", limit=10**6)
    assert cache.block("file", 0, 2, lambda: b"ab") == b"ab"


@pytest.mark.parametrize("said", ["much", "-1", "nan", "inf"])
def test_a_size_of_the_cache_that_is_none_is_refused(server, shards, monkeypatch, said):
    monkeypatch.setenv("MVMAE_CACHE_GB", said)
    with pytest.raises(UserError, match="MVMAE_CACHE_GB"):
        open_shards(server)


@pytest.mark.parametrize(
    ("address", "package"), [("s3://b/a.tar", "s3fs"), ("gs://b/a.tar", "gcsfs")]
)
def test_a_missing_package_is_named(address, package):
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(UserError, match=f"{package}.*pip install 'mvmae.cloud.'"):
            open_source([address], 3)
    else:
        pytest.skip(f"{package} is installed")
