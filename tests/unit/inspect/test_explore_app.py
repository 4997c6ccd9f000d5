"""The answers of the server of `mvmae explore`, and the requests it refuses."""

import asyncio
import base64
import io
import json
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mvmae import encoders
from mvmae.config.figures import ExploreConfig
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder
from mvmae.inspect.explore import embeddings, run
from mvmae.inspect.explore.embeddings import EmbeddingIndex
from mvmae.inspect.explore.server import Workers
from mvmae.inspect.explore.session import Session
from mvmae.method.model import MaskedAutoencoder
from mvmae.method.vit import Encoder

testclient = pytest.importorskip("starlette.testclient")

from mvmae.inspect.explore.app import build_app  # noqa: E402  (needs starlette)


class Remembering(Encoder):
    """An encoder that keeps all patches it was given, hidden ones too."""

    def encode(self, patches, ids_keep=None):
        self.given = patches
        return super().encode(patches, ids_keep)


class Copying(MaskedAutoencoder):
    """An autoencoder whose prediction is the image."""

    def decode(self, tokens, masking):
        return self.encoder.given


def copying(tiny: PretrainConfig) -> OpenedAutoencoder:
    config = replace(tiny, objective=replace(tiny.objective, normalize_targets=False))
    model = Copying(config.model)
    model.encoder.__class__ = Remembering
    return OpenedAutoencoder(model.eval(), config)


class Unused(Workers):
    """Workers that nobody has asked for anything."""

    seconds = 9.0

    def idle(self) -> float:
        return self.seconds


FINISHED = {"unreadable": 0, "finished": True, "error": "", "has_basis": True}


def serve(data, *, decoder=None, embed=True, opened=None, **options):
    """Start a server for an untrained encoder of 4 x 4 patches on 64 x 64 pixels."""
    config = ExploreConfig(encoder="random:vit_pico", image_size=64, data=(str(data),), **options)
    networks, reason = run.open_networks(config, torch.device("cpu"))
    if decoder:
        networks, reason = networks._replace(decoder=decoder), ""
    networks = networks._replace(opened=opened or networks.opened)
    source = open_source(config.data, networks.opened.encoder.in_channels)
    order = np.random.default_rng(0).permutation(len(source))
    embedded = EmbeddingIndex(
        source, order[: config.most].tolist(), networks.opened.encoder.embed_dim
    )
    if embed:
        embeddings.embed_in_background(embedded, networks, Unused())
    facts = run.describe(config, networks.opened, source, reason)
    session = Session(networks, source, order, embedded, facts)
    return testclient.TestClient(build_app(session, Workers(), names={"testserver"}))


@pytest.fixture
def client(image_folder, tiny):
    return serve(image_folder(per_class=6, suffix=".png"), decoder=copying(tiny))


def ask(client, path, **values):
    answer = client.post(f"/api/{path}", content=json.dumps(values))
    assert answer.status_code == 200, answer.text
    return answer.json()


def pixels(uri: str) -> np.ndarray:
    head, content = uri.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        return np.asarray(picture).astype(int)


def complaint(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in answer.text
    return answer.json()["message"]


# reconstructions


def test_a_copying_model_predicts_the_image(client):
    found = ask(client, "reconstruct", image="d3", mask_ratio=0.5, seed=1)
    shown = {name: pixels(uri) for name, uri in found["pictures"].items()}
    assert np.abs(shown["prediction"] - shown["original"]).max() <= 1
    assert np.abs(shown["pasted"] - shown["original"]).max() <= 1
    assert shown["original"].shape == (16, 16, 3)
    assert found["error"] == pytest.approx(0, abs=1e-10)


def test_hidden_patches_are_gray_and_visible_ones_unchanged(client):
    found = ask(client, "reconstruct", image="d0", visible=[5, 10])
    shown = {name: pixels(uri) for name, uri in found["pictures"].items()}
    assert found["visible"] == [5, 10]
    for patch in range(16):
        row, column = 4 * (patch // 4), 4 * (patch % 4)
        area = np.s_[row : row + 4, column : column + 4]
        if patch in (5, 10):
            assert (shown["masked"][area] == shown["original"][area]).all()
        else:
            assert (np.abs(shown["masked"][area] - 127.5) < 1).all()


def test_a_larger_share_hides_more_of_the_same_mask(client):
    few, many = (
        set(ask(client, "reconstruct", image="d0", mask_ratio=ratio, seed=4)["visible"])
        for ratio in (0.75, 0.25)
    )
    assert (len(few), len(many)) == (4, 12)
    assert few < many
    other = ask(client, "reconstruct", image="d0", mask_ratio=0.75, seed=5)["visible"]
    assert set(other) != few


@pytest.mark.parametrize(("ratio", "count"), [(0, 15), (1, 1)])
def test_the_ends_of_the_slider_leave_one_patch_visible_or_hidden(client, ratio, count):
    assert len(ask(client, "reconstruct", image="d0", mask_ratio=ratio)["visible"]) == count


def test_the_first_mask_hides_as_many_patches_as_training_did(image_folder, tiny):
    model = replace(tiny.model, image_size=32)  # 64 patches at 0.8: 12 visible
    client = serve(image_folder(), decoder=copying(replace(tiny, model=model)))
    about = client.get("/api/about").json()["decoder"]
    assert about["hidden"] == 52 == 64 - model.num_visible
    # what the page sends: the slider moves in steps of a patch
    found = ask(client, "reconstruct", image="d0", mask_ratio=about["hidden"] / 64)
    assert len(found["visible"]) == model.num_visible
    script = client.get("/explore.js").text
    assert '$("ratio").value = hidden / total;' in script.partition("about.decoder;")[2]


def test_without_a_decoder_the_page_says_why(image_folder):
    client = serve(image_folder())
    about = client.get("/api/about").json()
    assert about["decoder"] is None
    assert "only a run of mvmae pretrain has a decoder" in about["no_decoder"]
    answer = client.post("/api/reconstruct", content='{"image": "d0"}')
    assert complaint(answer, 400) == about["no_decoder"]


# attention, similar patches and features


@pytest.mark.parametrize("patch", [0, 6, 15])
def test_the_similarity_map_peaks_at_the_chosen_patch(client, patch):
    found = ask(client, "similar", image="d1", patch=patch)
    assert len(found["values"]) == 16
    assert int(np.argmax(found["values"])) == patch
    assert found["values"][patch] == pytest.approx(1, abs=1e-3)
    bright = pixels(found["map"]).sum(-1)
    side = bright.shape[0] // 4
    means = bright.reshape(4, side, 4, side).mean(axis=(1, 3))
    assert int(means.argmax()) == patch


def test_attention_has_one_map_or_one_per_head(client):
    heads = client.get("/api/about").json()["heads"]
    rollout = ask(client, "attention", image="d0")["maps"]
    block = ask(client, "attention", image="d0", block=0)["maps"]
    last = ask(client, "attention", image="d0", block=3, heads=True)["maps"]
    assert (len(rollout), len(block), len(last)) == (1, 1, heads)
    assert len({rollout[0], block[0], *last}) == 2 + heads
    assert pixels(rollout[0]).shape == (384, 384, 3)


def test_patch_colours_are_fitted_to_all_images_or_to_one(client):
    common, alone = (ask(client, "features", image="d0", alone=alone) for alone in (False, True))
    assert (common["common"], alone["common"]) == (True, False)
    assert pixels(common["map"]).shape == (4, 4, 3)
    assert common["map"] != alone["map"]
    assert len(np.unique(pixels(alone["map"]).reshape(-1, 3), axis=0)) > 8


def test_before_embedding_colours_are_of_one_image_and_there_are_no_neighbours(image_folder):
    client = serve(image_folder(), embed=False)
    assert ask(client, "features", image="d0")["common"] is False
    assert ask(client, "neighbours", image="d0") == {"images": [], "among": 0}
    assert client.get("/api/progress").json() == {
        "done": 0,
        "total": 8,
        "unreadable": 0,
        "finished": False,
        "error": "",
        "has_basis": False,
    }
    assert client.get("/api/typical").json() == {"most": [], "least": []}


def test_gray_and_oblong_images_keep_their_mode_and_shape(image_folder):
    opened = encoders.open_encoder("random:vit_pico", (32, 64), 1)
    client = serve(image_folder(), opened=opened)
    assert client.get("/api/about").json()["grid"] == [2, 4]
    with Image.open(io.BytesIO(client.get("/api/images/d0").content)) as picture:
        assert (picture.mode, picture.size) == ("L", (384, 192))
    with Image.open(io.BytesIO(client.get("/api/thumbnails/0").content)) as picture:
        assert (picture.mode, picture.size) == ("L", (128, 64))
    assert pixels(ask(client, "features", image="d0")["map"]).shape == (2, 4, 3)
    found = ask(client, "similar", image="d0", patch=7)
    assert pixels(found["map"]).shape == (192, 384, 3)
    assert int(np.argmax(found["values"])) == 7


# neighbours


def test_a_copy_is_the_nearest_image_and_the_image_itself_is_left_out(image_folder):
    folder = image_folder(suffix=".png")
    (folder / "red" / "copy.png").write_bytes((folder / "red" / "1.png").read_bytes())
    client = serve(folder)
    names = {}
    for card in client.get("/api/gallery").json()["images"]:
        names[card["name"]] = card["image"]
    found = ask(client, "neighbours", image=names["red/1.png"], count=50)
    assert found["among"] == 9
    assert len(found["images"]) == 8
    assert found["images"][0]["name"] == "red/copy.png"
    assert found["images"][0]["label"] == "red"
    assert found["images"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert names["red/1.png"] not in [near["image"] for near in found["images"]]
    ranked = [near["similarity"] for near in found["images"]]
    assert ranked == sorted(ranked, reverse=True)


def test_uploading_an_image_of_the_data_finds_it(image_folder):
    folder = image_folder(suffix=".png")
    client = serve(folder)
    upload = client.post("/api/images", content=(folder / "blue" / "2.png").read_bytes()).json()
    nearest = ask(client, "neighbours", image=upload["image"], count=1)["images"][0]
    assert nearest["name"] == "blue/2.png"
    shown = client.get(f"/api/images/{upload['image']}")
    with Image.open(io.BytesIO(shown.content)) as picture:
        assert picture.size == (384, 384)
        colour = np.asarray(picture).mean(axis=(0, 1))
    with Image.open(folder / "blue" / "2.png") as picture:
        assert np.abs(colour - np.asarray(picture).mean(axis=(0, 1))).max() < 6


def test_at_most_the_requested_images_are_embedded(image_folder):
    client = serve(image_folder(per_class=10), most=7)
    assert ask(client, "neighbours", image="d0", count=50)["among"] == 7
    assert client.get("/api/gallery?count=200").json()["total"] == 20


def test_an_odd_image_is_the_least_typical(image_folder):
    folder = image_folder(classes=("a", "b"), per_class=15, suffix=".png")
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    Image.fromarray(stripes).save(folder / "a" / "odd.png")
    found = serve(folder).get("/api/typical").json()
    assert found["least"][0]["name"] == "a/odd.png"
    assert len(found["least"]) == len(found["most"]) == 8
    assert found["most"][0]["similarity"] > found["least"][0]["similarity"]


def test_unreadable_images_are_passed_over(image_folder):
    folder = image_folder()
    (folder / "red" / "0.jpg").write_bytes(b"no image")
    client = serve(folder)
    assert client.get("/api/progress").json()["unreadable"] == 1
    (card,) = (
        card for card in client.get("/api/gallery").json()["images"] if card["name"] == "red/0.jpg"
    )
    number = card["image"][1:]
    with Image.open(io.BytesIO(client.get(f"/api/thumbnails/{number}").content)) as picture:
        assert np.ptp(np.asarray(picture)) <= 1
    message = complaint(client.get(f"/api/images/{card['image']}"), 404)
    assert message.startswith("red/0.jpg cannot be read: ")


def test_the_background_pauses_while_a_person_is_active(image_folder):
    """It reads ahead, and computes only after a pause without requests."""
    config = ExploreConfig(encoder="random:vit_pico", image_size=64, data=(str(image_folder()),))
    networks, _ = run.open_networks(config, torch.device("cpu"))
    source = open_source(config.data, 3)
    embedded = EmbeddingIndex(source, range(8), networks.opened.encoder.embed_dim)
    workers = Unused()
    workers.seconds = 0.0
    thread = threading.Thread(
        target=embeddings.embed_in_background, args=(embedded, networks, workers)
    )
    thread.start()
    time.sleep(0.5)
    assert embedded.progress()["done"] == 0
    workers.seconds = 9.0
    thread.join(20)
    assert embedded.progress() == FINISHED | {"done": 8, "total": 8}


def test_cached_embeddings_are_the_computed_ones(image_folder, tmp_path):
    config = ExploreConfig(encoder="random:vit_pico", image_size=64, data=(str(image_folder()),))
    networks, _ = run.open_networks(config, torch.device("cpu"))
    source = open_source(config.data, 3)
    width = networks.opened.encoder.embed_dim
    made, again = (EmbeddingIndex(source, [5, 1, 3, 0], width) for _ in range(2))
    embeddings.embed_in_background(made, networks, Unused())
    file = embeddings.cache_file(tmp_path, made, networks)
    assert not embeddings.load(file, again)
    embeddings.save(file, made, made.basis)
    assert embeddings.load(file, again)
    assert torch.equal(made.vectors, again.vectors)
    assert again.indices.tolist() == [5, 1, 3, 0]
    assert torch.equal(made.basis.components, again.basis.components)
    assert again.progress() == FINISHED | {"done": 4, "total": 4}
    other = EmbeddingIndex(source, [5, 1, 3], width)
    assert embeddings.cache_file(tmp_path, other, networks) != file
    file.write_bytes(file.read_bytes()[:-9])
    assert not embeddings.load(file, EmbeddingIndex(source, [5, 1, 3, 0], width))


# refused requests


def bomb() -> bytes:
    """A PNG of a kilobyte whose header claims 10 billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 999))


def jpeg_bomb() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    content = stream.getvalue()
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + b"\xff\xff\xff\xff" + content[at + 9 :]


def truncated_png() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()[:2000]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"words and no picture", "not an image of a supp", id="text"),
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(
            b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + b"\0" * 40,
            "the JPEG is damaged|cannot",
            id="jpeg",
        ),
        pytest.param(bomb(), "bomb|pixels", id="bomb"),
        pytest.param(jpeg_bomb(), "bomb", id="jpeg bomb"),
        pytest.param(truncated_png(), "cannot be read", id="truncated"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a supp", id="postscript"),
        pytest.param(
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "not an image of a supported kind",
            id="svg",
        ),
    ],
)
def test_a_bad_upload_gets_a_plain_message(client, content, says):
    message = complaint(client.post("/api/images", content=content), 400)
    assert re.search(says, message), message
    assert len(message) < 300


def test_an_upload_of_fifty_megabytes_is_refused(client):
    large = client.post("/api/images", content=b"\xff\xd8\xff" + b"0" * (50 * 2**20))
    assert complaint(large, 413) == "That file is too large: at most 32 MB."


def test_a_large_upload_without_a_length_is_refused_too(client):
    pieces = (b"0" * 2**20 for _ in range(50))
    assert complaint(client.post("/api/images", content=pieces), 413).startswith("That file is too")


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("reconstruct", "{", "is not JSON"),
        ("reconstruct", b"\xff\xfe", "is not JSON"),
        ("reconstruct", "[" * 100_000, "is not JSON"),
        ("reconstruct", "[]", "is not a JSON object"),
        ("reconstruct", "{}", "image must name"),
        ("reconstruct", '{"image": 5}', "image must name"),
        ("reconstruct", '{"image": "d0", "mask_ratio": 1.5}', "mask_ratio must be a number"),
        ("reconstruct", '{"image": "d0", "mask_ratio": NaN}', "mask_ratio must be a number"),
        ("reconstruct", '{"image": "d0", "mask_ratio": "0.5"}', "mask_ratio must be a number"),
        ("reconstruct", '{"image": "d0", "seed": -1}', "seed must be a whole number"),
        ("reconstruct", '{"image": "d0", "seed": 1e400}', "seed must be a whole number"),
        ("reconstruct", '{"image": "d0", "visible": []}', "visible must be a list"),
        ("reconstruct", '{"image": "d0", "visible": [16]}', "visible must be a list"),
        ("reconstruct", '{"image": "d0", "visible": [true]}', "visible must be a list"),
        ("reconstruct", '{"image": "d0", "visible": {"a": 1}}', "visible must be a list"),
        (
            "reconstruct",
            json.dumps({"image": "d0", "visible": list(range(16))}),
            "at least one must stay visible, and one hidden",
        ),
        ("attention", '{"image": "d0", "block": 4}', "block must be a whole number from 0 to 3"),
        ("attention", '{"image": "d0", "block": -1}', "block must be a whole number"),
        ("attention", '{"image": "d0", "heads": true}', "heads belong to one block"),
        ("attention", '{"image": "d0", "heads": 1}', "heads must be true or false"),
        ("similar", '{"image": "d0", "patch": 16}', "patch must be a whole number from 0 to 15"),
        ("similar", '{"image": "d0", "patch": true}', "patch must be a whole number"),
        ("features", '{"image": "d0", "alone": "no"}', "alone must be true or false"),
        ("neighbours", '{"image": "d0", "count": 0}', "count must be a whole number"),
    ],
)
def test_wrong_values_are_refused(client, path, content, says):
    assert says in complaint(client.post(f"/api/{path}", content=content), 400)


@pytest.mark.parametrize(
    "image", ["d12", "d-1", "d1.5", "d٣", "d" + "9" * 40, "u" + "0" * 16, "../../etc/passwd", "d"]
)
def test_a_missing_image_is_refused(client, image):
    for path in ("reconstruct", "attention", "similar", "features", "neighbours"):
        answer = client.post(f"/api/{path}", content=json.dumps({"image": image}))
        assert "image" in complaint(answer, 404)


def test_a_request_that_is_too_large_is_refused(client):
    answer = client.post("/api/similar", content="[" + "1," * 200_000 + "1]")
    assert "too large" in complaint(answer, 413)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/thumbnails/99", 400),
        ("/api/thumbnails/-1", 400),
        ("/api/cards/12", 400),
        ("/api/thumbnails/..%2F..%2Fetc%2Fpasswd", 404),
        ("/api/images/%2Fetc%2Fpasswd", 404),
        ("/api/images/d99", 404),
        ("/api/gallery?offset=x", 400),
        ("/api/gallery?count=0", 400),
        ("/api/gallery?count=100000", 400),
        ("/etc/passwd", 404),
        ("/app.py", 404),
        ("/%2e%2e/app.py", 404),
        ("/api/reconstruct", 405),
    ],
)
def test_unknown_addresses_are_refused(client, path, status):
    complaint(client.get(path), status)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8017", "testserver.evil.example", "", "a@testserver"]
)
def test_the_server_answers_to_its_own_name_only(client, host):
    for path in ("/", "/explore.js", "/api/about", "/api/images/d0"):
        answer = client.get(path, headers={"host": host})
        assert "This server has another name" in complaint(answer, 400)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://testserver:99"])
def test_other_sites_cannot_send_requests(client, origin):
    answer = client.post("/api/similar", content='{"image": "d0"}', headers={"origin": origin})
    assert complaint(answer, 400) == "Requests from other sites are refused."


@pytest.mark.parametrize(
    "how",
    [
        {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {},
    ],
)
def test_pages_of_other_sites_cannot_load_pictures(client, how):
    for path in ("/", "/api/about", "/api/images/d0"):
        answer = client.get(path, headers={"sec-fetch-site": "cross-site", **how})
        assert complaint(answer, 400) == "Requests from other sites are refused."


def test_links_to_the_page_can_be_followed(client):
    link = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    for site in ("cross-site", "none", "same-origin"):
        assert client.get("/", headers={"sec-fetch-site": site, **link}).status_code == 200


def test_an_aborted_upload_is_not_an_internal_error(client):
    """The socket closes in the middle of a body."""
    coming = [
        {"type": "http.request", "body": b"xxxx", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = []

    async def receive() -> dict:
        return coming.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/images",
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
    }
    with ThreadPoolExecutor() as thread:  # has no event loop, unlike maybe this thread
        thread.submit(lambda: asyncio.run(client.app(scope, receive, send))).result()
    assert [message.get("status") for message in sent] == [400, None]
    assert sent[1]["body"] == b""


def test_parts_of_a_data_set_are_not_classes(image_folder):
    for part in ("train", "val"):
        image_folder(f"images/{part}", per_class=2)
    client = serve(image_folder("images", classes=()), embed=False)
    labels = {client.get(f"/api/cards/{index}").json()["label"] for index in range(8)}
    assert labels == {"blue", "red"}


def test_even_attention_is_drawn_even(tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    client = serve(tmp_path, embed=False)
    for question in ({}, {"block": 0}, {"block": 1, "heads": True}):
        for one in ask(client, "attention", image="d0", **question)["maps"]:
            assert np.ptp(pixels(one), axis=(0, 1)).max() < 40


def test_its_own_page_can_send_requests(client):
    headers = {"origin": "http://testserver"}
    found = client.post("/api/similar", content='{"image": "d0"}', headers=headers)
    assert found.status_code == 200


def test_every_answer_has_the_security_headers(client):
    for answer in (
        client.get("/"),
        client.get("/api/about"),
        client.get("/nothing"),
        client.get("/", headers={"host": "evil.example"}),
        client.post("/api/images", content=b""),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/").text
    for name in ("explore.css", "explore.js", "icon.svg"):
        assert f'"/{name}"' in page
        assert client.get(f"/{name}").status_code == 200
    for name in re.findall(r'from "\./(\w+\.js)"', client.get("/explore.js").text):
        assert client.get(f"/{name}").headers["content-type"].startswith("text/javascript")
    assert "http" not in page
    assert "<script>" not in page
    assert "style=" not in page
    assert "innerHTML" not in client.get("/explore.js").text


def test_file_names_are_passed_on_unchanged(image_folder):
    folder = image_folder()
    odd = folder / "red" / "<img src=x onerror=alert(1)>.jpg"
    (folder / "red" / "0.jpg").rename(odd)
    (folder / "red" / "1.jpg").rename(folder / "red" / "\udcff.jpg")
    names = [card["name"] for card in serve(folder).get("/api/gallery").json()["images"]]
    assert "red/<img src=x onerror=alert(1)>.jpg" in names
    assert r"red/\udcff.jpg" in names
