"""RT-DETRv2 against transformers: same weights, same pictures, same objects, same noise, same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import timm
import torch
from tests.oracles.comparing import count, on_meta
from tests.oracles.comparing_detr import (
    TOLERANCE,
    as_theirs,
    assert_near,
    assert_same_gradients,
    random_targets,
    randomized,
    taken_over,
)
from torch import Tensor, nn
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
    get_contrastive_denoising_training_group,
    inverse_sigmoid,
    multi_scale_deformable_attention_v2,
)

import opsin
from opsin.errors import CheckpointError, ConfigError
from opsin.layers.deformable_attention import sample_levels
from opsin.layers.denoising import noisy_queries
from opsin.layers.normalize import Normalized
from opsin.layers.set_matching import Costs, match_sets
from opsin.models import ModelSpec, build
from opsin.models.backbones.resnet import resnet50_vd
from opsin.models.detectors import Targets
from opsin.models.detectors.rt_detr import RTDetr
from opsin.models.weights import load_weights
from opsin.run.importing import import_weights
from opsin.task import ImageSpec

NUM_CLASSES = 5
SIZE = (96, 64)
KWARGS = {
    "backbone_kwargs": {"width": 8},
    "dim": 32,
    "encoder_dim": 32,
    "encoder_hidden": 48,
    "decoder_hidden": 40,
    "num_heads": 4,
    "decoder_layers": 3,
    "num_queries": 12,
    "denoising": 8,
}


def ours(name: str = "rt_detrv2_r18", **kwargs: object) -> RTDetr:
    torch.manual_seed(0)
    model = build(ModelSpec(name, {**KWARGS, **kwargs}, 3, NUM_CLASSES, SIZE, "detected"))
    assert isinstance(model, RTDetr)
    return model


def their_config(bottleneck: bool = False, **kwargs: object) -> RTDetrV2Config:
    widths = [32, 64, 128, 256] if bottleneck else [8, 16, 32, 64]
    config = RTDetrV2Config(
        num_labels=NUM_CLASSES,
        d_model=32,
        encoder_hidden_dim=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=3,
        num_queries=12,
        num_denoising=8,
        encoder_in_channels=widths[1:],
        decoder_in_channels=[32, 32, 32],
        hidden_expansion=1.0 if bottleneck else 0.5,
        tie_word_embeddings=False,
        attn_implementation="eager",  # the other takes no mask of another precision
        **{"freeze_backbone_batch_norms": False, **kwargs},
    )
    backbone = config.backbone_config
    backbone.embedding_size, backbone.hidden_sizes = 8, widths
    backbone.depths = [2, 2, 2, 2] if not bottleneck else [1, 2, 1, 1]
    backbone.layer_type = "bottleneck" if bottleneck else "basic"
    return config


def theirs(config: RTDetrV2Config) -> nn.Module:
    model = randomized(RTDetrV2ForObjectDetection(config))
    for mine, shown in (
        (model.model.decoder.class_embed, model.class_embed),
        (model.model.decoder.bbox_embed, model.bbox_embed),
    ):
        shown.load_state_dict(mine.state_dict())  # two names of one set of heads; only the decoder's is used
    return model


@pytest.fixture
def in_double() -> Iterator[None]:
    """Double precision, in which differences are errors and not roundings."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


CASES = {
    "basic": ({}, {}, "rt_detrv2_r18"),
    "bottleneck": (
        {"bottleneck": True},
        {"backbone_kwargs": {"width": 8, "depths": (1, 2, 1, 1)}},
        "rt_detrv2_r50",
    ),
    "frozen norms": ({"freeze_backbone_batch_norms": True}, {"norm": "frozen"}, "rt_detrv2_r18"),
    "discrete": ({"decoder_method": "discrete"}, {"sampling": "discrete"}, "rt_detrv2_r18"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_like_transformers(case: str, training: bool, in_double: None) -> None:
    """Outputs, every loss, gradients of parameters and pictures, running statistics."""
    config, kwargs, name = CASES[case]
    oracle = theirs(their_config(**config)).train(training)
    model = ours(name, **kwargs)
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
    assert_near(raw.logits[-1], expected.logits[:, start:], "logits")
    assert_near(raw.boxes[-1], expected.pred_boxes[:, start:], "boxes")
    assert_near(raw.proposal_logits, expected.enc_topk_logits, "proposals")
    assert_near(raw.proposal_boxes, expected.enc_topk_bboxes, "boxes of the proposals")

    weights = {"labels": 1.0, "distance": 5.0, "overlap": 2.0}
    kinds = {"vfl": "labels", "bbox": "distance", "giou": "overlap"}
    seen = set()
    for key, value in expected.loss_dict.items():
        kind, _, place = key.removeprefix("loss_").partition("_")
        suffix = {"": "", "aux_0": "_0", "aux_1": "_1", "aux_2": "_proposals"}.get(place, f"_noisy_{place[-1:]}")
        found = terms[kinds[kind] + suffix]
        seen.add(kinds[kind] + suffix)
        assert_near(weights[kinds[kind]] * found / 5, value, key, least=1e-3)
    assert seen == set(terms)
    assert len(seen) == (21 if training else 12)
    total = sum(part.weight * part.sum / part.count for part in parts.values())
    assert_near(total, expected.loss, "loss")

    total.backward()
    expected.loss.backward()
    assert_near(mine.grad, other.grad, "gradient of the pictures")
    assert_same_gradients(model, oracle, names)
    running = {name: value for name, value in model.named_buffers() if "running" in name}
    for name, value in oracle.named_buffers():
        if "running" in name:
            assert_near(running[names[name]], value, name)


PUBLISHED = {
    "r18": ({"hidden_expansion": 0.5, "decoder_layers": 3}, [2, 2, 2, 2], 20_184_464),
    "r34": ({"hidden_expansion": 0.5, "decoder_layers": 4}, [3, 4, 6, 3], 31_441_668),
    "r50": ({}, [3, 4, 6, 3], 42_944_620),
    "r101": (
        {"encoder_ffn_dim": 2048, "encoder_hidden_dim": 384, "decoder_in_channels": [384] * 3},
        [3, 4, 23, 3],
        76_661_740,
    ),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size: str) -> None:
    """The published configurations: parameter counts, and a place and a shape for every weight."""
    kwargs, depths, parameters = PUBLISHED[size]
    basic = size in ("r18", "r34")
    if basic:
        kwargs = {**kwargs, "encoder_in_channels": [128, 256, 512]}
    config = RTDetrV2Config(num_labels=80, freeze_backbone_batch_norms=False, **kwargs)
    config.backbone_config.depths = depths
    if basic:
        config.backbone_config.hidden_sizes, config.backbone_config.layer_type = [64, 128, 256, 512], "basic"
    oracle = on_meta(RTDetrV2ForObjectDetection, config=config)
    model = on_meta(lambda: build(ModelSpec(f"rt_detrv2_{size}", {}, 3, 80, (640, 640), "detected"), check=False))
    assert count(model) == count(oracle) == parameters
    adapted, _ = model.adapt_state(oracle.state_dict())
    assert {name: value.shape for name, value in adapted.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_backbone_like_timm() -> None:
    """ResNet-50 vd is what timm calls resnet50d: same names, same answers."""
    oracle = timm.create_model("resnet50d", pretrained=False).eval()
    model = resnet50_vd().eval()
    model.load_state_dict(oracle.state_dict())
    images = torch.randn(1, 3, 67, 64, generator=torch.Generator().manual_seed(0))  # an odd side: pooling rounds up
    with torch.no_grad():
        assert_near(model(images).logits, oracle(images), "logits")


def test_attention_samples_like_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, points = [(6, 5), (3, 4)], [2, 3]
    values = torch.randn(2, 42, 4, 8, generator=generator)
    places = torch.rand(2, 7, 4, 5, 2, generator=generator) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 7, 4, 5, generator=generator)
    for mine, other in (("bilinear", "default"), ("discrete", "discrete")):
        found = sample_levels(values, sizes, places, weights, points, mine)
        expected = multi_scale_deformable_attention_v2(values, sizes, places, weights, points, other)
        assert_near(found, expected, mine)


@pytest.mark.parametrize("counts", [(2, 0, 3), (1,), (7, 7)])
def test_noisy_queries_like_transformers(counts: tuple[int, ...]) -> None:
    """From the same state of the generator: labels, boxes, groups, who sees whom, which copy is of which object."""
    targets = as_theirs(random_targets(SIZE, counts, NUM_CLASSES), SIZE)
    torch.manual_seed(11)
    labels, box_logits, mask, meta = get_contrastive_denoising_training_group(
        targets, NUM_CLASSES, 9, lambda names: names, 10, 0.8, 0.7
    )
    torch.manual_seed(11)
    found = noisy_queries(
        [one["boxes"] for one in targets], [one["class_labels"] for one in targets], NUM_CLASSES, 10, 0.8, 0.7
    )
    assert found is not None
    assert torch.equal(found.labels, labels.long())
    assert bool((found.labels < NUM_CLASSES).any())
    assert_near(inverse_sigmoid(found.boxes).sigmoid(), box_logits.sigmoid(), "boxes")
    assert found.groups == meta["dn_num_group"]
    assert meta["dn_num_split"] == [found.total, 9]
    assert torch.equal(found.mask(9), mask == 0)
    pairs = found.matches([len(one["class_labels"]) for one in targets])
    for (queries, objects), expected in zip(pairs, meta["dn_positive_idx"], strict=True):
        assert torch.equal(queries, expected)
        assert len(objects) == len(queries)


def test_no_noisy_queries_without_objects() -> None:
    nothing = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    assert noisy_queries(*nothing, num_classes=3) is None
    one = [torch.full((1, 4), 0.5)], [torch.zeros(1, dtype=torch.int64)]
    assert noisy_queries(*one, num_classes=3, count=0) is None


def test_matching_like_transformers() -> None:
    """Also with predictions that are not finite, and with more objects than predictions."""
    generator = torch.Generator().manual_seed(0)
    matcher = RTDetrHungarianMatcher(RTDetrV2Config())
    for counts in ((3, 0, 6), (1, 2, 15)):
        logits = torch.randn(3, 10, NUM_CLASSES, generator=generator)
        boxes = torch.rand(3, 10, 4, generator=generator) * 0.3 + 0.2
        logits[0, :2] = torch.nan
        targets = as_theirs(random_targets(SIZE, counts, NUM_CLASSES), SIZE)
        expected = matcher({"logits": logits, "pred_boxes": boxes}, targets)
        true = [one["boxes"] for one in targets], [one["class_labels"] for one in targets]
        for found, other in zip(match_sets(logits, boxes, *true, Costs()), expected, strict=True):
            assert torch.equal(found[0], other[0])
            assert torch.equal(found[1], other[1])


def test_look_forward_twice_changes_gradients_alone() -> None:
    """DINO, section 3.5: the same losses; what a layer says of a box is also taught by the next layer's loss."""
    images, targets = torch.randn(2, 3, *SIZE), random_targets(SIZE, (2, 3), NUM_CLASSES)
    totals, gradients = [], []
    for twice in (False, True):
        model = ours(look_forward_twice=twice).train()
        with torch.no_grad():
            for head in model.decoder.box_heads:
                head.layers[-1].weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        parts = model(images, targets).losses
        assert parts is not None
        total = sum(part.weight * part.sum for part in parts.values())
        total.backward()
        totals.append(total.detach())
        gradients.append(model.decoder.box_heads[0].layers[-1].weight.grad)
    assert_near(totals[1], totals[0], "loss")
    assert float((gradients[1] - gradients[0]).abs().max()) > 1e-3 * float(gradients[0].abs().max())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_file_of_transformers_loads(tmp_path, suffix: str) -> None:
    """A file as transformers saves it (with the older names of the published files), into a wrapped network."""
    oracle = theirs(their_config()).eval()
    oracle.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if suffix == ".pt":
        file = tmp_path / "weights.pt"
        torch.save(oracle.state_dict(), file)
    model = ours()
    wrapped = Normalized(model, ImageSpec(3, "float32", (0.0, 1.0)), (0.0,) * 3, (1.0,) * 3)
    report = load_weights(wrapped, file)
    assert report.complete, report.summary()
    wanted = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert wanted <= set(report.loaded)
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        found, expected = model.eval()(images), oracle(images)
    scores, index = expected.logits.sigmoid().flatten(1).topk(60)
    assert_near(found.scores, scores, "scores")
    assert torch.equal(found.labels[:, :10], (index % NUM_CLASSES)[:, :10])
    assert json.loads((tmp_path / "config.json").read_text())["num_queries"] == 12


def test_import_makes_a_detector(tmp_path) -> None:
    """`opsin models import`: class names from the file's config, answers in pixels of the picture."""
    oracle = theirs(their_config(id2label={i: f"thing {i}" for i in range(NUM_CLASSES)})).eval()
    oracle.save_pretrained(tmp_path / "theirs")
    found = import_weights(
        tmp_path / "theirs" / "model.safetensors", "rt_detrv2_r18", tmp_path / "bundle", kwargs=KWARGS, size=64,
        classes=str(tmp_path / "theirs" / "config.json"), mean=(0.0,), std=(1.0,), license="apache-2.0",
    )  # fmt: skip
    assert found.license == "apache-2.0"
    bundle = opsin.load(found.folder)
    assert bundle.task.settings.class_names == tuple(f"thing {i}" for i in range(NUM_CLASSES))
    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = bundle.predict(pixels.numpy())
    with torch.no_grad():
        expected = oracle(pixels.permute(2, 0, 1)[None] / 255)
    scores, index = expected.logits.sigmoid().flatten(1).max(1)
    x, y, width, height = (expected.pred_boxes[0, int(index) // NUM_CLASSES] * 64).tolist()
    corners = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2]).clamp(0, 64)
    assert abs(float(result.scores[0]) - float(scores)) <= TOLERANCE
    assert float((torch.as_tensor(result.boxes_xyxy[0]) - corners).abs().max()) < 1e-2
    assert int(result.labels[0]) == int(index) % NUM_CLASSES


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{}", "expected a config.json with 'id2label'"),
        ("[1]", "expected a config.json with 'id2label'"),
        ('{"id2label": {"0": "a", "2": "b"}}', "have holes"),
        ('{"id2label": {}}', "Expected a class name or more"),
    ],
)
def test_config_without_names_is_refused(tmp_path, config: str, words: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=words):
        import_weights("x.pt", "rt_detrv2_r18", tmp_path / "out", classes=str(tmp_path / "config.json"))


def test_file_with_other_classes(tmp_path) -> None:
    """The rest is loaded; all that depends on the classes is new."""
    oracle = theirs(their_config())
    oracle.save_pretrained(tmp_path)
    model = build(ModelSpec("rt_detrv2_r18", KWARGS, 3, 2, SIZE, "detected"))
    report = load_weights(model, tmp_path / "model.safetensors")
    heads = {name.rpartition(".")[0].rstrip(".0123456789") for name in report.mismatched or {}}
    assert heads == {"decoder.class_heads", "decoder.noisy_labels", "proposals.class_head"}
    assert not report.missing


def test_file_of_another_size_is_refused(tmp_path) -> None:
    theirs(their_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="shapes differ"):
        load_weights(ours(dim=64), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"eval_layers": 4}, "eval_layers = 4; expected 1 to 3"),
        ({"points": (4, 4)}, "expected one number for each of the 3 levels"),
        ({"norm": "layer"}, "norm = 'layer'"),
        ({"sampling": "nearest"}, "sampling = 'nearest'"),
        ({"dim": 30}, "30 channels cannot be shared by 4 heads"),
        ({"backbone": "linear", "backbone_kwargs": {}}, "no feature pyramid"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ours(**kwargs)


def test_decode_and_layers_cut() -> None:
    """Boxes are pixels; fewer layers give the answer of that layer's heads."""
    model = ours().eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        every = model.raw(images, random_targets(SIZE, (1, 1), NUM_CLASSES))
        model.eval_layers = 2
        raw = model.raw(images)
        found = model(images)
    assert raw.logits.shape[0] == 1
    assert_near(raw.logits[0], every.logits[1], "logits of the second layer")
    assert_near(raw.boxes[0], every.boxes[1], "boxes of the second layer")
    flat = [
        (float(score), query, label)
        for query, row in enumerate(raw.logits[0, 0].sigmoid())
        for label, score in enumerate(row)
    ]
    for place, (score, query, label) in enumerate(sorted(flat, reverse=True)[:5]):
        x, y, width, height = raw.boxes[0, 0, query].tolist()
        expected = Tensor([(x - width / 2) * 64, (y - height / 2) * 96, (x + width / 2) * 64, (y + height / 2) * 96])
        assert abs(float(found.scores[0, place]) - score) <= TOLERANCE
        assert int(found.labels[0, place]) == label
        assert float((found.boxes[0, place] - expected).abs().max()) < 1e-3
    assert found.boxes.shape == (2, 12 * NUM_CLASSES, 4)
    assert float(found.overlap) == 1.0


def test_other_backbones_sizes_and_no_objects() -> None:
    model = ours(backbone="resnet18", num_queries=300).train()
    for size in ((64, 64), (32, 160)):
        parts = model(torch.randn(2, 3, *size), random_targets(size, (0, 0), NUM_CLASSES)).losses
        assert all(bool(part.sum.isfinite()) and part.count == 0 for part in parts.values())
        found = model.eval()(torch.randn(2, 3, *size))
        cells = sum(size[0] // stride * (size[1] // stride) for stride in (8, 16, 32))
        assert found.boxes.shape[1] == min(300, cells * NUM_CLASSES)
        model.train()


def test_one_picture_among_others() -> None:
    """A picture's answer does not depend on the batch."""
    model = ours().eval()
    images = torch.randn(3, 3, *SIZE)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    assert_near(alone.boxes, together.boxes[1:2], "boxes")
    assert_near(alone.scores, together.scores[1:2], "scores")


def test_bfloat16_keeps_boxes_exact() -> None:
    model = ours().train()
    targets = random_targets(SIZE, (2, 1), NUM_CLASSES)
    images = torch.randn(2, 3, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model.raw(images, targets)
        parts = model.losses(raw, targets)
    assert raw.logits.dtype == torch.bfloat16
    assert raw.boxes.dtype == raw.proposal_boxes.dtype == torch.float32
    sum(part.weight * part.sum for part in parts.values()).backward()
    assert all(part.sum.dtype == torch.float32 and bool(part.sum.isfinite()) for part in parts.values())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    # Boxes that start where their anchors are stay there to float32: no step of theirs is rounded to 8 bits.
    plain = ours().eval()
    with torch.no_grad():
        exact = plain.raw(images).proposal_boxes
        with torch.autocast("cpu", torch.bfloat16):
            rounded = plain.raw(images).proposal_boxes
    nearest = (rounded[:, :, None] - exact[:, None]).abs().sum(-1).amin(-1)
    assert float(nearest.median()) < 1e-6


def test_traced() -> None:
    model = ours(decoder_layers=2, eval_layers=2).eval()
    images = torch.randn(2, 3, *SIZE)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        found, expected = program.module()(images), model(images)
    assert_near(found.boxes, expected.boxes, "boxes")
    assert torch.equal(found.labels, expected.labels)


def test_targets_as_mapping() -> None:
    """The task hands targets over as a mapping; every parameter but the unused ones gets a gradient."""
    model = ours().train()
    targets = random_targets(SIZE, (2, 2), NUM_CLASSES)
    found = model(torch.randn(2, 3, *SIZE), {"boxes": targets.boxes, "labels": targets.labels})
    assert found.boxes.shape == (2, 0, 4)
    assert set(found.losses) == {
        f"{name}{kind}" for name in ("labels", "distance", "overlap") for kind in ("", "_noisy")
    }
    assert isinstance(Targets(**{"boxes": targets.boxes, "labels": targets.labels}), Targets)
