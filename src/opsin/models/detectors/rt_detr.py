"""RT-DETRv2: a transformer that names each object once, fast enough for video.

Paper: DETRs Beat YOLOs on Real-time Object Detection (RT-DETR), 2023, https://arxiv.org/abs/2304.08069; RT-DETRv2: Improved
    Baseline with Bag-of-Freebies, 2024, https://arxiv.org/abs/2407.17140.
Implements: backbone, hybrid encoder, proposals from the encoder (section 4.3), decoder with deformable attention and
    boxes refined layer by layer, contrastive denoising, varifocal + L1 + generalized IoU losses for every layer; v2's
    points per level and discrete sampling. Any backbone with `forward_pyramid`; the published one is ResNet vd.
Differs from the paper: a box's gradient ends at the layer that refines it, as in transformers; `look_forward_twice` lets
    it run one layer farther back, as in the authors' training code (DINO, section 3.5). Batch norms of the backbone learn
    unless `norm="frozen"`, since training from scratch is a normal use here. The varifocal loss weighs a matched class of
    IoU 0 by 0, as the authors' code does. v2's rising augmentation schedule belongs to the training recipe.
Checked against: transformers 5.23, RTDetrV2ForObjectDetection, with its random weights mapped in: outputs, losses of all
    layers, proposals and denoising, gradients of parameters and pictures (tests/oracles/test_rt_detr.py), and parameter
    counts.
Reproduced: not yet run.
Weights: none shipped. The published files (PekingU/rtdetr_v2_r18vd, _r34vd, _r50vd, _r101vd on the Hugging Face hub;
    Apache-2.0) load through `adapt_state`, and need pixels in [0, 1] without mean and deviation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from opsin.errors import ConfigError
from opsin.layers.box_queries import ProposalHead, best_of, inverse_sigmoid, picture_scale
from opsin.layers.deformable_attention import DeformableAttention, Sampling, Sizes
from opsin.layers.denoising import NoisyQueries, noisy_queries
from opsin.layers.fpn import Norm, with_norm
from opsin.layers.hybrid_encoder import ConvNorm, CspRepLayer, HybridEncoder, Mlp, SelfAttention
from opsin.layers.set_matching import Costs, match_sets
from opsin.layers.wide import wide
from opsin.losses.set_prediction import set_losses
from opsin.models.builder import build_backbone
from opsin.models.detectors import Detector, Targets
from opsin.models.weights import translated
from opsin.task import Part

NAMES = (
    "rt_detrv2_r18",
    "rt_detrv2_r34",
    "rt_detrv2_r50",
    "rt_detrv2_r101",
)

WEIGHTS = {"labels": 1.0, "distance": 5.0, "overlap": 2.0}  # section 5.1 and the authors' configuration

# Names of transformers (older spelling or newer) and what they are called here.
RENAME = (
    (r"^model\.", ""),
    (r"^backbone\.model\.embedder\.embedder\.0\.convolution", "backbone.conv1.0"),
    (r"^backbone\.model\.embedder\.embedder\.0\.normalization", "backbone.conv1.1"),
    (r"^backbone\.model\.embedder\.embedder\.1\.convolution", "backbone.conv1.3"),
    (r"^backbone\.model\.embedder\.embedder\.1\.normalization", "backbone.conv1.4"),
    (r"^backbone\.model\.embedder\.embedder\.2\.convolution", "backbone.conv1.6"),
    (r"^backbone\.model\.embedder\.embedder\.2\.normalization", "backbone.bn1"),
    (r"^(backbone\.)model\.encoder\.stages\.0\.", r"\1layer1."),
    (r"^(backbone\.)model\.encoder\.stages\.1\.", r"\1layer2."),
    (r"^(backbone\.)model\.encoder\.stages\.2\.", r"\1layer3."),
    (r"^(backbone\.)model\.encoder\.stages\.3\.", r"\1layer4."),
    (r"^(backbone\.layer\d\.)layers\.", r"\1"),
    (r"^(backbone\.layer\d\.\d+\.)layer\.0\.convolution", r"\1conv1"),
    (r"^(backbone\.layer\d\.\d+\.)layer\.0\.normalization", r"\1bn1"),
    (r"^(backbone\.layer\d\.\d+\.)layer\.1\.convolution", r"\1conv2"),
    (r"^(backbone\.layer\d\.\d+\.)layer\.1\.normalization", r"\1bn2"),
    (r"^(backbone\.layer\d\.\d+\.)layer\.2\.convolution", r"\1conv3"),
    (r"^(backbone\.layer\d\.\d+\.)layer\.2\.normalization", r"\1bn3"),
    (r"^(backbone\.layer\d\.\d+\.)shortcut\.(?:1\.)?convolution", r"\1downsample.1"),
    (r"^(backbone\.layer\d\.\d+\.)shortcut\.(?:1\.)?normalization", r"\1downsample.2"),
    (r"^encoder_input_proj\.", "encoder.projections."),
    (r"^encoder\.(?:encoder|aifi)\.0\.layers\.", "encoder.attention."),
    (r"^encoder\.lateral_convs\.", "encoder.lateral."),
    (r"^encoder\.fpn_blocks\.", "encoder.top_down."),
    (r"^encoder\.downsample_convs\.", "encoder.downsample."),
    (r"^encoder\.pan_blocks\.", "encoder.bottom_up."),
    (r"^decoder_input_proj\.", "decoder.projections."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.self_attn_layer_norm\.", ".self_attn_norm."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_norm."),
    (r"\.final_layer_norm\.", ".mlp_norm."),
    (r"\.(?:mlp\.)?fc1\.", ".mlp.layers.0."),
    (r"\.(?:mlp\.)?fc2\.", ".mlp.layers.1."),
    (r"^denoising_class_embed\.", "decoder.noisy_labels."),
    (r"^enc_output\.", "proposals.output."),
    (r"^enc_score_head\.", "proposals.class_head."),
    (r"^enc_bbox_head\.", "proposals.box_head."),
    (r"^decoder\.query_pos_head\.", "decoder.box_positions."),
    (r"^(?:decoder\.)?class_embed\.", "decoder.class_heads."),
    (r"^(?:decoder\.)?bbox_embed\.", "decoder.box_heads."),
)
LEFT_OUT = (r"\.n_points_scale$",)  # constants


class Raw(NamedTuple):
    """What the layers say; boxes are center x, center y, width, height as shares of the picture."""

    logits: Tensor  # (layers, B, N, K)
    boxes: Tensor  # (layers, B, N, 4)
    proposal_logits: Tensor  # (B, N, K)
    proposal_boxes: Tensor  # (B, N, 4)
    scale: Tensor  # (4,) width, height, width, height of the picture in pixels
    noisy: NoisyQueries | None = None  # of training
    noisy_logits: Tensor | None = None  # (layers, B, Q, K)
    noisy_boxes: Tensor | None = None  # (layers, B, Q, 4)


class DecoderLayer(nn.Module):
    """Attention among the queries, then to the maps, then a two-layer network; each added and normalized."""

    def __init__(
        self, dim: int, num_heads: int, hidden: int, points: Sequence[int], sampling: Sampling, offset_scale: float
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, num_heads, points, True, sampling, offset_scale)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, dim, 2)
        self.mlp_norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, positions: Tensor, boxes: Tensor, memory: Tensor, sizes: Sizes, mask: Tensor | None
    ) -> Tensor:
        x = self.self_attn_norm(x + self.self_attn(x, positions, mask))
        x = self.cross_attn_norm(x + self.cross_attn(x + positions, boxes, memory, sizes))
        out: Tensor = self.mlp_norm(x + self.mlp(x))
        return out


class Decoder(nn.Module):
    """Queries with boxes, refined layer by layer.

    Args:
        in_channels: of the encoder's maps.
        dim: D.
        num_classes: K.
        num_heads: of both attentions.
        hidden: width of the two-layer networks.
        layers: layers.
        points: places that a head looks at, per level.
        sampling: "bilinear" or "discrete".
        offset_scale: unit of the places' offsets, as a share of the box.
        look_forward_twice: let a box's gradient run into the layer before.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int,
        num_classes: int,
        num_heads: int,
        hidden: int,
        layers: int,
        points: Sequence[int],
        sampling: Sampling,
        offset_scale: float,
        look_forward_twice: bool,
    ) -> None:
        super().__init__()
        self.dim, self.look_forward_twice = dim, look_forward_twice
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim)) for channels in in_channels
        )
        self.noisy_labels = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        self.box_positions = Mlp(4, 2 * dim, dim, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, hidden, points, sampling, offset_scale) for _ in range(layers)
        )
        self.class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(layers))
        self.box_heads = nn.ModuleList(Mlp(dim, dim, 4, 3) for _ in range(layers))

    def flatten(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The maps of all levels one after the other, (B, sum of H * W, D), and their sizes (H, W)."""
        projected = [layer(one) for layer, one in zip(self.projections, maps, strict=True)]
        sizes = [(one.shape[-2], one.shape[-1]) for one in projected]
        return torch.cat([one.flatten(2) for one in projected], -1).transpose(1, 2), sizes

    def forward(
        self, x: Tensor, boxes: Tensor, memory: Tensor, sizes: Sizes, mask: Tensor | None, layers: int, all_layers: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (layers, B, N, K) and boxes (layers, B, N, 4) of every layer, or of the last one alone."""
        logits, found = [], []
        before = boxes
        for i in range(layers):
            x = self.layers[i](x, self.box_positions(boxes), boxes, memory, sizes, mask)
            change = wide(self.box_heads[i](x))
            refined = (change + inverse_sigmoid(boxes)).sigmoid()
            if all_layers or i == layers - 1:
                logits.append(self.class_heads[i](x))
                twice = self.look_forward_twice and self.training
                found.append((change + inverse_sigmoid(before)).sigmoid() if twice else refined)
            before, boxes = refined, refined.detach()
        return torch.stack(logits), torch.stack(found)


class RTDetr(Detector):
    """Backbone, hybrid encoder, proposals, decoder.

    Args:
        backbone: with `forward_pyramid`.
        levels: which of its maps are used, finest first.
        encoder: of those maps.
        decoder: of the encoder's maps.
        num_classes: K.
        num_queries: proposals that the decoder gets.
        eval_layers: layers of the decoder that are used in evaluation.
        denoising: near copies of the true boxes wished for in training; 0 for none.
        label_noise: twice the share of their labels that are drawn anew.
        box_noise: how far their corners move, as a share of half the side.
    """

    head_names = ("decoder.class_heads", "decoder.noisy_labels", "proposals.class_head")
    costs = Costs()

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[int],
        encoder: HybridEncoder,
        decoder: Decoder,
        num_classes: int,
        num_queries: int,
        eval_layers: int,
        denoising: int,
        label_noise: float,
        box_noise: float,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder = backbone, encoder, decoder
        self.proposals = ProposalHead(decoder.dim, num_classes, num_queries)
        self.levels = tuple(levels)
        self.num_classes, self.eval_layers = num_classes, eval_layers
        self.denoising, self.label_noise, self.box_noise = denoising, label_noise, box_noise
        self._initialize()

    def _initialize(self) -> None:
        """Every class is rare at first (focal loss, https://arxiv.org/abs/1708.02002, section 3.3); boxes stay put."""
        for name, parameter in [*self.proposals.named_parameters(), *self.decoder.named_parameters()]:
            if re.search(r"class_heads?\.(\d+\.)?bias$", name):
                nn.init.constant_(parameter, -math.log(99))
            elif re.search(r"box_heads?\.(\d+\.)?layers\.2\.", name):
                nn.init.zeros_(parameter)
            elif re.search(
                r"(class_heads?\.(\d+\.)?|box_positions\.layers\.\d\.|output\.0\.|noisy_labels\.)weight$", name
            ):
                nn.init.xavier_uniform_(parameter)
        with torch.no_grad():
            self.decoder.noisy_labels.weight[-1] = 0.0

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Weights of a file of transformers under the names here; others stay as they are."""
        if not any("bbox_embed." in name for name in state):
            return dict(state), None
        # Heads may be there under two names; the decoder's are those that are used.
        ordered = dict(sorted(state.items(), key=lambda item: not item[0].startswith("model.decoder.")))
        return translated(ordered, RENAME, LEFT_OUT), None

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """What the layers say; in training with targets, of their noisy copies too."""
        size = (images.shape[-2], images.shape[-1])
        scale = picture_scale(size, images)
        features = self.backbone.forward_pyramid(images)  # type: ignore[operator]
        memory, sizes = self.decoder.flatten(self.encoder([features[level] for level in self.levels]))
        proposed = self.proposals(memory, sizes)
        x, boxes = proposed.features.detach(), proposed.box_logits.detach().sigmoid()
        noisy = mask = None
        if targets is not None and self.training:
            true = _shares(targets.boxes, scale)
            noisy = noisy_queries(
                true, targets.labels, self.num_classes, self.denoising, self.label_noise, self.box_noise
            )
        if noisy is not None:
            x = torch.cat([self.decoder.noisy_labels(noisy.labels).to(x.dtype), x], 1)
            boxes = torch.cat([inverse_sigmoid(noisy.boxes).sigmoid(), boxes], 1)
            mask = noisy.mask(boxes.shape[1] - noisy.total)
        every = self.training or targets is not None
        layers = len(self.decoder.layers) if every else self.eval_layers
        logits, found = self.decoder(x, boxes, memory, sizes, mask, layers, every)
        start = noisy.total if noisy is not None else 0
        return Raw(
            logits[:, :, start:],
            found[:, :, start:],
            proposed.logits,
            proposed.box_logits.sigmoid(),
            scale,
            noisy,
            logits[:, :, :start] if noisy is not None else None,
            found[:, :, :start] if noisy is not None else None,
        )

    def terms(self, raw: Raw, targets: Targets) -> dict[str, Tensor]:
        """Every loss as a sum that is still to be divided by the number of objects, not weighted.

        `labels`, `distance` and `overlap` of the last layer; with `_0`, `_1` ... of the layers before, with `_proposals`
        of the encoder, and with `_noisy_0` ... of the denoising queries, divided by the number of their groups.
        """
        true, labels = _shares(targets.boxes, raw.scale), targets.labels
        last = len(raw.logits) - 1
        sets = {"" if i == last else f"_{i}": pair for i, pair in enumerate(zip(raw.logits, raw.boxes, strict=True))}
        sets["_proposals"] = (raw.proposal_logits, raw.proposal_boxes)
        terms: dict[str, Tensor] = {}
        for suffix, (logits, boxes) in sets.items():
            pairs = match_sets(logits, boxes, true, labels, self.costs)
            found = set_losses(logits, boxes, pairs, true, labels)
            terms.update({f"{name}{suffix}": value for name, value in found.items()})
        if raw.noisy is not None and raw.noisy_logits is not None and raw.noisy_boxes is not None:
            pairs = raw.noisy.matches([len(own) for own in labels])
            for i, (logits, boxes) in enumerate(zip(raw.noisy_logits, raw.noisy_boxes, strict=True)):
                found = set_losses(logits, boxes, pairs, true, labels)
                terms.update({f"{name}_noisy_{i}": value / raw.noisy.groups for name, value in found.items()})
        return terms

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`labels`, `distance`, `overlap` over all layers and the proposals, and the same of the noisy copies."""
        terms = self.terms(raw, targets)
        objects = float(sum(len(own) for own in targets.labels))
        parts = {}
        for kind in ("", "_noisy"):
            for name, weight in WEIGHTS.items():
                chosen = [
                    value for key, value in terms.items() if key.startswith(name) and ("_noisy" in key) == bool(kind)
                ]
                total = torch.stack(chosen).sum() if chosen else raw.logits.new_zeros((), dtype=torch.float32)
                parts[f"{name}{kind}"] = Part(total, objects, weight)
        return parts

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The 300 best (query, class) pairs of the last layer."""
        return best_of(raw.logits[-1], raw.boxes[-1], size)


def _shares(boxes: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """Boxes xyxy in pixels as center x, center y, width, height in shares of the picture."""
    return [box_convert(wide(own) / scale, "xyxy", "cxcywh") for own in boxes]


def rt_detrv2_r50(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50_vd",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    dim: int = 256,
    encoder_dim: int = 256,
    encoder_hidden: int = 1024,
    expansion: float = 1.0,
    num_heads: int = 8,
    decoder_hidden: int = 1024,
    decoder_layers: int = 6,
    eval_layers: int | None = None,
    num_queries: int = 300,
    points: Sequence[int] = (4, 4, 4),
    sampling: Sampling = "bilinear",
    offset_scale: float = 0.5,
    look_forward_twice: bool = False,
    denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> RTDetr:
    """Build RT-DETRv2-R50: ResNet-50 vd, six decoder layers: 42 M parameters.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W), for backbones that have to know it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        dim: channels of the decoder.
        encoder_dim: channels of the encoder.
        encoder_hidden: width of the network after the encoder's attention.
        expansion: width of the encoder's fusion blocks, as a share of `encoder_dim`.
        num_heads: of all attentions.
        decoder_hidden: width of the networks after the decoder's attentions.
        decoder_layers: layers of the decoder.
        eval_layers: how many of them are used in evaluation; all by default.
        num_queries: proposals that the decoder gets.
        points: places that a head looks at, per level.
        sampling: "bilinear", or "discrete" for devices without grid sampling.
        offset_scale: unit of the places' offsets, as a share of the box.
        look_forward_twice: let a box's gradient run into the layer before.
        denoising: near copies of the true boxes wished for in training; 0 for none.
        label_noise: twice the share of their labels that are drawn anew.
        box_noise: how far their corners move, as a share of half the side.
    """
    if eval_layers is not None and not 1 <= eval_layers <= decoder_layers:
        raise ConfigError(f"eval_layers = {eval_layers}; expected 1 to {decoder_layers}, the layers of the decoder.")
    net, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, (8, 16, 32))
    net = with_norm(net, norm)
    channels = [level.channels for level in info]
    if len(points) != len(levels):
        raise ConfigError(
            f"points = {list(points)}: expected one number for each of the {len(levels)} levels of {backbone}."
        )
    encoder = HybridEncoder(
        channels,
        encoder_dim,
        num_heads,
        encoder_hidden,
        lambda: CspRepLayer(2 * encoder_dim, encoder_dim, expansion=expansion),
        lambda: ConvNorm(encoder_dim, encoder_dim, 3, stride=2, activation="silu"),
    )
    decoder = Decoder(
        [encoder_dim] * len(levels),
        dim,
        num_classes,
        num_heads,
        decoder_hidden,
        decoder_layers,
        points,
        sampling,
        offset_scale,
        look_forward_twice,
    )
    return RTDetr(
        net,
        levels,
        encoder,
        decoder,
        num_classes,
        num_queries,
        eval_layers or decoder_layers,
        denoising,
        label_noise,
        box_noise,
    )


rt_detrv2_r18 = partial(rt_detrv2_r50, backbone="resnet18_vd", expansion=0.5, decoder_layers=3)
"""Build RT-DETRv2-R18: ResNet-18 vd, three decoder layers, half-width fusion: 20 M parameters."""

rt_detrv2_r34 = partial(rt_detrv2_r50, backbone="resnet34_vd", expansion=0.5, decoder_layers=4)
"""Build RT-DETRv2-R34: ResNet-34 vd, four decoder layers, half-width fusion: 31 M parameters."""

rt_detrv2_r101 = partial(rt_detrv2_r50, backbone="resnet101_vd", encoder_dim=384, encoder_hidden=2048)
"""Build RT-DETRv2-R101: ResNet-101 vd, an encoder of 384 channels: 76 M parameters."""
