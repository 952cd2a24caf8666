"""Published weights from a server on this machine: fetched, checked, compared, refused, resumed, used.

The files are torchvision's and timm's own networks with random weights; what the libraries say of their files
(address, checksum in the name) is turned to the server, and the rest of the way is the real one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_image

import opsin
from opsin.cli import main
from opsin.data.fetch import Patience
from opsin.errors import CheckpointError, ConfigError, DataError, UnknownName
from opsin.models import licenses, published
from opsin.recipe import ModelSettings
from opsin.run.fetching import get, golden_picture
from opsin.run.starting import hint, starting_point

FAST = Patience(stall=10, tries=2, wait=0.01)
OURS, THEIRS, MIDDLE = "resnet18.imagenet1k_v1", "timm/resnet18.tv_in1k", "timm/test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Server(ThreadingHTTPServer):
    """Serves `files`; `plan` holds what goes wrong with the next requests, in turn."""

    daemon_threads = True
    files: dict[str, bytes]
    plan: list[str]
    ranges: list[str | None]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        sha256 = hashlib.sha256(body).hexdigest()
        if not self.path.startswith("/cdn/") and self.path.endswith(".safetensors"):  # as the hub does
            self.send_response(302)
            self.send_header("Location", f"/cdn{self.path}")
            self.send_header("X-Linked-Etag", f'"{sha256}"')
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.ranges.append(self.headers.get("Range"))
        trouble = self.server.plan.pop(0) if self.server.plan else ""
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if trouble == "flip":
            body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        rest = body[start:]
        length = {"claims more": len(rest) + 999, "truncated": len(rest) // 2}.get(trouble, len(rest))
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"v1"')
        if trouble:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        try:
            half = len(rest) // 2 if trouble in ("drop", "stall", "truncated", "slow") else len(rest)
            self.wfile.write(rest[:half])
            self.wfile.flush()
            if trouble == "stall":
                time.sleep(1)
            if trouble == "slow":
                for i in range(half, len(rest), 4096):
                    self.wfile.write(rest[i : i + 4096])
                    self.wfile.flush()
                    time.sleep(0.05)
        except OSError:
            self.close_connection = True


def _saved(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def random_files() -> dict[str, bytes]:
    """Weight files as published: torchvision's ResNet-18 as .pth, the same for timm, and a tiny ViT of timm."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():  # else running statistics say nothing about being loaded
        for name, buffer in resnet.named_buffers():
            if "running" in name:
                buffer.uniform_(*((-0.1, 0.1) if "mean" in name else (0.5, 1.5)))
        resnet.fc.weight.mul_(10)  # answers as sure as those of trained weights
    state = resnet.state_dict()
    vit = timm.create_model(MIDDLE.removeprefix("timm/"), pretrained=False).state_dict()
    return {
        "pth": _saved(state),
        "resnet": safetensors.torch.save({n: t.contiguous() for n, t in state.items()}),
        "vit": safetensors.torch.save({n: t.contiguous() for n, t in vit.items()}),
    }


@pytest.fixture
def server(random_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.plan, running.ranges = [], []
    digest = hashlib.sha256(random_files["pth"]).hexdigest()[:8]
    pth = f"models/resnet18-{digest}.pth"
    running.files = {pth: random_files["pth"], "resnet.safetensors": random_files["resnet"]}
    running.files |= {"vit.safetensors": random_files["vit"]}
    running.files |= {f"cdn/{name}": data for name, data in running.files.items()}
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    _point_at(running, pth, monkeypatch)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPSIN_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def _point_at(server: Server, pth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries' metadata name the server."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    moved = dataclasses.replace(weights.value, url=f"{server.base}/{pth}")
    monkeypatch.setattr(weights, "_value_", moved)
    monkeypatch.setattr(type(weights), "url", property(lambda self: self.value.url), raising=False)
    addresses = {"timm/resnet18.tv_in1k": "resnet.safetensors", "timm/test_vit.r160_in1k": "vit.safetensors"}
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_url", lambda repo, file: f"{server.base}/{addresses.get(repo, 'nothing')}"
    )


def _left(home: Path) -> list[str]:
    """What is in the cache besides the part of a download."""
    return sorted(p.name for p in home.rglob("*") if p.is_file() and not p.name.endswith((".part", ".part.json")))


def _photo(folder: Path, name: str = "flower.jpg") -> Path:
    Image.fromarray(load_sample_image(name)).save(folder / name.replace(".jpg", ".png"))
    return folder / name.replace(".jpg", ".png")


def _call(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    found = main([*words, "--json"])
    out = capsys.readouterr()
    assert found == code, out.err + out.out
    return json.loads(out.out)


def test_no_address_and_no_checksum_is_typed() -> None:
    root = Path(opsin.__file__).parent
    typed = re.compile(r"download\.pytorch\.org|huggingface\.co|releases/download|\b[0-9a-f]{64}\b|-[0-9a-f]{8}\.pth?")
    text = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in root.rglob("*.py")}
    allowed = "data/catalog/"  # data sets say where they come from and what they must be
    assert not [n for n, words in text.items() if typed.search(words) and not n.startswith(allowed)]
    assert typed.search("https://download.pytorch.org/models/resnet18-f37072fd.pth")


def test_names_are_those_of_the_libraries() -> None:
    one = published.find("resnet50.IMAGENET1K_V2")
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    assert (one.url, one.num_params) == (theirs.url, theirs.meta["num_params"])
    assert one.url.endswith(one.file)
    assert one.sha256
    assert one.sha256 in one.file
    assert published.find("resnet50").tag == torchvision.models.ResNet50_Weights.DEFAULT.name
    assert published.find("imagenet", "resnet18").name == OURS
    hub = published.find("timm/resnet18")
    assert hub.tag == timm.get_pretrained_cfg("resnet18").tag
    assert hub.url.startswith("https://")
    assert hub.license == "apache-2.0"
    names = one.class_names()
    assert len(set(names)) == 1000
    assert names[0] == "tench"
    large = published.find("timm/vit_base_patch16_224.augreg_in21k").class_names()
    assert len(set(large)) == len(large) == 21843, "two classes have the same name"
    with pytest.raises(UnknownName, match=r"resnet18\.imagenet1k_v1"):
        published.find("resnet18.imagenet1k_v7")
    with pytest.raises(CheckpointError, match="No weights are published for 'mlp'"):
        published.find("mlp")
    with pytest.raises(CheckpointError, match="no classifier"):
        published.find("timm/vit_base_patch14_dinov2.lvd142m")


@pytest.mark.parametrize(
    ("text", "known", "free"),
    [
        ("BSD 3-Clause", "bsd-3-clause", True),
        ("Apache License 2.0", "apache-2.0", True),
        ("MIT", "mit", True),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0", False),
        ("gpl-3.0", "gpl-3.0", False),
        ('BSD 3-Clause "New" or "Revised" License', "bsd-3-clause", True),
        ("BSD-2-Clause", "bsd-2-clause", True),
        ("BSD-3-Clause AND CC-BY-NC-4.0", "bsd-3-clause-and-cc-by-nc-4.0", False),
        ("BSD 2-Clause with Commons Clause", "bsd-2-clause-with-commons-clause", False),
        ("BSD-3-Clause-No-Nuclear-License", "bsd-3-clause-no-nuclear-license", False),
        ("(MIT AND Apache License 2.0)", "(mit-and-apache-license-2.0)", True),
        ("other", "unknown", False),
        (None, "unknown", False),
    ],
)
def test_licenses(text: str | None, known: str, free: bool) -> None:
    assert licenses.normalized(text) == known
    assert licenses.is_permissive(text) is free


def test_weights_that_are_not_for_commercial_use_are_refused_until_their_license_is_named() -> None:
    one = next(w for w in torchvision.models.ViT_B_16_Weights if "license" in w.meta)
    swag = licenses.normalized(one.meta["license"])
    assert swag == "cc-by-nc-4.0"
    for accepted in (None, "mit"):
        with pytest.raises(ConfigError, match=r"--accept-license cc-by-nc-4\.0"):
            licenses.require("x", swag, accepted, "--accept-license")
    licenses.require("x", swag, "CC-BY-NC-4.0", "--accept-license")
    research = "timm/convnextv2_tiny.fcmae_ft_in1k"
    assert published.find(research).license == "cc-by-nc-4.0"
    with pytest.raises(ConfigError, match="not for commercial use"):
        get(research)


def test_getting_comparing_predicting(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(_photo(tmp_path))
    missing = _call(capsys, "predict", OURS, photo, code=2)["error"]["message"]
    assert "opsin models get resnet18.imagenet1k_v1" in missing
    found = _call(capsys, "models", "get", "resnet18")
    assert found["license"] == "bsd-3-clause"
    assert found["lineage"]["source"] == OURS
    assert found["compared"]["difference"] <= 1e-4
    asked = len(server.ranges)
    assert get(OURS) == Path(found["bundle"])
    assert len(server.ranges) == asked, "it was fetched again"

    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    library = torchvision.models.resnet18(weights=None)
    library.load_state_dict(torch.load(tmp_path / "home/weights/checkpoints" / found["lineage"]["file"]))
    with torch.no_grad():
        said = library.eval()(weights.transforms()(Image.open(photo))[None])[0].softmax(0)
    top = _call(capsys, "predict", OURS, photo, "--top", "7")["predictions"][0]["top"]
    assert len(top) == 7
    best = said.topk(7)
    names = published.find(OURS).class_names()
    assert [one["class"] for one in top] == [names[i] for i in best.indices]
    assert np.allclose([one["score"] for one in top], best.values, atol=2e-3)

    bundle = opsin.load("resnet18")
    golden = bundle.info["golden"]
    again = bundle.predict(golden_picture()).heads[0].scores
    kept = torch.tensor(golden["logits"]).softmax(0).numpy()
    assert np.allclose(again, kept, atol=1e-5)

    timm_folder = get(THEIRS, tmp_path / "stick")
    assert _left(tmp_path / "stick") == ["bundle.json", "weights.safetensors"]
    both = _call(capsys, "predict", OURS, "--beside", str(timm_folder), "--top", "2", photo)
    (one,) = both["predictions"]
    assert one["agree"]
    assert not one["confident_disagreement"]
    first, second = (one["models"][name] for name in (OURS, str(timm_folder)))
    assert [a["class"] for a in first] == [b["class"] for b in second]
    assert np.allclose([a["score"] for a in first], [b["score"] for b in second], atol=1e-4)
    assert first[0]["score"] > 0.01
    listed = _call(capsys, "models", "list", "resnet18", "--weights")["weights"]
    assert [(w["name"], w["fetched"]) for w in listed] == [(OURS, True)]


@pytest.mark.parametrize(
    ("name", "plan", "words"),
    [
        (OURS, ["drop", "drop"], None),
        (OURS, ["flip"], "its SHA-256 is"),
        (OURS, ["truncated"], "its SHA-256 is"),
        (MIDDLE, ["stall"], None),
        (MIDDLE, ["drop"], None),
        (MIDDLE, ["flip"], "its SHA-256 is"),
        (MIDDLE, ["truncated"], "announces"),
        (MIDDLE, ["claims more"], "announces"),
    ],
)
def test_a_bad_server_leaves_nothing_half_and_the_next_attempt_goes_on(
    server: Server, tmp_path: Path, name: str, plan: list[str], words: str | None
) -> None:
    server.plan = list(plan)
    if words is None:
        get(name, patience=dataclasses.replace(FAST, stall=0.5) if plan == ["stall"] else FAST)
        assert server.ranges[0] is None
        assert all(server.ranges[1:]), "it did not resume"
        assert _left(tmp_path / "home/models")
        return
    with pytest.raises(DataError, match=words) as error:
        get(name, patience=dataclasses.replace(FAST, tries=1))
    assert "OPSIN_MIRROR" in str(error.value)
    assert "--to DIR" in str(error.value)
    assert _left(tmp_path / "home") == []
    if name == MIDDLE:
        assert (get(name, patience=FAST) / "bundle.json").is_file()


def test_killed_in_the_middle_and_resumed(server: Server, tmp_path: Path) -> None:
    server.plan = ["slow"]
    one = published.find(OURS)
    target = tmp_path / "home/weights/checkpoints" / one.file
    code = "import sys; from pathlib import Path; from opsin.data.fetch import fetch; fetch([sys.argv[1]], Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", code, one.url, str(target)], env={**os.environ})
    part = target.with_name(target.name + ".part")
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 10_000_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = part.stat().st_size
    assert not target.exists()
    server.ranges.clear()
    get(OURS, patience=FAST)
    assert server.ranges == [f"bytes={there}-"]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch ran",))


def _polyglot() -> bytes:
    """A safetensors file that is also a zip with one member, a pickle; torch.hub would unpack and run it."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("evil.pth", pickle.dumps(_Evil(), protocol=2))
    return safetensors.torch.save({"conv1.weight": torch.frombuffer(bytearray(inner.getvalue()), dtype=torch.uint8)})


def test_files_that_are_something_else(
    server: Server, tmp_path: Path, random_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _saved(torchvision.models.resnet34(weights=None).state_dict())
    small = _saved({k: v for k, v in torch.load(io.BytesIO(random_files["pth"])).items() if k != "layer4.1.bn2.bias"})
    cases = {
        "evil": (_saved({"conv1.weight": _Evil()}), "Python objects"),  # type: ignore[dict-item]
        "polyglot": (_polyglot(), "does not take it"),
        "text": (b"<html>not found</html>" * 99, "not a readable weight file"),
        "resnet34": (other, "does not take it"),
        "hole": (small, "does not take it"),
    }
    for body, words in cases.values():
        pth = f"models/resnet18-{hashlib.sha256(body).hexdigest()[:8]}.pth"
        server.files[pth] = body
        _point_at(server, pth, monkeypatch)
        with pytest.raises(CheckpointError, match=words):
            get(OURS, patience=FAST)
        assert not (tmp_path / "home/models").exists()
    assert not (tmp_path / "ran").exists()


def test_a_network_that_answers_otherwise_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from opsin.run import fetching

    through = fetching.load_weights

    def slightly(network: torch.nn.Module, *args: Any, **options: Any) -> Any:
        report = through(network, *args, **options)
        with torch.no_grad():
            network.bn1.weight.mul_(1.01)  # type: ignore[union-attr, operator]
        return report

    monkeypatch.setattr(fetching, "load_weights", slightly)
    with pytest.raises(CheckpointError, match="differ by"):
        get(OURS, patience=FAST)


def test_timm_network_with_its_own_preprocessing(server: Server, tmp_path: Path) -> None:
    bundle = opsin.load(get(MIDDLE))
    settings = bundle.task.settings
    config = timm.get_pretrained_cfg(MIDDLE.removeprefix("timm/"))
    assert settings.mean == tuple(config.mean)
    assert settings.interpolation == config.interpolation
    assert settings.image_size == (160, 160)
    photo = load_sample_image("china.jpg")
    theirs = timm.create_model(MIDDLE.removeprefix("timm/"), pretrained=False).eval()
    theirs.load_state_dict(safetensors.torch.load(server.files["vit.safetensors"]))
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    with torch.no_grad():
        said = theirs(timm.data.create_transform(**data)(Image.fromarray(photo))[None])[0].softmax(0)
    assert np.allclose(bundle.predict(photo.copy()).heads[0].scores, said, atol=1e-3)


def test_a_mirror_and_a_machine_without_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = published.find(OURS)
    mirror = tmp_path / "mirror"
    (mirror / "weights").mkdir(parents=True)
    (mirror / "weights" / one.file).write_bytes(server.files[f"models/{one.file}"])
    monkeypatch.setenv("OPSIN_MIRROR", str(mirror))
    folder = get(OURS)
    again = get(OURS, tmp_path / "again")
    assert server.ranges == []
    for made in (folder, again):
        assert json.loads((made / "bundle.json").read_text())["lineage"]["url"].startswith("file:")
    vit = published.find(MIDDLE)
    (mirror / "weights" / vit.file).write_bytes(server.files["vit.safetensors"])
    said: list[str] = []
    get(MIDDLE, say=said.append)
    assert any("no published checksum" in line and str(mirror) in line for line in said)
    monkeypatch.setenv("OPSIN_MIRROR", server.base)
    with pytest.raises(DataError, match=r"404.*\n.*--to DIR"):
        get(THEIRS, patience=FAST)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="another folder"):
        get(OURS, tmp_path / "full")


def _pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 120)):
        for i in range(12):
            path = folder / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(low, low + 130, (32, 32, 3), np.uint8)).save(path)
    return folder


def test_training_from_published_weights(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(_pictures(tmp_path / "data"))
    words = ["train", "classify", "--data", data, "--epochs", "1", "--quiet", 'run.listeners=["jsonl"]']
    fixed = ["run.preflight=false", "task.image_size=[32, 32]", "--batch-size", "16"]
    start = [*words, *fixed, "--weights", "imagenet", "--model", "resnet18"]
    told = _call(capsys, *start, code=2)["error"]["message"]
    assert "opsin models get resnet18.imagenet1k_v1" in told
    assert not (tmp_path / "runs").exists(), "a run that cannot begin left a folder"
    get(OURS)
    _call(capsys, *start, "--out", "runs/a")
    state = json.loads((tmp_path / "runs/a/run.json").read_text())
    assert tuple(state["task_settings"]["mean"]) == published.find(OURS).mean
    assert state["weights"]["license"] == "bsd-3-clause"
    assert state["weights"]["preprocessing"]
    assert sorted(state["weights"]["report"]["left"]) == ["fc.bias", "fc.weight"]
    record = json.loads((tmp_path / "runs/a/bundle/bundle.json").read_text())
    assert record["license"] == "bsd-3-clause"
    assert record["lineage"]["start"]["from"]["source"] == OURS
    page = _call(capsys, "report", "runs/a")
    text = Path(page["report"]).read_text(encoding="utf-8")
    assert "bsd-3-clause" in text
    assert OURS in text
    wrong = _call(capsys, *words, "--weights", OURS, "--model", "resnet34", code=2)["error"]["message"]
    assert "made for resnet18" in wrong
    assert "resnet34.imagenet1k_v1" in wrong
    own = starting_point(ModelSettings(name="resnet18", weights="runs/a"))
    assert own is not None
    assert own.license == "bsd-3-clause"
    assert own.settings(1)["channels"] == 3, "gray pictures become RGB for weights of RGB"
    assert own.settings(4) == {}
    _call(capsys, *words, *fixed, "--weights", "runs/a", "task.mean=[0.1, 0.2, 0.3]", "--out", "runs/b")
    again = json.loads((tmp_path / "runs/b/run.json").read_text())
    assert again["model"]["name"] == "resnet18"
    assert again["task_settings"]["mean"] == [0.1, 0.2, 0.3]
    assert again["task_settings"]["std"] == state["task_settings"]["std"]
    assert not again["weights"]["preprocessing"]
    assert json.loads((tmp_path / "runs/b/bundle/bundle.json").read_text())["license"] == "bsd-3-clause"


def test_a_bare_file_is_refused_until_its_license_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensor = {"conv1.weight": torch.zeros(2, 2)}
    safetensors.torch.save_file(tensor, "unknown.safetensors")
    safetensors.torch.save_file(tensor, "free.safetensors", {"license": "MIT"})
    safetensors.torch.save_file(tensor, "research.safetensors", {"license": "cc-by-nc-4.0"})
    assert starting_point(ModelSettings(weights="none")) is None
    found = starting_point(ModelSettings(weights="free.safetensors"))
    assert found is not None
    assert found.license == "MIT"
    for name, word in (("unknown", "unknown"), ("research", "cc-by-nc-4.0")):
        with pytest.raises(ConfigError, match=f"--accept-license {word}"):
            starting_point(ModelSettings(weights=f"{name}.safetensors"))
        assert starting_point(ModelSettings(weights=f"{name}.safetensors", accept_license=word))
    with pytest.raises(CheckpointError, match="no such file"):
        starting_point(ModelSettings(weights="gone.pt"))


def _bundle_of(folder: Path, file: str = "weights.safetensors") -> None:
    """As much of a bundle as a start from it reads."""
    folder.mkdir(parents=True)
    data = safetensors.torch.save({"w": torch.zeros(2)}, {"license": "isc"})
    (folder / file).write_bytes(data)
    weights = {"file": file, "sha256": hashlib.sha256(data).hexdigest()}
    record = {"task": {"settings": {}}, "model": {"name": "mlp"}, "weights": weights}
    (folder / "bundle.json").write_text(json.dumps({**record, "license": "mit"}))


def test_a_file_beside_a_bundle_is_itself(tmp_path: Path) -> None:
    _bundle_of(tmp_path / "b")
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "b/mine.safetensors", {"license": "isc"})
    mine = starting_point(ModelSettings(weights=str(tmp_path / "b/mine.safetensors")))
    assert mine is not None
    assert (mine.file.name, mine.license, mine.model) == ("mine.safetensors", "isc", None)
    assert mine.lineage["sha256"] == hashlib.sha256(mine.file.read_bytes()).hexdigest()
    for name in ("bundle.json", "weights.safetensors"):
        whole = starting_point(ModelSettings(weights=str(tmp_path / "b" / name)))
        assert whole is not None
        assert (whole.file.name, whole.license) == ("weights.safetensors", "mit")
    (tmp_path / "b/weights.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"not the file that .*bundle\.json describes"):
        starting_point(ModelSettings(weights=str(tmp_path / "b")))


@pytest.mark.parametrize("name", ["lr0.01", "resnet18", "imagenet"])
def test_a_run_is_found_by_its_name_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    _bundle_of(tmp_path / "runs" / name / "bundle")
    (tmp_path / "runs" / name / "recipe.json").write_text("{}")
    for given in (name, f"runs/{name}"):
        found = starting_point(ModelSettings(weights=given))
        assert found is not None
        assert found.file == Path("runs") / name / "bundle/weights.safetensors"
        assert opsin.run.find_bundle(given) is None, "published weights came first"


def test_training_from_scratch_says_what_would_help() -> None:
    assert "opsin models get resnet18.imagenet1k_v1 (45 MB, bsd-3-clause)" in hint("resnet18")
    assert hint("mlp") == hint("pkg.module:build") == hint("timm/convnextv2_tiny.fcmae_ft_in1k") == ""


def test_importing_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(weights=None, num_classes=3).eval()
    torch.save({"model": {f"encoder.{n}": t for n, t in theirs.state_dict().items()}}, "mine.pt")
    (tmp_path / "names.txt").write_text("ant\nbee\nwasp\n")
    words = ["models", "import", "mine.pt", "--model", "resnet18", "--from-prefix", "encoder."]
    made = _call(capsys, *words, "--classes", "names.txt", "--mean", "0.4,0.5,0.6", "--std", "0.2", "--to", "mine")
    assert made["license"] == "unknown"
    assert len(made["layers"]["loaded"]) == len(theirs.state_dict())
    picture = golden_picture((224, 224))
    values = torch.from_numpy(picture).permute(2, 0, 1) / 255
    bundle = opsin.load("mine")
    normal = (values - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.2
    resized = bundle.task.settings.model_copy(update={"crop_share": 1.0})
    bundle.task = type(bundle.task)(resized)
    with torch.no_grad():
        said = theirs(normal[None])[0].softmax(0)
    assert np.allclose(bundle.predict(picture).heads[0].scores, said, atol=1e-4)
    few = _call(capsys, *words, "--classes", "a,b", "--to", "two", code=2)["error"]["message"]
    assert "(3, 512)" in few
    other = _call(capsys, *words[:4], "resnet34", *words[5:], "--classes", "a,b,c", "--to", "x", code=2)["error"]
    assert "does not fill 'resnet34'" in other["message"]
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="--accept-license unknown"):
        starting_point(ModelSettings(weights="mine"))


def test_every_network_says_what_is_published_for_it() -> None:
    names = {network: [one.name for one in published.of(network)] for network in published.models}
    assert names["vgg16"] == ["vgg16.imagenet1k_v1"], "features without a classifier are not offered"
    assert all(name.startswith("mobilenet_v1.") for name in names["mobilenet_v1"])
    assert names["mobilenet_v1"]
    for network in (
        "alexnet",
        "densenet121",
        "googlenet",
        "inception_v3",
        "squeezenet1_1",
        "vit_b_16",
        "resnext50_32x4d",
    ):
        assert f"{network}.imagenet1k_v1" in names[network]
    assert names["smallnet"] == []


@pytest.mark.parametrize(
    "network",
    [
        "squeezenet1_1",
        "mobilenet_v3_small",
        "googlenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "alexnet",
                "vgg11_bn",
                "inception_v3",
                "mobilenet_v2",
                "densenet121",
                "vit_b_32",
                "resnext50_32x4d",
            )
        ),
    ],
)
def test_getting_every_family(server: Server, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    """Also those whose published weights need arguments of the builder, or hold auxiliary heads."""
    extra = {"aux_logits": True, "init_weights": False} if network in ("googlenet", "inception_v3") else {}
    torch.manual_seed(1)
    library = torchvision.models.get_model(network, weights=None, **extra).eval()
    with torch.no_grad():
        for name, buffer in library.named_buffers():
            if "running" in name:
                buffer.uniform_(*((-0.1, 0.1) if "mean" in name else (0.5, 1.5)))
    data = _saved(library.state_dict())
    file = f"{network}-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[f"models/{file}"] = server.files[f"cdn/models/{file}"] = data
    weights = torchvision.models.get_model_weights(network).IMAGENET1K_V1
    monkeypatch.setattr(weights, "_value_", dataclasses.replace(weights.value, url=f"{server.base}/models/{file}"))
    monkeypatch.setattr(type(weights), "url", property(lambda self: self.value.url), raising=False)
    bundle = opsin.load(get(f"{network}.imagenet1k_v1", patience=FAST))
    assert bundle.info["golden"]["difference"] <= 1e-4
    photo = load_sample_image("flower.jpg")
    with torch.no_grad():
        if extra:
            library.transform_input = True  # as torchvision sets it beside published weights
        said = library(weights.transforms()(Image.fromarray(photo))[None])[0].softmax(0)
    assert np.allclose(bundle.predict(photo.copy()).heads[0].scores, said, atol=1e-3)
