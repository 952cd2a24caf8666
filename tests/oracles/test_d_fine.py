"""D-FINE against transformers: same weights, same pictures, same objects, same noise, same numbers.

The training losses are those of transformers' criterion, given the tensors of each layer together (the header of
opsin/models/detectors/d_fine.py says what its own training code pairs instead).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from tests.oracles.comparing import compare, count, on_meta
from tests.oracles.comparing_detr import (
    as_theirs,
    assert_near,
    assert_same_gradients,
    random_targets,
    randomized,
    taken_over,
)
from torch import Tensor, nn
from transformers import DFineConfig, DFineForObjectDetection
from transformers.loss.loss_d_fine import DFineLoss, bbox2distance
from transformers.models.d_fine.modeling_d_fine import distance2bbox, weighting_function

from opsin.errors import ConfigError
from opsin.layers.hybrid_encoder import RepVggBlock
from opsin.models import ModelSpec, build, models
from opsin.models.detectors.d_fine import DFine, bin_distances, edge_targets, moved
from opsin.models.weights import load_weights

NUM_CLASSES = 5
SIZE = (96, 64)
KWARGS = {
    "backbone_kwargs": {"width": 0.25},
    "dim": 32,
    "encoder_dim": 32,
    "encoder_hidden": 48,
    "decoder_hidden": 40,
    "num_heads": 4,
    "decoder_layers": 3,
    "num_queries": 12,
    "denoising": 8,
    "bins": 8,
}


def ours(name: str = "d_fine_s", **kwargs: object) -> DFine:
    torch.manual_seed(0)
    model = build(ModelSpec(name, {**KWARGS, **kwargs}, 3, NUM_CLASSES, SIZE, "detected"))
    assert isinstance(model, DFine)
    return model


def backbone_config(
    config: DFineConfig, stem: list[int], stages: list[list[int]], blocks: list[int], layers: int, affine: bool
) -> None:
    backbone = config.backbone_config
    backbone.stem_channels = stem
    backbone.stage_in_channels, backbone.stage_mid_channels, backbone.stage_out_channels = stages
    backbone.hidden_sizes = stages[2]
    backbone.stage_num_blocks, backbone.stage_numb_of_layers = blocks, [layers] * 4
    backbone.use_learnable_affine_block = affine


def their_config(**kwargs: Any) -> DFineConfig:
    config = DFineConfig(
        num_labels=NUM_CLASSES,
        **{
            "d_model": 32,
            "encoder_hidden_dim": 32,
            "decoder_in_channels": [32, 32, 32],
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 40,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "decoder_layers": 3,
            "num_queries": 12,
            "num_denoising": 8,
            "max_num_bins": 8,
            "encoder_in_channels": [64, 128, 256],
            "hidden_expansion": 0.5,
            "depth_mult": 0.34,
            "decoder_n_points": [3, 6, 3],
            "tie_word_embeddings": False,
            "attn_implementation": "eager",  # the other takes no mask of another precision
            "freeze_backbone_batch_norms": False,
            **kwargs,
        },
    )
    stages = [[4, 16, 64, 128], [4, 8, 16, 32], [16, 64, 128, 256]]
    backbone_config(config, [3, 4, 4], stages, [1, 1, 2, 1], 3, affine=True)
    if config.num_feature_levels == 2:
        config.backbone_config.set_output_features_output_indices(out_features=None, out_indices=[3, 4])
    return config


def theirs(config: DFineConfig) -> nn.Module:
    model = randomized(DFineForObjectDetection(config))
    with torch.no_grad():
        for head in model.model.decoder.bbox_embed:
            head.layers[-1].weight.mul_(0.3)  # distributions that are not a single bin
    for mine, shown in (
        (model.model.decoder.class_embed, model.class_embed),
        (model.model.decoder.bbox_embed, model.bbox_embed),
    ):
        shown.load_state_dict(mine.state_dict())  # two names of one set of heads; only the decoder's is used
    return model


def their_losses(config: DFineConfig, output: Any, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """transformers' criterion on each layer's logits, boxes, distributions and starts, the last layer as the teacher."""
    logits, boxes = output.intermediate_logits, output.intermediate_reference_points.clamp(0, 1)
    edges, starts = output.intermediate_predicted_corners, output.initial_reference_points
    meta = output.denoising_meta_values
    cut = meta["dn_num_split"][0] if meta is not None else 0

    def of(start: int, stop: int | None) -> list[dict[str, Tensor]]:
        part = slice(start, stop)
        found = [{"logits": logits[:, 0, part], "pred_boxes": boxes[:, 0, part]}]
        for i in range(edges.shape[1]):
            found.append(
                {
                    "logits": logits[:, i + 1, part],
                    "pred_boxes": boxes[:, i + 1, part],
                    "pred_corners": edges[:, i, part],
                    "ref_points": starts[:, i, part],
                    "teacher_corners": edges[:, -1, part],
                    "teacher_logits": logits[:, -1, part],
                }
            )
        return found

    first, *layers = of(cut, None)
    proposals = {"logits": output.enc_topk_logits, "pred_boxes": output.enc_topk_bboxes.clamp(0, 1)}
    given: dict[str, Any] = {**layers[-1], "auxiliary_outputs": [*layers[:-1], first, proposals]}
    if meta is not None:
        first, *layers = of(0, cut)
        given |= {"dn_auxiliary_outputs": [*layers, first], "denoising_meta_values": meta}
    return DFineLoss(config)(given, targets)


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision, in which differences are errors and not roundings."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # their criterion turns indices into floats
    yield
    torch.set_default_dtype(torch.float32)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "three levels": ({}, {}),
    "other widths": (
        {"encoder_hidden_dim": 48, "decoder_in_channels": [48] * 3, "hidden_expansion": 1.0, "depth_mult": 0.67},
        {"encoder_dim": 48, "expansion": 1.0, "depth": 2},
    ),
    "two levels": (
        {
            "num_feature_levels": 2,
            "encode_proj_layers": [1],
            "encoder_in_channels": [128, 256],
            "decoder_n_points": [6, 6],
            "decoder_in_channels": [32, 32],
            "feat_strides": [16, 32],
            "decoder_method": "discrete",
            "freeze_backbone_batch_norms": True,
        },
        {"strides": (16, 32), "points": (6, 6), "sampling": "discrete", "norm": "frozen"},
    ),
}
KINDS = {"vfl": "labels", "bbox": "distance", "giou": "overlap", "fgl": "edges", "ddf": "distillation"}
WEIGHTS = {"labels": 1.0, "distance": 5.0, "overlap": 2.0, "edges": 0.15, "distillation": 1.5}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_like_transformers(case: str, training: bool, in_double: None) -> None:
    """Outputs, every loss, gradients of parameters and pictures, running statistics."""
    config = their_config(**CASES[case][0])
    oracle = theirs(config).train(training)
    oracle.model.decoder.training = True  # all layers answer, whatever the mode of the layers
    model = ours(**CASES[case][1])
    names = taken_over(model, oracle)
    model.train(training)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    targets = random_targets(SIZE, (2, 0, 3), NUM_CLASSES)
    mine, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    torch.manual_seed(5)
    raw = model.raw(mine, targets)
    terms = model.terms(raw, targets)
    parts = model.losses(raw, targets)
    torch.manual_seed(5)
    expected = oracle(other, labels=as_theirs(targets, SIZE))
    start = raw.noisy.total if raw.noisy is not None else 0
    assert (raw.noisy is not None) == training
    found = raw.found
    assert_near(found.logits[-1], expected.logits[:, start:], "logits")
    assert_near(found.boxes[-1], expected.pred_boxes[:, start:], "boxes")
    for i in range(3):
        assert_near(found.edges[i], expected.intermediate_predicted_corners[:, i, start:], f"edges of layer {i}")
        assert_near(found.logits[i], expected.intermediate_logits[:, i + 1, start:], f"logits of layer {i}")
    assert_near(found.first_boxes, expected.intermediate_reference_points[:, 0, start:], "first boxes")
    assert_near(raw.proposal_logits, expected.enc_topk_logits, "proposals")
    assert_near(raw.proposal_boxes, expected.enc_topk_bboxes, "boxes of the proposals")

    places = {"": "", "aux_0": "_0", "aux_1": "_1", "aux_2": "_first", "aux_3": "_proposals"}
    places |= {"dn_0": "_0_noisy", "dn_1": "_1_noisy", "dn_2": "_noisy", "dn_3": "_first_noisy"}
    losses = their_losses(config, expected, as_theirs(targets, SIZE))
    seen = set()
    for key, value in losses.items():
        kind, _, place = key.removeprefix("loss_").partition("_")
        name = KINDS[kind] + places[place]
        if name in ("distillation", "distillation_noisy"):
            assert float(value) == 0  # the teacher is not its own pupil
            continue
        seen.add(name)
        share = 1 if kind == "ddf" else 5
        assert_near(WEIGHTS[KINDS[kind]] * terms[name] / share, value, key, least=1e-3)
    assert seen == set(terms)
    assert len(seen) == 3 * 5 + 3 + 2 + (3 * 4 + 3 + 2 if training else 0)
    total = sum(part.weight * part.sum / part.count for part in parts.values())
    summed = sum(losses.values())
    assert_near(total, summed, "loss")

    total.backward()
    summed.backward()
    assert_near(mine.grad, other.grad, "gradient of the pictures")
    assert_same_gradients(model, oracle, names)
    running = {name: value for name, value in model.named_buffers() if "running" in name}
    for name, value in oracle.named_buffers():
        if "running" in name:
            assert_near(running[names[name]], value, name)


B0 = ([3, 16, 16], [[16, 64, 256, 512], [16, 32, 64, 128], [64, 256, 512, 1024]], [1, 1, 2, 1], 3, True)
B2 = ([3, 24, 32], [[32, 96, 384, 768], [32, 64, 128, 256], [96, 384, 768, 1536]], [1, 1, 3, 1], 4, True)
B4 = ([3, 32, 48], [[48, 128, 512, 1024], [48, 96, 192, 384], [128, 512, 1024, 2048]], [1, 1, 3, 1], 6, False)
B5 = ([3, 32, 64], [[64, 128, 512, 1024], [64, 128, 256, 512], [128, 512, 1024, 2048]], [1, 2, 5, 2], 6, False)
PUBLISHED: dict[str, tuple[dict[str, Any], Any, int, int]] = {
    "n": (
        {
            "num_feature_levels": 2,
            "encode_proj_layers": [1],
            "d_model": 128,
            "encoder_hidden_dim": 128,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
            "encoder_in_channels": [512, 1024],
            "decoder_n_points": [6, 6],
            "decoder_in_channels": [128, 128],
            "feat_strides": [16, 32],
            "depth_mult": 0.5,
            "decoder_layers": 3,
            "hidden_expansion": 0.34,
        },
        B0,
        3_782_691,
        4,
    ),
    "s": (
        {
            "decoder_layers": 3,
            "hidden_expansion": 0.5,
            "depth_mult": 0.34,
            "encoder_in_channels": [256, 512, 1024],
        },
        B0,
        10_321_875,
        10,
    ),
    "m": ({"decoder_layers": 4, "depth_mult": 0.67, "encoder_in_channels": [384, 768, 1536]}, B2, 19_590_062, 19),
    "l": ({}, B4, 31_289_846, 31),
    "x": ({"encoder_hidden_dim": 384, "encoder_ffn_dim": 2048, "decoder_in_channels": [384] * 3}, B5, 62_715_478, 62),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size: str) -> None:
    """The published configurations: parameter counts, and a place and a shape for every weight."""
    kwargs, backbone, parameters, millions = PUBLISHED[size]
    config = DFineConfig(num_labels=80, freeze_backbone_batch_norms=False, **{"decoder_n_points": [3, 6, 3], **kwargs})
    backbone_config(config, *backbone)
    if size == "n":
        config.backbone_config.set_output_features_output_indices(out_features=None, out_indices=[3, 4])
    oracle = on_meta(DFineForObjectDetection, config=config)
    model = on_meta(lambda: build(ModelSpec(f"d_fine_{size}", {}, 3, 80, (640, 640), "detected"), check=False))
    constants = 2  # `up` and `reg_scale`, buffers here
    assert count(model) == count(oracle) - constants
    assert count(model) == parameters
    # The paper counts what predicts: 1x1 branches lie inside the 3x3 convolutions, and nothing is noisy.
    branches = sum(count(module.conv2) for module in model.modules() if isinstance(module, RepVggBlock))
    assert round((count(model) - branches - count(model.decoder.noisy_labels)) / 1e6) == millions
    adapted, _ = model.adapt_state(oracle.state_dict())
    assert {name: value.shape for name, value in adapted.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("size", ["b0", "b2", *(pytest.param(size, marks=pytest.mark.slow) for size in ("b4", "b5"))])
def test_backbone_like_timm(size: str) -> None:
    ours_ = on_meta(models.get(f"hgnet_v2_{size}"))
    oracle = on_meta(timm.create_model, model_name=f"hgnetv2_{size}")
    compare(f"hgnet_v2_{size}", ours_, oracle, (64, 64))
    assert count(ours_) == {"b0": 5_996_550, "b2": 11_221_356, "b4": 19_796_680, "b5": 39_569_064}[size]


def test_edges_like_transformers() -> None:
    """Distances of the bins, boxes from distances and back, also beyond the outermost bins."""
    generator = torch.Generator().manual_seed(0)
    for bins, up, curve in ((8, 0.5, 4.0), (32, 0.5, 4.0), (16, 0.25, 8.0)):
        up_, curve_ = torch.tensor([up]), torch.tensor([curve])
        distances = bin_distances(bins, up_, curve_)
        assert_near(distances, weighting_function(bins, up_, curve_), "distances")
        boxes = torch.rand(50, 4, generator=generator) * 0.4 + 0.2
        offsets = torch.randn(50, 4, generator=generator)
        assert_near(moved(boxes, offsets, curve_), distance2bbox(boxes, offsets, curve_), "boxes")
        true = torch.rand(50, 4, generator=generator) * 0.5 + 0.2
        corners = torch.cat([true[:, :2] - true[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2], 1)
        left, right, _ = bbox2distance(boxes, corners, bins, curve, up_)
        found, share = edge_targets(boxes, true, distances, curve_)
        assert torch.equal(found, left.long())
        assert_near(share, right, "share of the right bin")
        assert {0.0, 1.0} <= set(share.tolist())
        inside = (share > 0) & (share < 1)
        reached = distances[found] * (1 - share) + distances[found + 1] * share
        back = moved(boxes, reached.reshape(-1, 4), curve_)
        whole = inside.reshape(-1, 4).all(1)
        assert bool(whole.any())
        assert_near(back[whole], true[whole], "there and back")


def test_file_of_transformers_loads(tmp_path: Any) -> None:
    """A file as transformers saves it (with the older names of the published files): the same answers."""
    config = their_config()
    oracle = theirs(config).eval()
    oracle.save_pretrained(tmp_path)
    model = ours()
    report = load_weights(model, tmp_path / "model.safetensors")
    assert report.complete, report.summary()
    assert {name for name in model.state_dict() if not name.endswith("num_batches_tracked")} <= set(report.loaded)
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        found, expected = model.eval()(images), oracle(images)
    scores, index = expected.logits.sigmoid().flatten(1).topk(60)
    assert_near(found.scores, scores, "scores")
    assert torch.equal(found.labels[:, :10], (index % NUM_CLASSES)[:, :10])
    x, y, width, height = expected.pred_boxes.unbind(-1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    corners = corners * torch.tensor([64.0, 96.0, 64.0, 96.0])
    best = corners.gather(1, (index[:, :1] // NUM_CLASSES).unsqueeze(-1).expand(-1, -1, 4))
    assert_near(found.boxes[:, :1], best, "best box")


def test_file_with_other_classes(tmp_path: Any) -> None:
    theirs(their_config()).save_pretrained(tmp_path)
    model = build(ModelSpec("d_fine_s", KWARGS, 3, 2, SIZE, "detected"))
    report = load_weights(model, tmp_path / "model.safetensors")
    heads = {name.rpartition(".")[0].rstrip(".0123456789") for name in report.mismatched or {}}
    assert heads == {"decoder.class_heads", "decoder.noisy_labels", "proposals.class_head"}
    assert not report.missing


def test_layers_cut() -> None:
    """Fewer layers give the answer of that layer's heads."""
    model = ours().eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        every = model.raw(images, random_targets(SIZE, (1, 1), NUM_CLASSES))
        model.eval_layers = 1
        raw = model.raw(images)
    assert raw.found.logits.shape[0] == 1
    assert_near(raw.found.logits[0], every.found.logits[0], "logits of the first layer")
    assert_near(raw.found.boxes[0], every.found.boxes[0], "boxes of the first layer")


def test_other_backbones_sizes_and_no_objects() -> None:
    model = ours(backbone="resnet18", backbone_kwargs={"width": 8}, num_queries=300).train()
    for size in ((64, 64), (32, 160)):
        parts = model(torch.randn(2, 3, *size), random_targets(size, (0, 0), NUM_CLASSES)).losses
        assert parts is not None
        assert all(bool(part.sum.isfinite()) for part in parts.values())
        assert parts["labels"].count == 0
        found = model.eval()(torch.randn(2, 3, *size))
        cells = sum(size[0] // stride * (size[1] // stride) for stride in (8, 16, 32))
        assert found.boxes.shape[1] == min(300, cells * NUM_CLASSES)
        model.train()


def test_bfloat16_keeps_boxes_exact() -> None:
    model = ours().train()
    targets = random_targets(SIZE, (2, 1), NUM_CLASSES)
    images = torch.randn(2, 3, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model.raw(images, targets)
        parts = model.losses(raw, targets)
    assert raw.found.logits.dtype == torch.bfloat16
    assert raw.found.boxes.dtype == raw.found.edges.dtype == raw.found.first_boxes.dtype == torch.float32
    sum(part.weight * part.sum for part in parts.values()).backward()
    assert all(part.sum.dtype == torch.float32 and bool(part.sum.isfinite()) for part in parts.values())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_traced() -> None:
    model = ours(decoder_layers=2, eval_layers=2).eval()
    images = torch.randn(2, 3, *SIZE)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        found, expected = program.module()(images), model(images)
    assert_near(found.boxes, expected.boxes, "boxes")
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"eval_layers": 0}, "eval_layers = 0; expected 1 to 3"),
        ({"points": (4, 4)}, "expected one number for each of the 3 levels"),
        ({"bins": 7}, "bins = 7; expected an even number"),
        ({"norm": "layer"}, "norm = 'layer'"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ours(**kwargs)
