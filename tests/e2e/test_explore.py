"""`mvmae explore` as a person starts it: what it prints, whom it lets in, how it stops."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from mvmae.cli.main import main
from mvmae.inspect.explore.server import is_loopback, listen, own_names, page_url

pytest.importorskip("uvicorn")

A_SECOND = (
    "--recipe demo --model.image-size 16 --model.decoder-dim 32 --batch-size 8 --epochs 1 "
    "--warmup-epochs 0 --device cpu --workers 0"
)
SOON = 120  # seconds that a busy machine may take to start
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run, and images in two colours."""
    home = tmp_path_factory.mktemp("home")
    for label, colour in (("blue", (20, 40, 200)), ("red", (200, 40, 20))):
        (home / "images" / label).mkdir(parents=True)
        for index in range(8):
            shade = tuple(value + 3 * index for value in colour)
            Image.new("RGB", (20, 16), shade).save(home / "images" / label / f"{index}.png")
    (home / "empty").mkdir()
    (home / "broken").mkdir()
    (home / "broken" / "a.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(f"pretrain images --out run {A_SECOND}".split()) == 0
    return home


@pytest.fixture
def start(home):
    """Start the command and wait for the address; return the process, the address, the output."""
    processes = []

    def start_process(*words: str) -> tuple[subprocess.Popen, str, str]:
        command = [sys.executable, "-m", "mvmae", "explore", *words]
        process = subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        output = ""
        while not (found := re.search(r"^open (http\S+)", output, re.MULTILINE)):
            line = process.stdout.readline()
            assert line, output  # the process ended
            output += line
        return process, found[1], output

    yield start_process
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read(url: str, values: dict | None = None, **headers: str) -> dict:
    content = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(url, data=content, headers=headers)
    with DIRECT.open(request, timeout=SOON) as answer:
        return json.load(answer)


def read_rest(process: subprocess.Popen) -> str:
    """Read the output to its end; `communicate` would lose lines that are already buffered."""
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(timeout=SOON)
    return output


def wait_until_finished(url: str) -> dict:
    """Wait until everything is embedded and return the progress."""
    for _ in range(10 * SOON):
        if (progress := read(f"{url}api/progress"))["finished"]:
            return progress
        time.sleep(0.1)
    raise AssertionError(progress)


def test_a_run_is_explored_until_control_c(start, home, free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        process, url, output = start("run", "images", "--port", str(free_port))
        port = int(url.rstrip("/").split(":")[-1])
        assert free_port < port <= free_port + 50
        assert f"port {free_port} is in use: using {port} instead" in output
    assert "run on images: 16 images" in output
    assert read(f"{url}api/about")["decoder"]["mask_ratio"] == 0.8
    assert wait_until_finished(url)["done"] == 16
    assert len(read(f"{url}api/reconstruct", {"image": "d0", "mask_ratio": 0.5})["visible"]) == 8
    near = read(f"{url}api/neighbours", {"image": "d0", "count": 7})["images"]
    assert {one["label"] for one in near} == {"blue"}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        read(f"{url}api/about", Host="evil.example")
    deadline = time.monotonic() + 10
    while not list((home / "run" / "cache").glob("explore-*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out = read_rest(process)
    assert process.returncode == 0
    assert out == "stopped\n"
    assert is_free(port)


@pytest.mark.slow
def test_with_json_the_last_line_is_the_result(start):
    words = ("random:vit_pico", "images", "--image-size", "32", "--port", "0", "--json")
    process, url, output = start(*words)
    read(f"{url}api/progress")
    process.send_signal(signal.SIGINT)
    out = read_rest(process)
    emitted = [json.loads(line) for line in (output + out).splitlines() if line.startswith("{")]
    address, result = {"event": "address"}, {"event": "result", "command": "explore"}
    assert emitted == [address | {"url": url}, result | {"url": url}]


@pytest.mark.slow
def test_an_encoder_alone_on_all_addresses_warns_and_stops_on_a_signal(start, home):
    before = sorted(home.iterdir())
    process, url, output = start(
        "random:vit_pico", "images", "--image-size", "32", "--host", "0.0.0.0", "--port", "0"
    )
    assert "anyone who can reach port" in output
    assert "no reconstructions: random:vit_pico is an encoder alone" in output
    assert url.startswith("http://127.0.0.1:")
    port = url.rstrip("/").split(":")[-1]
    assert read(f"{url}api/about", Host=f"192.0.2.7:{port}")["decoder"] is None
    with pytest.raises(urllib.error.HTTPError, match="400"):
        read(f"{url}api/about", Host="evil.example")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SOON)
    assert process.returncode == 143
    assert sorted(home.iterdir()) == before  # looking at an encoder creates no folder


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
    return True


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "ENCODER"),
        ("gone", "no such encoder: gone"),
        ("empty", "empty holds no encoder"),
        ("random:vit_pic", "did you mean 'vit_pico'"),
        ("run gone", "no such folder: gone"),
        ("run empty", "no images below empty"),
        ("run broken", "none of the 1 images of broken can be read"),
        ("run images --port 65536", "port must be between 0 and 65535, not 65536"),
        ("run images --port=-1", "port must be between 0 and 65535"),
        ("run images --port http", "'http' is not a whole number"),
        ("run images --host http://127.0.0.1", "is not an address: name one such as 127.0.0.1"),
        ("run images --host nothing.invalid", "is not a known address"),
        ("run images --host 192.0.2.7", "cannot be served on"),
        ("run images --host 127.0.0.1:80", "is not a known address"),
        ("run images --most 0", "most must be at least 1"),
        ("run images --image-size 17", "17"),
        ("run images --prot 8000", "unknown option --prot: did you mean --port"),
        ("run images run", "must all be folders|holds no image|no images"),
    ],
)
def test_mistakes_are_refused_in_one_line(home, monkeypatch, capsys, words, says):
    monkeypatch.chdir(home)
    capsys.readouterr()
    assert main(["explore", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvmae: ")
    assert re.search(says, line), line


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_missing_package_is_named(home, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(home)
    assert main(["explore", "run"]) == 2
    assert "pip install 'mvmae[explore]'" in capsys.readouterr().err


def test_port_zero_means_any_free_port():
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as other:
        assert page_url(one, "127.0.0.1") != page_url(other, "127.0.0.1")
        assert page_url(one, "127.0.0.1").startswith("http://127.0.0.1:")


def test_an_ipv6_address_is_in_brackets():
    try:
        sock = listen("::1", 0)
    except Exception:
        pytest.skip("no IPv6 here")
    with sock:
        assert page_url(sock, "::1") == f"http://[::1]:{sock.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1")),
        *((host, False) for host in ("0.0.0.0", "192.0.2.7", "::", "somewhere.example")),
    ],
)
def test_only_this_machine_can_reach_a_loopback_address(host, local):
    assert is_loopback(host) is local


def test_the_server_has_the_names_of_its_host_and_this_machine():
    assert {"box.example", "localhost", socket.gethostname().lower()} <= own_names("Box.example")
