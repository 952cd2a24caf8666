"""Published weights: what torchvision and timm offer for the networks here, read from the libraries' own metadata.

Addresses, checksums, class names, preprocessing and licenses are never typed here: they are those of the installed
library. `resnet18.imagenet1k_v1` is a file of torchvision for the family of that name, `timm/NAME.TAG` one of timm;
without a tag it is the library's default. A family whose file the same-named network of torchvision does not give has a
literal `WEIGHTS_FROM = {"name": "timm:theirs"}`; arguments that published weights need stand in `PRETRAINED`.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from opsin.errors import CheckpointError, ConfigError, UnknownName
from opsin.models import models
from opsin.models.licenses import UNKNOWN, normalized

INTERPOLATIONS = ("bilinear", "bicubic")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
DEFAULTS = ("imagenet", "default")  # tags that mean: what the library would take


@dataclass(frozen=True)
class Published:
    """One published weight file and all that its library says of it.

    Args:
        name: what a person types, e.g. `resnet18.imagenet1k_v1`.
        architecture: the network here that takes it, e.g. `resnet18` or `timm/resnet18.a1_in1k`.
        library: `torchvision` or `timm`.
        entry: its name in the library.
        tag: of these weights in the library.
        url: where the library fetches it.
        file: its name here.
        sha256: the beginning of its checksum, where the library gives it in the name; else "".
        license: normalized, or `unknown`.
        license_source: where the license was read.
        num_classes: K.
        mean: per channel, as a share of the range.
        std: per channel, as a share of the range.
        image_size: (H, W).
        resize_size: pixels of the shorter side before the middle is cut out.
        interpolation: of that resizing.
        crop: `center`, or another way that is not known here.
        kwargs: of the builder.
        num_params: as published; None where the library does not say.
        megabytes: as published.
        metrics: as published, e.g. {"acc@1": 69.758}.
        origin: where the weights come from, in the library's words.
    """

    name: str
    architecture: str
    library: str
    entry: str
    tag: str
    url: str
    file: str
    sha256: str
    license: str
    license_source: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    resize_size: int
    interpolation: str
    crop: str = "center"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_params: int | None = None
    megabytes: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    origin: str = ""

    @property
    def crop_share(self) -> float:
        """Side of the part that is cut out, as a share of the shorter side after resizing."""
        return self.image_size[0] / self.resize_size

    @property
    def obstacle(self) -> str:
        """Why it cannot be used here, or ""."""
        if not self.url:
            return f"{self.library} gives no address for it"
        if self.num_classes < 1:
            return "it has no classifier"
        if PurePosixPath(self.file).suffix not in WEIGHT_FILES:
            return f"its file ({PurePosixPath(self.file).suffix}) is neither safetensors nor a state dict"
        if self.crop != "center" or self.image_size[0] != self.image_size[1]:
            return f"it wants pictures prepared by '{self.crop}' at {self.image_size}, which classify does not do"
        return "" if self.interpolation in INTERPOLATIONS else f"it wants pictures resized by '{self.interpolation}'"

    def class_names(self) -> tuple[str, ...]:
        """K different names; classes without a known name are called by number."""
        names = _class_names(self.library, self.entry, self.tag, self.num_classes)
        twice = {name for name in names if names.count(name) > 1}
        return tuple(f"{name} ({i})" if name in twice else name for i, name in enumerate(names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shown = ("name", "architecture", "library", "license", "license_source", "num_classes", "num_params", "origin")
        rest = {"megabytes": self.megabytes, "metrics": dict(self.metrics), "image_size": list(self.image_size)}
        return {**{key: getattr(self, key) for key in shown}, **rest, "obstacle": self.obstacle}


def find(name: str, model: str | None = None) -> Published:
    """The published weights of a name.

    Args:
        name: `resnet18.imagenet1k_v1`, `resnet18` (the library's default), `timm/NAME[.TAG]`, or `imagenet`.
        model: the network, where the name is only a tag.

    Raises:
        UnknownName: if there are none of that name; the message offers the nearest.
        ConfigError: if only `imagenet` was given, and no network.
        CheckpointError: if they cannot be used here.
    """
    if name.lower() in DEFAULTS:
        if model is None:
            raise ConfigError(f"'{name}' says which data, not which network. Give both, e.g. resnet18.{name}.")
        name = f"{model.partition('.')[0]}.{name}"
    network, _, tag = name.partition(".")
    offered = list(of(network))
    chosen = next((one for one in offered if one.name.lower() == name.lower()), None)
    if chosen is None and offered and (not tag or tag.lower() in DEFAULTS):
        chosen = _default(offered)
    if chosen is None and not offered and network in models:
        raise CheckpointError(f"No weights are published for '{network}'. Those there are: opsin models list --weights")
    if chosen is None:
        raise UnknownName(
            "published weights",
            name,
            [one.name for one in offered] or _like(network),
            "See: opsin models list --weights",
        )
    if chosen.obstacle:
        raise CheckpointError(f"{chosen.name} cannot be used: {chosen.obstacle}. See: opsin models list --weights")
    return chosen


def _like(network: str) -> list[str]:
    if not network.startswith("timm/"):
        return list(models)
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


def is_published(name: str) -> bool:
    """Whether a name could be that of published weights: its network is known and has some."""
    network = name.partition(".")[0]
    return (network in models or network.startswith("timm/")) and any(True for _ in of(network))


def of(network: str) -> Iterator[Published]:
    """What is published for a network: a name here, or `timm/NAME`."""
    if network.startswith("timm/"):
        yield from _of_timm(network, network.removeprefix("timm/"))
        return
    if network not in models or ":" in network:
        return
    module = models.module(network)
    kwargs = dict(getattr(module, "PRETRAINED", {}))
    elsewhere = getattr(module, "WEIGHTS_FROM", {}).get(network)
    if elsewhere is not None:
        yield from _of_timm(network, elsewhere.removeprefix("timm:"), kwargs)
    else:
        yield from _of_torchvision(network, kwargs)


def _default(offered: list[Published]) -> Published | None:
    first = offered[0]
    if first.library == "torchvision":
        from torchvision.models import get_model_weights

        tag = get_model_weights(first.entry).DEFAULT.name
    else:
        import timm

        config = timm.get_pretrained_cfg(first.entry.partition(".")[0])
        tag = config.tag if config is not None else ""
    return next((one for one in offered if one.tag == tag), None)


# torchvision ----------------------------------------------------------------------------------------------------------


def _of_torchvision(network: str, kwargs: Mapping[str, Any]) -> Iterator[Published]:
    import torchvision

    entry = network.replace("-", "_")
    if entry not in torchvision.models.list_models(module=torchvision.models):
        return
    whole, source = _license_of_torchvision()
    for weights in torchvision.models.get_model_weights(entry):
        if not hasattr(shown := weights.transforms(), "crop_size") or weights.meta.get("categories") is None:
            continue  # not for pictures of one size, or features without a classifier
        own = weights.meta.get("license")
        yield Published(
            name=f"{network}.{weights.name.lower()}",
            architecture=network,
            library="torchvision",
            entry=entry,
            tag=weights.name,
            url=weights.url,
            file=_file_of(weights.url),
            sha256=_checksum_in(weights.url),
            license=normalized(own) if own else whole,
            license_source=str(own or source),
            num_classes=len(weights.meta["categories"]),
            mean=tuple(shown.mean),
            std=tuple(shown.std),
            image_size=(shown.crop_size[0], shown.crop_size[-1]),
            resize_size=shown.resize_size[0],
            interpolation=shown.interpolation.value,
            kwargs=kwargs,
            num_params=weights.meta.get("num_params"),
            megabytes=weights.meta.get("_file_size"),
            metrics=next(iter(weights.meta.get("_metrics", {}).values()), {}),
            origin=str(weights.meta.get("recipe", "")),
        )


@lru_cache(maxsize=1)
def _license_of_torchvision() -> tuple[str, str]:
    """The license of the package, for files without one of their own, and where it stands.

    The short field of the package says "BSD" only; the first line of the license file says which.
    """
    package = importlib.metadata.distribution("torchvision")
    for path in package.files or ():
        if path.name.upper().startswith("LICENSE"):
            heading = path.read_text(encoding="utf-8").strip().partition("\n")[0].removesuffix(" License")
            return normalized(heading), f"license file of torchvision {package.version}"
    named = next((package.metadata[n] for n in ("License-Expression", "License") if n in package.metadata), None)
    return normalized(named), f"metadata of torchvision {package.version}"


# timm -----------------------------------------------------------------------------------------------------------------


def _of_timm(network: str, theirs: str, kwargs: Mapping[str, Any] | None = None) -> Iterator[Published]:
    import timm
    from timm.models import is_model

    architecture = theirs.partition(".")[0]
    if not is_model(architecture):
        return
    for entry in timm.list_pretrained(f"{architecture}.*"):
        config = timm.get_pretrained_cfg(entry)
        if config is None:
            continue
        url = _address_of_timm(config)
        tagged = f"{network.partition('.')[0]}.{config.tag}"
        height, width = config.input_size[1:]
        yield Published(
            name=tagged,
            architecture=f"timm/{entry}" if network.startswith("timm/") else network,
            library="timm",
            entry=entry,
            tag=config.tag or "",
            url=url,
            # Files on the hub all have the same name.
            file=_file_of(url) if not config.hf_hub_id else f"{entry}{PurePosixPath(urlsplit(url).path).suffix}",
            sha256="" if config.hf_hub_id else _checksum_in(url),
            license=normalized(config.license),
            license_source="pretrained_cfg of timm" if normalized(config.license) != UNKNOWN else "not stated by timm",
            num_classes=config.num_classes,
            mean=tuple(config.mean),
            std=tuple(config.std),
            image_size=(height, width),
            resize_size=math.floor(height / config.crop_pct),
            interpolation=config.interpolation,
            crop=config.crop_mode,
            kwargs=kwargs or {},
            origin=str(config.origin_url or config.hf_hub_id or ""),
        )


def _address_of_timm(config: Any) -> str:
    """Of the safetensors file on the hub, else the older one; "" for files that only code of timm can read."""
    if config.custom_load == "hf" or (config.custom_load and not config.hf_hub_id):
        return ""
    if config.hf_hub_id:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    return str(config.url or "")


def _file_of(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _checksum_in(url: str) -> str:
    """The beginning of the SHA-256 that torch.hub's files carry in their names."""
    found = re.search(r"-([0-9a-f]{8,64})\.", _file_of(url))
    return found[1] if found else ""


@lru_cache(maxsize=8)
def _class_names(library: str, entry: str, tag: str, count: int) -> tuple[str, ...]:
    from torchvision.models import get_model_weights

    if library == "torchvision":
        return tuple(get_model_weights(entry)[tag].meta["categories"])
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset == "imagenet-1k":  # the same words for the same classes in both libraries, so that answers compare
        return tuple(get_model_weights("resnet18").DEFAULT.meta["categories"])
    if subset is None:
        return tuple(f"class {i}" for i in range(count))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(count))
