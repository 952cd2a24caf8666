"""Detectors of other projects on the same data, time and machine: accuracy on BCCD, and latency next to ours.

    python benchmarks/detection_peers.py train --data BCCD [--minutes 20 | --epochs N] [--models yolo11n ...] [--record]
    python benchmarks/detection_peers.py latency [--ours yolox_nano] [--models yolo11n ...] [--rounds 15] [--record]

Every peer lives in a virtual environment of its own below --environments, made at the first use; torch, torchvision and
NumPy are the ones of the interpreter that runs this file. opsin itself never imports them: they are driven by their own
command lines, and for the latency by processes of their own Python that only this file starts.

`train` copies the Pascal VOC folder into YOLO text (the lists train, val and test as they are), trains from scratch
(no weights of anybody, no network) with the peer's own defaults, takes the checkpoint that the peer calls best, and has
its own validation write its detections on the test list (score >= .001, 100 a picture). They are scored by pycocotools,
for everybody in the same way.

Time is counted in processor seconds, so that a busy machine does little harm: --minutes is the time of --threads cores that
have nothing else to do, all of it put to work, which is kind to the peer (no training keeps all cores busy; Ultralytics
takes one thread less than there are processors when it trains on them, and no setting changes that). A short and a longer
trial give the processor time of an epoch. Validation on the val list is included, as it is in their own training.

`latency` is forward and decode of one picture without merging boxes, 80 classes, new weights, convolution and
normalization fused as the peer's own prediction does; contestants are processes that take turns, one after the other,
each stopped while another runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast
from xml.etree import ElementTree

PARTS = ("train", "val", "test")
LOWEST_SCORE, MOST_BOXES = 0.001, 100
IN_COMMON = (
    "pycocotools==2.0.11",
    "opencv-python-headless==5.0.0.93",
    "requests",
    "urllib3",
    "certifi",
    "charset-normalizer",
)


@dataclass(frozen=True)
class Peer:
    """A project: what is installed, and how its command line trains and validates."""

    name: str
    license: str
    packages: tuple[str, ...]
    models: tuple[str, ...]  # smallest ones, by their own names
    first_category: int  # number of the first class in the detections it writes

    def training(
        self, model: str, data: Path, run: Path, given: argparse.Namespace, epochs: int, trial: bool
    ) -> list[str]:
        """Words of its command line that train `epochs` epochs into `run`; a trial augments in every epoch."""
        raise NotImplementedError

    def validation(self, data: Path, run: Path, given: argparse.Namespace) -> list[str]:
        """Words that write `predictions.json` of the test list into `run`/test."""
        raise NotImplementedError

    def name_of(self, image_id: int | str, names: Sequence[str]) -> str:
        """File name without its suffix that an `image_id` means; `names` are those of the test list in order."""
        raise NotImplementedError


class Ultralytics(Peer):
    """`yolo detect train`."""

    def training(
        self, model: str, data: Path, run: Path, given: argparse.Namespace, epochs: int, trial: bool
    ) -> list[str]:
        return [
            "yolo", "detect", "train", f"model={model}.yaml", "pretrained=False", f"data={data}", f"epochs={epochs}",
            f"imgsz={given.image_size}", f"batch={given.batch_size}", f"seed={given.seed}", f"workers={given.threads}",
            "device=cpu", "cache=ram", "amp=False", "plots=False", f"project={run.parent}", f"name={run.name}", "exist_ok=True",
            *(["close_mosaic=0"] if trial else []),
        ]  # fmt: skip

    def validation(self, data: Path, run: Path, given: argparse.Namespace) -> list[str]:
        return [
            "yolo", "detect", "val", f"model={run / 'weights' / 'best.pt'}", f"data={data}", "split=test", "save_json=True",
            f"imgsz={given.image_size}", f"conf={LOWEST_SCORE}", f"max_det={MOST_BOXES}", "device=cpu", "plots=False",
            "workers=0", f"project={run}", "name=test", "exist_ok=True",
        ]  # fmt: skip

    def name_of(self, image_id: int | str, names: Sequence[str]) -> str:
        return str(image_id)


class LibreYolo(Peer):
    """`libreyolo train`."""

    def training(
        self, model: str, data: Path, run: Path, given: argparse.Namespace, epochs: int, trial: bool
    ) -> list[str]:
        return [
            "libreyolo", "train", "--model", model, "--no-pretrained", "--data", str(data), "--epochs", str(epochs),
            "--imgsz", str(given.image_size), "--batch", str(given.batch_size), "--seed", str(given.seed),
            "--workers", str(given.threads), "--device", "cpu", "--cache", "ram", "--no-amp", "--project", str(run.parent),
            "--name", run.name, "--exist-ok", *(["--no-aug-epochs", "0"] if trial else []),
        ]  # fmt: skip

    def validation(self, data: Path, run: Path, given: argparse.Namespace) -> list[str]:
        return [
            "libreyolo", "val", "--model", str(run / "weights" / "best.pt"), "--data", str(data), "--split", "test",
            "--save-json", "--imgsz", str(given.image_size), "--conf", str(LOWEST_SCORE), "--max-det", str(MOST_BOXES),
            "--device", "cpu", "--project", str(run), "--name", "test", "--exist-ok",
        ]  # fmt: skip

    def name_of(self, image_id: int | str, names: Sequence[str]) -> str:
        return names[int(image_id)]


PEERS: tuple[Peer, ...] = (
    Ultralytics(
        "ultralytics",
        "AGPL-3.0",
        (
            "ultralytics==8.4.190",
            "ultralytics-thop==2.2.3",
            "ultralytics-platform==0.1.99",
            "polars==2.1.0",
            "polars-runtime-32==2.1.0",
            "nvidia-ml-py",
        ),
        ("yolo11n", "yolo26n"),
        1,
    ),
    LibreYolo("libreyolo", "MIT", ("libreyolo==1.6.0", "mss", "cloudpickle"), ("yolox-n", "yolo9-t"), 0),
)
MODELS = tuple(model for peer in PEERS for model in peer.models)


# Environments -----------------------------------------------------------------------------------------------------------


def environment_of(peer: Peer, folder: Path) -> Path:
    """The folder of the peer's programs, in an environment that is made if it is not there."""
    place = (folder / peer.name).resolve()
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    made = place / "packages.json"
    wanted = [*peer.packages, *IN_COMMON]
    if not made.exists() or json.loads(made.read_text(encoding="utf-8")) != wanted:
        print(f"{peer.name}: making its environment in {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = place / "Lib" / "site-packages" if os.name == "nt" else place / "lib" / version / "site-packages"
        (site / "zz_shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        subprocess.run([programs / "python", "-m", "pip", "install", "-q", "--no-deps", *wanted], check=True)
        made.write_text(json.dumps(wanted), encoding="utf-8")
    return programs


def surroundings(peer: Peer, threads: int, folder: Path, wait: str) -> dict[str, str]:
    """Environment variables of the peer's processes: its own settings folder, no network, so many threads.

    Threads that wait (`wait` is `PASSIVE` or `ACTIVE`) must not count as work on a busy machine, but be quick in a race.
    """
    settings = (folder / f"{peer.name}-settings").resolve()
    settings.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": wait,
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": str(settings),
    }


def installed(programs: Path, names: Sequence[str]) -> dict[str, str]:
    """Versions of packages in an environment."""
    code = "import sys, json; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    said = subprocess.run([programs / "python", "-c", code, *names], check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(said)
    return versions


# Accuracy ---------------------------------------------------------------------------------------------------------------


def convert(voc: Path, out: Path) -> tuple[Path, dict[str, Any], int]:
    """Copy a Pascal VOC folder into YOLO text.

    VOC counts pixels from 1 and the last one belongs to the box, so a box is (xmin - 1, ymin - 1, xmax, ymax). Boxes whose
    corners are one point are left out.

    Returns:
        The path of `data.yaml`, the truth of the test list as a COCO dictionary (image ids are file names without suffix),
        and how many boxes were left out.
    """
    found: dict[str, list[tuple[str, tuple[int, int], list[tuple[str, list[float]]]]]] = {}
    dropped = 0
    for part in PARTS:
        found[part] = []
        for name in (voc / "ImageSets" / "Main" / f"{part}.txt").read_text(encoding="utf-8").split():
            root = ElementTree.parse(voc / "Annotations" / f"{name}.xml").getroot()
            size = int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0"))
            boxes = []
            for item in root.iter("object"):
                x1, y1, x2, y2 = (
                    float(item.findtext(f"bndbox/{key}", "nan")) for key in ("xmin", "ymin", "xmax", "ymax")
                )
                if x1 == x2 and y1 == y2:
                    dropped += 1
                    continue
                boxes.append(
                    (item.findtext("name", ""), [max(x1 - 1, 0), max(y1 - 1, 0), min(x2, size[0]), min(y2, size[1])])
                )
            found[part].append((name, size, boxes))
    classes = sorted({kind for part in found.values() for _, _, boxes in part for kind, _ in boxes})
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
    }
    for part, pictures in found.items():
        for kind in ("images", "labels"):
            (out / kind / part).mkdir(parents=True, exist_ok=True)
        for name, (width, height), boxes in pictures:
            shutil.copyfile(voc / "JPEGImages" / f"{name}.jpg", out / "images" / part / f"{name}.jpg")
            lines = []
            for kind, (x1, y1, x2, y2) in boxes:
                label = classes.index(kind)
                relative = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                lines.append(" ".join([str(label), *(f"{value:.8f}" for value in relative)]) + "\n")
                if part == "test":
                    box = [x1, y1, x2 - x1, y2 - y1]
                    number = len(truth["annotations"]) + 1
                    one = {"id": number, "image_id": name, "category_id": label, "bbox": box, "area": box[2] * box[3]}
                    truth["annotations"].append({**one, "iscrowd": 0})
            (out / "labels" / part / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
            if part == "test":
                truth["images"].append({"id": name, "width": width, "height": height})
    data = out / "data.yaml"
    places = "".join(f"{part}: images/{part}\n" for part in PARTS)
    data.write_text(
        f"path: {json.dumps(str(out.resolve()))}\n{places}nc: {len(classes)}\nnames: {json.dumps(classes)}\n",
        encoding="utf-8",
    )
    return data, truth, dropped


def timed(words: Sequence[str], programs: Path, env: dict[str, str], log: Path) -> tuple[float, float]:
    """Run one of the peer's commands; (processor, wall) seconds of it and all that it started.

    Raises:
        SystemExit: if it fails, with where its words are.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("a", encoding="utf-8") as words_of:
        words_of.write(f"$ {' '.join(words)}\n")
        words_of.flush()
        status = subprocess.run(
            [programs / words[0], *words[1:]], env=env, stdout=words_of, stderr=subprocess.STDOUT, cwd=log.parent
        )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if status.returncode:
        raise SystemExit(f"{words[0]} failed with {status.returncode}; what it said is in {log}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def epochs_in(minutes: float, threads: int, per_epoch: float) -> int:
    """Epochs of `per_epoch` processor seconds that `threads` free cores make in so many minutes, at least one."""
    return max(1, int(minutes * 60 * threads / per_epoch))


def one_model(peer: Peer, model: str, data: Path, truth: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Train one network of a peer, and score it on the test list."""
    programs = environment_of(peer, given.environments)
    env = surroundings(peer, given.threads, given.work, "PASSIVE")
    run = (given.work / f"{model}-seed{given.seed}").resolve()
    shutil.rmtree(run, ignore_errors=True)
    log = given.work / f"{model}-seed{given.seed}.log"
    log.unlink(missing_ok=True)
    per_epoch, epochs = None, given.epochs
    if epochs is None:
        trial = run.with_name(f"{run.name}-trial")
        short, long = (timed(peer.training(model, data, trial, given, n, True), programs, env, log)[0] for n in (2, 6))
        shutil.rmtree(trial, ignore_errors=True)
        per_epoch = (long - short) / 4
        epochs = epochs_in(given.minutes, given.threads, per_epoch)
    print(f"{model}: {epochs} epochs, {per_epoch or float('nan'):.1f} processor seconds each; log in {log}", flush=True)
    cpu, wall = timed(peer.training(model, data, run, given, epochs, False), programs, env, log)
    timed(peer.validation(data, run, given), programs, env, log)
    names = sorted(image["id"] for image in truth["images"])
    detections = json.loads((run / "test" / "predictions.json").read_text(encoding="utf-8"))
    for one in detections:
        one["image_id"] = peer.name_of(one["image_id"], names)
        one["category_id"] -= peer.first_category
    scores = inside(programs, env, "score", {"truth": truth, "detections": detections})
    return {
        "peer": peer.name,
        "version": installed(programs, [peer.name])[peer.name],
        "license": peer.license,
        "model": model,
        "seed": given.seed,
        "image_size": given.image_size,
        "batch_size": given.batch_size,
        "minutes": given.minutes if given.epochs is None else None,
        "date": time.strftime("%Y-%m-%d"),
        "parameters_of_80_classes": inside(programs, env, "parameters", {"peer": peer.name, "model": model}),
        "epochs": epochs,
        "processor_seconds_per_epoch": per_epoch,
        "processor_seconds": round(cpu, 1),
        "minutes_of_free_cores": round(cpu / given.threads / 60, 2),
        "wall_seconds": round(wall, 1),
        **scores,
    }


def train(given: argparse.Namespace) -> None:
    """Train and score the models, one after the other."""
    given.work.mkdir(parents=True, exist_ok=True)
    data, truth, dropped = convert(given.data, given.work / "yolo")
    command = f"python benchmarks/detection_peers.py train --data {given.data.name}"
    command += f" --minutes {given.minutes:g}" if given.epochs is None else f" --epochs {given.epochs}"
    command += f" --image-size {given.image_size} --batch-size {given.batch_size} --threads {given.threads} --seed {given.seed}"
    for peer in PEERS:
        for model in (name for name in peer.models if name in given.models):
            row = one_model(peer, model, data, truth, given)
            print(json.dumps(row), flush=True)
            if given.record:
                values = {
                    "data": given.data.name,
                    "test_pictures": len(truth["images"]),
                    "test_boxes": len(truth["annotations"]),
                    "boxes_left_out": dropped,
                    "evaluation": f"pycocotools, score >= {LOWEST_SCORE}, {MOST_BOXES} boxes a picture",
                }
                keep(values, {**row, "command": f"{command} --models {model} --record"})


def keep(values: dict[str, Any], row: dict[str, Any]) -> None:
    """Store a row under `results/`, beside those of other models, lengths and seeds that are there."""
    from recorded import RESULTS, record

    stored = RESULTS / "detection-peers.json"
    rows = json.loads(stored.read_text(encoding="utf-8"))["detection_peers"] if stored.exists() else []
    same = ("model", "epochs", "minutes", "seed", "image_size")
    rows = [one for one in rows if any(one[key] != row[key] for key in same)]
    record("detection-peers", {**values, "detection_peers": [*rows, row]}, row["command"])


# Latency ----------------------------------------------------------------------------------------------------------------


class Contestant:
    """A process with one network, that times it when asked; until then it is stopped, so that no thread of it spins."""

    def __init__(self, python: Path | str, env: dict[str, str], words: dict[str, Any]) -> None:
        self.name = f"{words['peer']} {words['model']}"
        self.process = subprocess.Popen(
            [python, __file__, "inside", "race"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.to, self.back = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self.ready: dict[str, Any] = self.ask(words)

    def ask(self, words: Any) -> Any:
        """Wake the process, send a line, get one back, stop the process.

        Raises:
            SystemExit: if the process has ended.
        """
        self.process.send_signal(signal.SIGCONT)
        try:
            self.to.write(json.dumps(words) + "\n")
            self.to.flush()
        except BrokenPipeError:
            raise SystemExit(f"{self.name} has ended") from None
        line = self.back.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGCONT)
        self.to.close()
        self.process.wait()


def latency(given: argparse.Namespace) -> None:
    """Time our network and the peers' in turns, in every mode."""
    given.work.mkdir(parents=True, exist_ok=True)
    modes: dict[str, Any] = {}
    for mode in given.modes:
        same = {"mode": mode, "size": given.image_size, "threads": given.threads}
        here = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "ACTIVE"}
        racers = [Contestant(sys.executable, here, {**same, "peer": "opsin", "model": given.ours})]
        for peer in PEERS:
            for model in (name for name in peer.models if name in given.models):
                programs = environment_of(peer, given.environments)
                env = surroundings(peer, given.threads, given.work, "ACTIVE")
                racers.append(Contestant(programs / "python", env, {**same, "peer": peer.name, "model": model}))
        seconds: dict[str, list[float]] = {racer.name: [] for racer in racers}
        for _ in range(given.rounds):
            for racer in racers:
                seconds[racer.name] += racer.ask({"runs": given.runs})
        for racer in racers:
            racer.close()
        ours = statistics.median(seconds[racers[0].name])
        modes[mode] = {
            racer.name: {
                **racer.ready,
                "milliseconds": round(1e3 * statistics.median(seconds[racer.name]), 3),
                "fastest": round(1e3 * min(seconds[racer.name]), 3),
                "of_ours": round(statistics.median(seconds[racer.name]) / ours, 3),
            }
            for racer in racers
        }
        for name, values in modes[mode].items():
            print(f"{mode:<16}{name:<24}{values['milliseconds']:>9.2f} ms  {values['of_ours']:.2f} of ours", flush=True)
    if given.record:
        from recorded import record

        command = f"python benchmarks/detection_peers.py latency --ours {given.ours} --models {' '.join(given.models)}"
        command += (
            f" --image-size {given.image_size} --threads {given.threads} --rounds {given.rounds} --runs {given.runs}"
        )
        values = {"ours": f"opsin {given.ours}", "image_size": given.image_size, "race_threads": given.threads}
        record(
            "detection-latency",
            {**values, "detection_latency": modes},
            f"{command} --modes {' '.join(given.modes)} --record",
        )


# In the peer's own Python -----------------------------------------------------------------------------------------------


def inside(programs: Path, env: dict[str, str], what: str, words: Any) -> Any:
    """Have this file answer a question in the peer's environment."""
    given = json.dumps(words) + "\n"
    said = subprocess.run(
        [programs / "python", __file__, "inside", what],
        env=env,
        input=given,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(said.stdout)


def score(words: dict[str, Any]) -> dict[str, Any]:
    """AP50 and mAP (.50:.05:.95) of detections by pycocotools, whole and by class."""
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = words["truth"]
    truth.createIndex()
    if not words["detections"]:
        return {"ap50": 0.0, "map": 0.0, "ap50_by_class": {}, "detections": 0}
    judge = COCOeval(truth, truth.loadRes(words["detections"]), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    precision = judge.eval["precision"][0, :, :, 0, -1]  # (101 recalls, classes) at IoU .5, all areas, 100 boxes
    by_class = {
        one["name"]: float(np.mean(precision[:, i]))
        for i, one in enumerate(sorted(truth.cats.values(), key=lambda c: c["id"]))
    }
    return {
        "ap50": float(judge.stats[1]),
        "map": float(judge.stats[0]),
        "ap50_by_class": by_class,
        "detections": len(words["detections"]),
    }


def network_of(peer: str, model: str, size: int) -> Any:
    """A network with new weights for 80 classes whose forward gives decoded boxes, ready to predict."""
    if peer == "opsin":
        from opsin.models import ModelSpec, build

        return build(ModelSpec(model, {}, 3, 80, (size, size), answer="detected")).eval()
    if peer == "ultralytics":
        from ultralytics import YOLO

        return YOLO(f"{model}.yaml").model.eval()
    import libreyolo

    family, _, letter = model.partition("-")
    kind = {"yolox": libreyolo.LibreYOLOX, "yolo9": libreyolo.LibreYOLO9}[family]
    network = kind._from_scratch(size=letter, nb_classes=80, device="cpu").model.eval()
    if family == "yolox":
        network.head.export = True
    return network


def parameters(words: dict[str, Any]) -> int:
    """Parameters of a network for 80 classes."""
    return sum(p.numel() for p in network_of(words["peer"], words["model"], 320).parameters())


def race(say: Callable[[Any], None]) -> None:
    """Read what to build, then time it again and again until the input ends."""
    import torch

    words = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(words["threads"])
    network = network_of(words["peer"], words["model"], words["size"])
    count = sum(p.numel() for p in network.parameters())
    if words["peer"] == "ultralytics":
        network = network.fuse(verbose=False)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    kind, _, compiled = words["mode"].partition("-")
    network = network.to(memory_format=torch.channels_last)
    run = torch.compile(network) if compiled else network
    image = torch.rand(1, 3, words["size"], words["size"]).contiguous(memory_format=torch.channels_last)
    found: list[float] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        for _ in range(10):
            run(image)
        say({"parameters_of_80_classes": count, "torch": str(torch.__version__)})
        for line in sys.stdin:
            run(image)  # what was in the caches is another's by now
            found = []
            for _ in range(json.loads(line)["runs"]):
                began = time.perf_counter()
                run(image)
                found.append(time.perf_counter() - began)
            say(found)


def answer(what: str) -> None:
    """Answer a question on standard input; only the answer goes to standard output."""
    out = sys.stdout

    def say(words: Any) -> None:
        out.write(json.dumps(words) + "\n")
        out.flush()

    with contextlib.redirect_stdout(io.StringIO()):
        if what == "race":
            race(say)
        else:
            words = json.loads(sys.stdin.readline())
            say(score(words) if what == "score" else parameters(words))


# Command line -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Read the command line, measure, store."""
    home = Path(os.environ.get("OPSIN_HOME") or Path.home() / ".cache" / "opsin") / "peers"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="accuracy of the peers on a Pascal VOC folder with its split lists")
    training.add_argument("--data", type=Path, required=True, help="folder with Annotations, ImageSets and JPEGImages")
    training.add_argument("--minutes", type=float, default=20.0, help="of so many free cores as --threads says")
    training.add_argument("--epochs", type=int, help="instead of --minutes")
    training.add_argument("--image-size", type=int, default=320)
    training.add_argument("--batch-size", type=int, default=16)
    training.add_argument("--seed", type=int, default=0)
    racing = verbs.add_parser("latency", help="forward and decode of one picture, against ours")
    racing.add_argument("--ours", default="yolox_nano", help="name of our network")
    racing.add_argument("--image-size", type=int, default=640)
    racing.add_argument("--rounds", type=int, default=15)
    racing.add_argument("--runs", type=int, default=10, help="in every round")
    modes = ("bf16-compiled", "fp32-compiled", "bf16", "fp32")
    racing.add_argument("--modes", nargs="+", choices=modes, default=list(modes[:2]))
    for verb, chosen in ((training, list(MODELS)), (racing, [*MODELS[:2], "yolox-n"])):
        verb.add_argument("--models", nargs="+", choices=MODELS, default=chosen)
        verb.add_argument("--threads", type=int, default=2)
        verb.add_argument("--environments", type=Path, default=home, help="folder for the peers' environments")
        verb.add_argument("--work", type=Path, default=home / "work", help="folder for data, runs and logs")
        verb.add_argument("--record", action="store_true", help="store it under results/")
    verbs.add_parser("inside").add_argument("what", choices=("score", "parameters", "race"))
    given = parser.parse_args()
    if given.verb == "inside":
        answer(given.what)
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {given.threads} threads",
        flush=True,
    )
    train(given) if given.verb == "train" else latency(given)


if __name__ == "__main__":
    main()
