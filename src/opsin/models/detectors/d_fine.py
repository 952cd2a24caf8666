"""D-FINE: boxes as distributions over their edges, refined layer by layer, the last layer teaching the others.

Paper: D-FINE: Redefine Regression Task of DETRs as Fine-grained Distribution Refinement, 2024,
    https://arxiv.org/abs/2410.13842.
Implements: HGNetV2 backbone or any with `forward_pyramid`, hybrid encoder with ELAN fusion blocks, decoder with a gate in
    the place of the residual after cross-attention, fine-grained distribution refinement (section 4.1), localization
    quality added to the class scores, contrastive denoising, varifocal + L1 + generalized IoU + fine-grained
    localization losses, and self-distillation by the decoupled distillation focal loss (section 4.2). Sizes N to X.
Differs from the paper: every layer's losses use its own assignment; the union of all layers' assignments of section 4.2
    is left out, as in transformers. Against transformers' training code (5.23), which is otherwise followed: there a
    layer's logits and boxes are paired with the next layer's distributions, the last but one layer has no loss of its
    own and the last no localization loss; here each layer has all of its own, as in the paper and the authors' code. The
    distillation loss is a mean over the pictures of a micro-batch, whose parts weigh as the square roots of their
    numbers; over several micro-batches or processes such means are averaged.
Checked against: transformers 5.23, DFineForObjectDetection, with its random weights mapped in: outputs; all losses by its
    criterion, given each layer's own tensors; gradients of parameters and pictures; parameter counts
    (tests/oracles/test_d_fine.py).
Reproduced: not yet run.
Weights: none shipped. The published files (ustc-community/dfine-nano-coco, dfine-small-coco, ... on the Hugging Face hub;
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
from torch.nn import functional as F
from torchvision.ops import box_convert

from opsin.errors import ConfigError
from opsin.layers.box_queries import ProposalHead, best_of, inverse_sigmoid, picture_scale
from opsin.layers.deformable_attention import DeformableAttention, Sampling, Sizes
from opsin.layers.denoising import NoisyQueries, noisy_queries
from opsin.layers.fpn import Norm, with_norm
from opsin.layers.hybrid_encoder import ConvNorm, CspRepLayer, HybridEncoder, Mlp, SelfAttention
from opsin.layers.set_matching import Costs, match_sets
from opsin.layers.wide import wide
from opsin.losses.set_prediction import Pairs, matched, paired_iou, set_losses, wanted
from opsin.models.builder import build_backbone
from opsin.models.detectors import Detector, Targets
from opsin.models.weights import translated
from opsin.task import Part

NAMES = ("d_fine_n", "d_fine_s", "d_fine_m", "d_fine_l", "d_fine_x")

WEIGHTS = {"labels": 1.0, "distance": 5.0, "overlap": 2.0, "edges": 0.15, "distillation": 1.5}  # appendix A.1
TEMPERATURE = 5.0  # of the distillation

# Names of transformers (older spelling or newer) and what they are called here.
RENAME = (
    (r"^model\.", ""),
    (r"^backbone\.model\.embedder\.", "backbone.stem."),
    (r"^backbone\.model\.encoder\.", "backbone."),
    (r"^(backbone\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\..*)\.normalization\.", r"\1.bn."),
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
    (r"\.gateway\.", ".cross_attn_gate."),
    (r"\.final_layer_norm\.", ".mlp_norm."),
    (r"\.fc1\.", ".mlp.layers.0."),
    (r"\.fc2\.", ".mlp.layers.1."),
    (r"^denoising_class_embed\.", "decoder.noisy_labels."),
    (r"^enc_output\.", "proposals.output."),
    (r"^enc_score_head\.", "proposals.class_head."),
    (r"^enc_bbox_head\.", "proposals.box_head."),
    (r"^decoder\.query_pos_head\.", "decoder.box_positions."),
    (r"^decoder\.pre_bbox_head\.", "decoder.first_box_head."),
    (r"^decoder\.lqe_layers\.(\d+)\.reg_conf\.", r"decoder.quality_heads.\1."),
    (r"^(?:decoder\.)?class_embed\.", "decoder.class_heads."),
    (r"^(?:decoder\.)?bbox_embed\.", "decoder.edge_heads."),
)
LEFT_OUT = (r"\.num_points_scale$",)  # constants


class Found(NamedTuple):
    """What the decoder says of N queries; boxes are center x, center y, width, height as shares of the picture."""

    logits: Tensor  # (layers, B, N, K)
    boxes: Tensor  # (layers, B, N, 4)
    edges: Tensor  # (layers, B, N, 4 * (bins + 1)), logits of the distances of left, top, right and bottom
    first_logits: Tensor  # (B, N, K), of the first layer without localization quality
    first_boxes: Tensor  # (B, N, 4), that all distances are measured from

    def part(self, start: int, stop: int | None) -> Found:
        """Some of the queries."""
        return Found(*(one[..., start:stop, :] for one in self))


class Raw(NamedTuple):
    """What the layers say."""

    found: Found
    proposal_logits: Tensor  # (B, N, K)
    proposal_boxes: Tensor  # (B, N, 4)
    scale: Tensor  # (4,) width, height, width, height of the picture in pixels
    noisy: NoisyQueries | None = None  # of training
    noisy_found: Found | None = None


def bin_distances(bins: int, up: Tensor, curve: Tensor) -> Tensor:
    """W(n) of equation 2, (bins + 1,): distances that grow from the middle bin, which is 0, exponentially to both sides.

    Args:
        bins: their number less one; even.
        up: (1,) sets the largest distance, twice `up * curve`.
        curve: (1,) unit of distances in a box: width (or height) divided by it.
    """
    most = (up * curve).abs()
    steps = (most + 1) ** (2 / (bins - 2))
    side = steps ** torch.arange(1, bins // 2, device=up.device, dtype=up.dtype) - 1
    return torch.cat([-2 * most, -side.flip(0), torch.zeros_like(most), side, 2 * most])


def moved(boxes: Tensor, distances: Tensor, curve: Tensor) -> Tensor:
    """Boxes (..., 4) whose four edges lie `distances` (..., 4) farther out, in units of width or height / `curve`."""
    center, side = boxes[..., :2], boxes[..., 2:]
    reach = (0.5 * curve.abs() + distances) / curve.abs()
    low, high = center - reach[..., :2] * side, center + reach[..., 2:] * side
    return torch.cat([(low + high) / 2, high - low], -1)


def edge_targets(boxes: Tensor, true_boxes: Tensor, distances: Tensor, curve: Tensor) -> tuple[Tensor, Tensor]:
    """Which two bins the true edges lie between, and how near to the second.

    Args:
        boxes: (M, 4) that distances are measured from.
        true_boxes: (M, 4).
        distances: (bins + 1,) of the bins, growing.
        curve: unit of distances.

    Returns:
        The left bin (4 M,) int64, and the share of the right one (4 M,) in [0, 1]; edges beyond the last bin are it.
    """
    corners = box_convert(true_boxes, "cxcywh", "xyxy")
    unit = boxes[:, 2:] / curve.abs() + 1e-16
    outward = torch.cat([(boxes[:, :2] - corners[:, :2]) / unit, (corners[:, 2:] - boxes[:, :2]) / unit], 1)
    wanted_at = (outward - 0.5 * curve.abs()).flatten()
    left = ((distances <= wanted_at[:, None]).sum(1) - 1).clamp(0, len(distances) - 2)
    share = (wanted_at - distances[left]) / (distances[left + 1] - distances[left])
    return left, share.clamp(0, 1)


class ElanBlock(nn.Module):
    """Channels in two halves, one of them through two steps whose results are all kept (GELAN, arxiv 2402.13616)."""

    def __init__(self, in_channels: int, channels: int, hidden: int, blocks: int, activation: str = "silu") -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, in_channels, 1, activation=activation)
        self.csp_rep1 = CspRepLayer(in_channels // 2, hidden, blocks, activation=activation)
        self.conv2 = ConvNorm(hidden, hidden, 3, activation=activation)
        self.csp_rep2 = CspRepLayer(hidden, hidden, blocks, activation=activation)
        self.conv3 = ConvNorm(hidden, hidden, 3, activation=activation)
        self.conv4 = ConvNorm(in_channels + 2 * hidden, channels, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.conv1(x).chunk(2, 1)
        first = self.conv2(self.csp_rep1(halves[1]))
        second = self.conv3(self.csp_rep2(first))
        out: Tensor = self.conv4(torch.cat([*halves, first, second], 1))
        return out


class Shrink(nn.Module):
    """A 1x1 convolution, then one of each channel that halves the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 1)
        self.conv2 = ConvNorm(channels, channels, 3, 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class Gate(nn.Module):
    """Two tensors, each weighed by both, added and normalized."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = self.gate(torch.cat([x, y], -1)).sigmoid().chunk(2, -1)
        out: Tensor = self.norm(first * x + second * y)
        return out


class DecoderLayer(nn.Module):
    """Attention among the queries, then to the maps behind a gate, then a two-layer network."""

    def __init__(
        self, dim: int, num_heads: int, hidden: int, points: Sequence[int], sampling: Sampling, offset_scale: float
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, num_heads, points, False, sampling, offset_scale)
        self.cross_attn_gate = Gate(dim)
        self.mlp = Mlp(dim, hidden, dim, 2)
        self.mlp_norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, positions: Tensor, boxes: Tensor, memory: Tensor, sizes: Sizes, mask: Tensor | None
    ) -> Tensor:
        x = self.self_attn_norm(x + self.self_attn(x, positions, mask))
        x = self.cross_attn_gate(x, self.cross_attn(x + positions, boxes, memory, sizes))
        largest = torch.finfo(torch.float16).max  # half precision overflows here
        out: Tensor = self.mlp_norm((x + self.mlp(x)).clamp(-largest, largest))
        return out


class Decoder(nn.Module):
    """Queries with boxes, whose edges' distributions are refined layer by layer.

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
        bins: of an edge's distribution, less one.
        curve: unit of the distances; `up` and it set the largest distance.
        up: see `curve`.
    """

    up: Tensor
    best = 4  # chances of an edge that its quality is told from

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
        bins: int,
        curve: float,
        up: float,
    ) -> None:
        super().__init__()
        self.dim, self.bins = dim, bins
        self.projections = nn.ModuleList(
            nn.Identity()
            if channels == dim
            else nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim))
            for channels in in_channels
        )
        self.noisy_labels = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        self.box_positions = Mlp(4, 2 * dim, dim, 2)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, hidden, points, sampling, offset_scale) for _ in range(layers)
        )
        self.first_box_head = Mlp(dim, dim, 4, 3)
        self.class_heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(layers))
        self.edge_heads = nn.ModuleList(Mlp(dim, dim, 4 * (bins + 1), 3) for _ in range(layers))
        self.quality_heads = nn.ModuleList(Mlp(4 * (self.best + 1), 64, 1, 2) for _ in range(layers))
        self.register_buffer("up", torch.tensor([up]))
        self.register_buffer("reg_scale", torch.tensor([curve]))
        self.reg_scale: Tensor

    def flatten(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The maps of all levels one after the other, (B, sum of H * W, D), and their sizes (H, W)."""
        projected = [layer(one) for layer, one in zip(self.projections, maps, strict=True)]
        sizes = [(one.shape[-2], one.shape[-1]) for one in projected]
        return torch.cat([one.flatten(2) for one in projected], -1).transpose(1, 2), sizes

    def distances(self) -> Tensor:
        """Of the bins, (bins + 1,)."""
        return bin_distances(self.bins, self.up, self.reg_scale)

    def quality(self, i: int, chances: Tensor) -> Tensor:
        """What is added to all logits of a box (B, N, 1), from the largest chances of its edges (B, N, 4, bins + 1)."""
        top = chances.topk(self.best, dim=-1).values
        told: Tensor = self.quality_heads[i](torch.cat([top, top.mean(-1, keepdim=True)], -1).flatten(2))
        return told

    def forward(
        self, x: Tensor, boxes: Tensor, memory: Tensor, sizes: Sizes, mask: Tensor | None, layers: int, all_layers: bool
    ) -> Found:
        """What every layer says, or the last one alone."""
        logits, found, edges = [], [], []
        distances = self.distances()
        before = torch.zeros_like(x)
        total = boxes.new_zeros(1)  # edges' logits so far
        first_boxes, first_logits = boxes, boxes
        for i in range(layers):
            x = self.layers[i](x, self.box_positions(boxes).clamp(-10, 10), boxes, memory, sizes, mask)
            if i == 0:
                first_boxes = (wide(self.first_box_head(x)) + inverse_sigmoid(boxes)).sigmoid()
            total = wide(self.edge_heads[i](x + before)) + total
            chances = torch.unflatten(total, -1, (4, self.bins + 1)).softmax(-1)
            refined = moved(first_boxes.detach(), (chances * distances).sum(-1), self.reg_scale)
            if i == 0 and all_layers:
                first_logits = self.class_heads[0](x)
            if all_layers or i == layers - 1:
                logits.append(self.class_heads[i](x) + self.quality(i, chances))
                found.append(refined)
                edges.append(total)
            boxes, before = refined.detach(), x.detach()
        return Found(torch.stack(logits), torch.stack(found), torch.stack(edges), first_logits, first_boxes)


class DFine(Detector):
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
            elif re.search(r"(box_head|edge_heads\.\d+)\.layers\.2\.|quality_heads\.\d+\.layers\.1\.|\.gate\.", name):
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
        scale = picture_scale((images.shape[-2], images.shape[-1]), images)
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
        found = self.decoder(x, boxes, memory, sizes, mask, layers, every)
        proposed_boxes = proposed.box_logits.sigmoid()
        if noisy is None:
            return Raw(found, proposed.logits, proposed_boxes, scale)
        own, copies = found.part(noisy.total, None), found.part(0, noisy.total)
        return Raw(own, proposed.logits, proposed_boxes, scale, noisy, copies)

    def terms(self, raw: Raw, targets: Targets) -> dict[str, Tensor]:
        """Every loss as a sum that is still to be divided by the number of objects, not weighted.

        `labels`, `distance`, `overlap` and `edges` (fine-grained localization) of the last layer; with `_0`, `_1` ... of
        the layers before, which have `distillation` too, a mean over pictures; with `_first` of the boxes that all
        distances are measured from, with `_proposals` of the encoder; all with `_noisy` of the denoising queries, divided
        by the number of their groups.
        """
        true, labels = _shares(targets.boxes, raw.scale), targets.labels
        terms = self._terms(raw.found, None, true, labels)
        pairs = match_sets(raw.proposal_logits, raw.proposal_boxes, true, labels, self.costs)
        proposed = set_losses(raw.proposal_logits, raw.proposal_boxes, pairs, true, labels)
        terms.update({f"{name}_proposals": value for name, value in proposed.items()})
        if raw.noisy is not None and raw.noisy_found is not None:
            pairs = raw.noisy.matches([len(own) for own in labels])
            for name, value in self._terms(raw.noisy_found, pairs, true, labels).items():
                shared = 1 if name.startswith("distillation") else raw.noisy.groups
                terms[f"{name}_noisy"] = value / shared
        return terms

    def _terms(
        self, found: Found, given: Pairs | None, true: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Losses of all layers, with given pairs or those of least cost."""
        terms: dict[str, Tensor] = {}
        last = len(found.logits) - 1
        for i in range(-1, last + 1):
            logits = wide(found.logits[i] if i >= 0 else found.first_logits)
            boxes = (found.boxes[i] if i >= 0 else found.first_boxes).clamp(0, 1)
            suffix = "" if i == last else "_first" if i < 0 else f"_{i}"
            pairs = match_sets(logits, boxes, true, labels, self.costs) if given is None else given
            own = set_losses(logits, boxes, pairs, true, labels)
            if i >= 0:
                iou = paired_iou(matched(boxes.detach(), pairs), wanted(true, pairs))[0]
                own["edges"] = self._localization(found.edges[i], found.first_boxes, iou, pairs, true)
            if 0 <= i < last:
                own["distillation"] = self._distillation(
                    found.edges[i], found.edges[last], found.logits[last], iou, pairs
                )
            terms.update({f"{name}{suffix}": value for name, value in own.items()})
        return terms

    def _localization(self, edges: Tensor, start: Tensor, iou: Tensor, pairs: Pairs, true: Sequence[Tensor]) -> Tensor:
        """Fine-grained localization loss (equation 5): cross-entropy with the two bins around each edge, times the IoU."""
        logits = matched(edges, pairs).reshape(-1, self.decoder.bins + 1)  # (4 M, bins + 1)
        distances = self.decoder.distances()
        left, share = edge_targets(
            matched(start.detach(), pairs), wanted(true, pairs), distances, self.decoder.reg_scale
        )
        chances = logits.log_softmax(-1)
        near = chances.gather(1, left[:, None]).squeeze(1) * (1 - share)
        far = chances.gather(1, left[:, None] + 1).squeeze(1) * share
        return -((near + far) * iou.repeat_interleave(4)).sum()

    def _distillation(self, edges: Tensor, teacher: Tensor, scores: Tensor, iou: Tensor, pairs: Pairs) -> Tensor:
        """Decoupled distillation focal loss (equation 6): divergence from the last layer's distributions.

        Matched boxes weigh by their IoU, the others by the last layer's score.
        """
        shape = (*edges.shape[:2], 4, self.decoder.bins + 1)
        own = (edges.reshape(shape) / TEMPERATURE).log_softmax(-1)
        theirs = (teacher.detach().reshape(shape) / TEMPERATURE).softmax(-1)
        divergence = F.kl_div(own, theirs, reduction="none").sum(-1).sum(-1) * TEMPERATURE**2  # (B, N)
        weight = wide(scores.detach()).sigmoid().amax(-1)
        chosen = torch.zeros_like(weight, dtype=torch.bool)
        for i, (place, _) in enumerate(pairs):
            chosen[i, place] = True
        place = torch.cat([place for place, _ in pairs])
        picture = torch.cat([torch.full_like(place, i) for i, (place, _) in enumerate(pairs)])
        weight = weight.index_put((picture, place), iou.to(weight.dtype))
        sides = [(divergence * weight)[chosen].sum() / 4, (divergence * weight)[~chosen].sum() / 4]
        numbers = [chosen.sum().clamp(min=1), (~chosen).sum().clamp(min=1)]
        roots = [chosen.sum() ** 0.5, (~chosen).sum() ** 0.5]
        total = sum(side / number * root for side, number, root in zip(sides, numbers, roots, strict=True))
        return total / (roots[0] + roots[1])

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`labels`, `distance`, `overlap`, `edges`, `distillation` over all layers, and the same of the noisy copies."""
        terms = self.terms(raw, targets)
        objects, pictures = float(sum(len(own) for own in targets.labels)), float(len(targets.labels))
        parts = {}
        for noisy in (False, True):
            for name, weight in WEIGHTS.items():
                chosen = [
                    value for key, value in terms.items() if key.startswith(name) and key.endswith("_noisy") == noisy
                ]
                total = torch.stack(chosen).sum() if chosen else raw.proposal_boxes.new_zeros(())
                part = (
                    Part(total * pictures, pictures, weight) if name == "distillation" else Part(total, objects, weight)
                )
                parts[f"{name}_noisy" if noisy else name] = part
        return parts

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The 300 best (query, class) pairs of the last layer."""
        return best_of(raw.found.logits[-1], raw.found.boxes[-1], size)


def _shares(boxes: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """Boxes xyxy in pixels as center x, center y, width, height in shares of the picture."""
    return [box_convert(wide(own) / scale, "xyxy", "cxcywh") for own in boxes]


def d_fine_l(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "hgnet_v2_b4",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    strides: Sequence[int] = (8, 16, 32),
    dim: int = 256,
    encoder_dim: int = 256,
    encoder_hidden: int = 1024,
    expansion: float = 1.0,
    depth: int = 3,
    num_heads: int = 8,
    decoder_hidden: int = 1024,
    decoder_layers: int = 6,
    eval_layers: int | None = None,
    num_queries: int = 300,
    points: Sequence[int] = (3, 6, 3),
    sampling: Sampling = "bilinear",
    offset_scale: float = 0.5,
    bins: int = 32,
    curve: float = 4.0,
    up: float = 0.5,
    denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> DFine:
    """Build D-FINE-L: HGNetV2-B4, six decoder layers: 31 M parameters.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W), for backbones that have to know it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        strides: of the backbone's maps that are used.
        dim: channels of the decoder.
        encoder_dim: channels of the encoder.
        encoder_hidden: width of the network after the encoder's attention.
        expansion: width of the encoder's fusion blocks, as a share of half `encoder_dim`.
        depth: RepVGG blocks in a half of a fusion block.
        num_heads: of all attentions.
        decoder_hidden: width of the networks after the decoder's attentions.
        decoder_layers: layers of the decoder.
        eval_layers: how many of them are used in evaluation; all by default.
        num_queries: proposals that the decoder gets.
        points: places that a head looks at, per level.
        sampling: "bilinear", or "discrete" for devices without grid sampling.
        offset_scale: unit of the places' offsets, as a share of the box.
        bins: of an edge's distribution, less one; even.
        curve: unit of an edge's distance: width or height divided by it.
        up: the largest distance is twice `up * curve`.
        denoising: near copies of the true boxes wished for in training; 0 for none.
        label_noise: twice the share of their labels that are drawn anew.
        box_noise: how far their corners move, as a share of half the side.
    """
    if eval_layers is not None and not 1 <= eval_layers <= decoder_layers:
        raise ConfigError(f"eval_layers = {eval_layers}; expected 1 to {decoder_layers}, the layers of the decoder.")
    if bins < 4 or bins % 2:
        raise ConfigError(f"bins = {bins}; expected an even number from 4 on, so that one bin lies in the middle.")
    net, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, strides)
    net = with_norm(net, norm)
    channels = [level.channels for level in info]
    if len(points) != len(levels):
        raise ConfigError(
            f"points = {list(points)}: expected one number for each of the {len(levels)} levels of {backbone}."
        )
    hidden = int(expansion * encoder_dim // 2)
    encoder = HybridEncoder(
        channels,
        encoder_dim,
        num_heads,
        encoder_hidden,
        lambda: ElanBlock(2 * encoder_dim, encoder_dim, hidden, depth),
        lambda: Shrink(encoder_dim),
        lateral_activation="",
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
        bins,
        curve,
        up,
    )
    return DFine(
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


d_fine_n = partial(
    d_fine_l,
    backbone="hgnet_v2_b0",
    strides=(16, 32),
    dim=128,
    encoder_dim=128,
    encoder_hidden=512,
    expansion=0.34,
    depth=2,
    decoder_hidden=512,
    decoder_layers=3,
    points=(6, 6),
)
"""Build D-FINE-N: HGNetV2-B0, two levels, 128 channels, three decoder layers: 4 M parameters."""

d_fine_s = partial(d_fine_l, backbone="hgnet_v2_b0", expansion=0.5, depth=1, decoder_layers=3)
"""Build D-FINE-S: HGNetV2-B0, three decoder layers: 10 M parameters."""

d_fine_m = partial(d_fine_l, backbone="hgnet_v2_b2", depth=2, decoder_layers=4)
"""Build D-FINE-M: HGNetV2-B2, four decoder layers: 19 M parameters."""

d_fine_x = partial(d_fine_l, backbone="hgnet_v2_b5", encoder_dim=384, encoder_hidden=2048)
"""Build D-FINE-X: HGNetV2-B5, an encoder of 384 channels: 62 M parameters."""
