"""timm/NAME: every network of timm behind the same contract as ours; loaded when asked for, never downloading.

Paper: see timm's own documentation of each network, https://github.com/huggingface/pytorch-image-models.
Implements: the adapter only.
Differs from the paper: networks with a fixed input size are built for the size of the pictures.
Checked against: timm itself (tests/contracts/test_models.py).
Reproduced: not yet run.
Weights: none shipped; `pretrained_cfg["license"]` names the license of timm's published ones.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError, UnknownName, nearest
from opsin.models import Classified, Feature

FORBIDDEN = ("pretrained", "checkpoint_path", "features_only", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")


class TimmModel(nn.Module):
    """A timm network that returns `Classified`.

    Args:
        net: as `timm.create_model` makes it.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's metadata of its weights: license, mean, std, input_size, interpolation, crop_pct, classifier."""
        return dict(getattr(self.net, "pretrained_cfg", None) or {})

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the classifier's modules."""
        names = self.pretrained_cfg.get("classifier") or ()
        return tuple(f"net.{name}" for name in ([names] if isinstance(names, str) else names))

    @property
    def feature_info(self) -> list[Feature]:
        """Channels and stride of each level of `forward_pyramid`.

        Raises:
            ConfigError: if timm offers no feature maps for this network.
        """
        info = getattr(self.net, "feature_info", None)
        if info is None or not hasattr(self.net, "forward_intermediates"):
            raise ConfigError(f"timm gives no feature pyramid for {type(self.net).__name__}; choose another backbone.")
        return [Feature(int(level["num_chs"]), int(level["reduction"])) for level in list(info)]

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Feature maps as in `feature_info`: (B, channels, H / stride, W / stride); a ViT gives one per block."""
        levels = len(self.feature_info)
        try:
            features: list[Tensor] = self.net.forward_intermediates(  # type: ignore[operator]
                images, indices=levels, intermediates_only=True, output_fmt="NCHW"
            )
        except AssertionError as error:  # how timm refuses pictures of another size
            raise ShapeError(
                f"{type(self.net).__name__} cannot take pictures {tuple(images.shape)}: {error}"
            ) from error
        return features

    def forward(self, images: Tensor) -> Classified:
        return Classified(self.net(images))  # (B, K)


def timm_model(
    name: str, num_classes: int = 1000, in_channels: int = 3, image_size: tuple[int, int] | None = None, **kwargs: Any
) -> TimmModel:
    """Build a timm network with new weights.

    Args:
        name: as `timm.list_models()` gives it, with or without the tag of published weights.
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W); used by networks whose input size is fixed when they are built (ViT, Swin, ...).
        kwargs: handed to timm.

    Raises:
        UnknownName: if timm has no such network; the message offers the nearest ones.
        ConfigError: if the network has no such argument or refuses a value.
    """
    import timm
    from timm.models import is_model

    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        raise UnknownName("timm model", name, timm.list_models(), hint="Names are those of timm.list_models().")
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        raise UnknownName("timm weights tag", name, timm.list_pretrained(f"{architecture}.*"))
    for argument in FORBIDDEN:
        if argument in kwargs:
            raise ConfigError(
                f"model 'timm/{name}': '{argument}' is not accepted. Give weights as a file with --weights."
            )
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if image_size is not None and config is not None and config.fixed_input_size:
        kwargs.setdefault("img_size", image_size)
    try:
        net = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **kwargs)
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None or unexpected[1] not in kwargs:
            raise
        raise ConfigError(_unknown_argument(name, unexpected[1])) from error
    return TimmModel(net)


def _unknown_argument(name: str, argument: str) -> str:
    """Say that timm's network has no such argument, with the nearest it has (read from a plain build of it)."""
    import timm

    known: list[str] = []
    with contextlib.suppress(Exception):
        known = list(inspect.signature(type(timm.create_model(name, pretrained=False))).parameters)
    near = nearest(argument, known)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else f" It takes: {', '.join(known)}."
    return f"model 'timm/{name}' has no argument '{argument}'.{hint}"
