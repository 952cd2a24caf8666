"""Published weights onto this machine, as a bundle: fetched once, compared with the library they come from.

    opsin models get resnet18.imagenet1k_v1

The file lands in the cache (`weights/checkpoints`), resumed and checked, and is read without running code from it. Then
both networks, the library's own and the one here, look at one picture; only when they agree a bundle is written: class
names, preprocessing, license, where all of it came from, and what the network said of that picture.
Without network, `OPSIN_MIRROR` names a folder or address that holds `weights/<file>`, or the bundle is made elsewhere
(`--to DIR`) and carried here.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opsin.bundle import Bundle, require_place
from opsin.data.fetch import Patience, Progress, checksum, fetch
from opsin.data.home import cache_home
from opsin.errors import CheckpointError, ConfigError, DataError
from opsin.models import ModelSpec, build, licenses
from opsin.models.published import Published, find
from opsin.models.weights import load_weights, read_weights
from opsin.task import Sample, tasks

TOLERANCE = 1e-4  # of the largest logit, or absolute where that is below 1
_log = logging.getLogger("opsin")


def home_of(one: Published) -> Path:
    """Where the bundle of published weights lies when it was fetched."""
    return cache_home() / "models" / one.name


def is_fetched(one: Published) -> bool:
    """Whether published weights are on this machine."""
    return (home_of(one) / "bundle.json").is_file()


def fetched(name: str, model: str | None = None) -> Path:
    """The bundle of published weights that were fetched before; nothing is fetched here.

    Args:
        name: e.g. `resnet18.imagenet1k_v1`, or `imagenet`.
        model: the network, where the name is only a tag.

    Raises:
        UnknownName: if nothing is published under that name.
        CheckpointError: if they are not on this machine; the message names the command that brings them.
    """
    one = find(name, model)
    if not is_fetched(one):
        size = f"{one.megabytes:.0f} MB, " if one.megabytes else ""
        raise CheckpointError(
            f"{one.name} is not on this machine ({size}license {licenses.words(one.license)}). Get it once, with network: "
            f"opsin models get {one.name}. For a machine without: opsin models get {one.name} --to DIR elsewhere, copy DIR, "
            "and give DIR as the model."
        )
    return home_of(one)


def get(
    name: str,
    to: str | os.PathLike[str] | None = None,
    *,
    accept_license: str | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = _log.info,
    patience: Patience | None = None,
) -> Path:
    """Fetch published weights once, and make a bundle of them; later calls find it.

    Args:
        name: e.g. `resnet18`, `resnet18.imagenet1k_v1`, `timm/resnet18.a1_in1k`.
        to: folder of the bundle; by default `<home>/models/<name>`.
        accept_license: name of a license that is not permissive, by which the person takes it over.
        mirror: folder or base address with `weights/<file>`; by default the environment's `OPSIN_MIRROR`.
        progress: told how far it is.
        say: gets license, size and everything else that a person should know.
        patience: when to give up on a connection.

    Returns:
        The bundle's folder.

    Raises:
        UnknownName: if nothing is published under that name.
        ConfigError: if the license is not permissive and was not accepted, or `to` is in use.
        DataError: if the file could not be fetched or is not what was published.
        CheckpointError: if it does not fit, or the network here and the library's disagree.
    """
    one = find(name)
    folder = Path(to).expanduser() if to is not None else home_of(one)
    if (folder / "bundle.json").is_file():
        if _made_for(folder) == one.name:
            return folder
        raise ConfigError(f"{folder} holds another model. Choose another folder.")
    require_place(folder)
    size = f"{one.megabytes:.0f} MB, " if one.megabytes else ""
    say(f"{one.name}: {size}license {licenses.words(one.license)} ({one.license_source}).")
    licenses.require(one.name, one.license, accept_license, "--accept-license")
    path, url = _file(one, mirror or os.environ.get("OPSIN_MIRROR"), progress, patience)
    if not one.sha256 and url != one.url:
        say(f"{path.name} came from {url}, and no published checksum is known here: that mirror is taken at its word.")
    try:
        bundle = _bundle(one, path, url)
    except CheckpointError:
        if not one.sha256:
            _address_of(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)  # nothing says that it is the published file: the next attempt begins anew
        raise
    folder.parent.mkdir(parents=True, exist_ok=True)
    bundle.save(folder)
    said = bundle.info["golden"]
    say(f"The network here and that of {one.library} agree on a picture to {said['difference']:.1g} of {TOLERANCE:g}.")
    return folder


def _made_for(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["lineage"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def _file(one: Published, mirror: str | None, progress: Progress | None, patience: Patience | None) -> tuple[Path, str]:
    """The weight file in the cache, whole and checked, and the address it has."""
    target = cache_home() / "weights" / "checkpoints" / one.file
    if mirror is None:
        url = one.url
    elif urlsplit(mirror).scheme in ("http", "https", "file"):
        url = f"{mirror.rstrip('/')}/weights/{one.file}"
    else:
        url = (Path(mirror).expanduser().resolve() / "weights" / one.file).as_uri()
    if target.is_file() and _has_checksum(one, target):  # a file is there only when it came whole
        note = _address_of(target)
        return target, note.read_text(encoding="utf-8").strip() if note.is_file() else one.url
    try:
        fetch([url], target, sha256=one.sha256 or None, progress=progress, patience=patience)
    except DataError as error:
        where = f" (the mirror {mirror}, OPSIN_MIRROR)" if mirror else ""
        raise DataError(
            f"{error}{where}\nWithout network: run `opsin models get {one.name} --to DIR` on a machine that has it and give "
            f"DIR as the model, or set OPSIN_MIRROR to a folder or address that holds weights/{one.file}."
        ) from error
    _address_of(target).write_text(f"{url}\n", encoding="utf-8")
    return target, url


def _address_of(path: Path) -> Path:
    """The small file beside a fetched one that keeps where it came from."""
    return path.with_name(path.name + ".url")


def _has_checksum(one: Published, path: Path) -> bool:
    return not one.sha256 or checksum(path, "sha256").startswith(one.sha256)


def _bundle(one: Published, path: Path, url: str) -> Bundle:
    """The bundle of a weight file, if the network here says the same as the library's.

    Raises:
        CheckpointError: if the file is no weight file, does not fit, or the two networks disagree.
    """
    state, _, _ = read_weights(path)  # before any library opens the file: it holds tensors and nothing else
    kind = tasks.get("classify")
    values = {
        "heads": [{"name": "label", "class_names": one.class_names()}],
        "image_size": one.image_size,
        "channels": len(one.mean),
        "mean": one.mean,
        "std": one.std,
        "crop_share": one.crop_share,
        "interpolation": one.interpolation,
        "small": False,
        "flip": True,
    }
    task = kind(kind.settings_type.model_validate(values))
    spec = ModelSpec(one.architecture, dict(one.kwargs), **task.model_facts)
    network = build(spec, check=False)
    theirs = _library_network(one, path, state)
    if one.architecture.startswith("timm/"):
        network.net.load_state_dict(theirs.state_dict())  # type: ignore[union-attr]
    else:
        report = load_weights(network, path, allow_head_mismatch=False)
        if report.missing:
            raise CheckpointError(f"{path.name} does not fit '{one.architecture}': {report.summary()}")
    model = task.assemble(network).eval()
    picture = golden_picture()
    inputs = task.prepare(Sample("golden", torch.from_numpy(picture.transpose(2, 0, 1).copy())), 0, train=False).inputs
    logits, difference = _compared(one, model, theirs, inputs[None])
    package = __import__(one.library)
    lineage = {
        "source": one.name,
        "library": f"{one.library} {package.__version__}",
        "entry": f"{one.entry}.{one.tag}" if one.library == "torchvision" else one.entry,
        "origin": one.origin,
        "file": path.name,
        "sha256": checksum(path, "sha256"),
        "url": url,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    golden = {
        "picture": "opsin.run.fetching:golden_picture",
        "logits": [round(float(value), 6) for value in logits],
        "difference": difference,
        "tolerance": TOLERANCE,
    }
    info = {
        "license": one.license,
        "license_source": one.license_source,
        "lineage": lineage,
        "golden": golden,
        "published": dict(one.metrics),
        "precision": "fp32",
    }
    return Bundle(task, "classify", spec, model, info)


def _library_network(one: Published, path: Path, state: dict[str, Tensor]) -> nn.Module:
    """The library's own network with this file, through the library's own door.

    Args:
        one: what is published.
        path: the file, for messages.
        state: its tensors; the library sees nothing else of it.

    Raises:
        CheckpointError: if the library does not take the file.
    """
    try:
        if one.library == "timm":
            import timm

            name = one.entry
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}).eval()
        from torchvision.models import get_model, get_model_weights

        with tempfile.TemporaryDirectory() as folder, _hub(Path(folder)):
            # torch.hub would unpickle anything in the fetched file: it gets a new file, of the tensors that were read
            clean = Path(folder) / "checkpoints" / one.file
            clean.parent.mkdir()
            torch.save(state, clean)
            return get_model(one.entry, weights=get_model_weights(one.entry)[one.tag], progress=False).eval()  # type: ignore[no-any-return]
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is not the file of {one.name}: {one.library} does not take it ({str(error).partition(chr(10))[0]})."
        ) from error


@contextmanager
def _hub(folder: Path) -> Iterator[None]:
    """Let torch.hub find files in a folder."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder))
    try:
        yield
    finally:
        torch.hub.set_dir(before)


def _compared(one: Published, ours: nn.Module, theirs: nn.Module, inputs: Tensor) -> tuple[NDArray[Any], float]:
    """What our network says of a picture (K,), and how far the library's is from that.

    Raises:
        CheckpointError: if it is too far.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (one.mean, one.std))
    with torch.inference_mode():
        said = ours(inputs).logits[0]
        other = theirs((inputs / 255 - mean) / std)[0]
    if said.shape != other.shape:
        raise CheckpointError(f"{one.name}: {one.library} gives {len(other)} scores, the network here {len(said)}.")
    difference = float((said - other).abs().max() / other.abs().max().clamp_min(1))
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{one.name}: the network here and that of {one.library} differ by {difference:.2g} on the same picture "
            f"(allowed: {TOLERANCE:g}). The weights were not taken over."
        )
    return said.numpy(), difference


def golden_picture(size: tuple[int, int] = (320, 400)) -> NDArray[np.uint8]:
    """A fixed picture (H, W, 3) with smooth shades, edges and fine texture, from whole numbers only."""
    y, x = np.mgrid[: size[0], : size[1]]
    shades = np.stack([x * 255 // size[1], y * 255 // size[0], (x + y) % 256], axis=-1)
    squares = ((x // 40 + y // 40) % 2)[..., None] * 90
    disc = (((x - 200) ** 2 + (y - 160) ** 2) < 90**2)[..., None] * np.array([120, 30, -60])
    texture = ((x * 7 + y * 13) % 17)[..., None] * 3
    found: NDArray[np.uint8] = np.clip(shades + disc + texture - squares, 0, 255).astype(np.uint8)
    return found
