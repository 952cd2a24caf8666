"""Batched augmentation against torchvision on single pictures, and its dependence on keys alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from opsin import seeding
from opsin.data import augment_ops as ops
from opsin.data import policies, resize, transforms
from opsin.data.transforms import AugmentSettings, augment, mix, partners, preset
from opsin.errors import OpsinError, ShapeError, UnknownName

B = 6


def pictures(
    channels: int, height: int = 32, width: int = 32, dtype: torch.dtype = torch.uint8, count: int = B
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels * height + width)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noisy = (0.15 + 0.7 * smooth + 0.05 * torch.randn(count, channels, height, width, generator=generator)).clamp(0, 1)
    noisy[0] = noisy[0] * 0.3 + 0.2  # dull
    noisy[-1] = 0.5  # flat
    return (noisy * 255).round().to(torch.uint8) if dtype == torch.uint8 else noisy


def sample_keys(count: int = B, epoch: int = 0) -> np.ndarray:
    return seeding.keys(7, epoch, np.arange(count))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    tolerance = 1.0 if ours.dtype == torch.uint8 else 1e-5
    assert (ours.double() - theirs.double()).abs().max() <= tolerance


FACTORS = np.array([0.0, 0.01, 0.5, 1.0, 1.4, 1.99])
COLOR = {
    "brightness": (ops.brightness, tv.adjust_brightness, FACTORS),
    "saturation": (ops.saturation, tv.adjust_saturation, FACTORS),
    "contrast": (ops.contrast, tv.adjust_contrast, FACTORS),
    "sharpness": (ops.sharpness, tv.adjust_sharpness, FACTORS),
    "posterize": (ops.posterize, tv.posterize, np.array([0, 1, 2, 4, 7, 8])),
    "autocontrast": (lambda x, _: ops.autocontrast(x), lambda x, _: tv.autocontrast(x), FACTORS),
    "equalize": (lambda x, _: ops.equalize(x), lambda x, _: tv.equalize(x), FACTORS),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COLOR)
def test_color_operation_equals_torchvision(name: str, channels: int, dtype: torch.dtype) -> None:
    ours, theirs, strengths = COLOR[name]
    images = pictures(channels, dtype=dtype)
    expected = torch.stack([theirs(image, s.item()) for image, s in zip(images, strengths)])
    before = images.clone()
    close(ours(images, strengths), expected)
    assert torch.equal(images, before)
    close(ours(images.to(memory_format=torch.channels_last), strengths), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_solarize_equals_torchvision(dtype: torch.dtype) -> None:
    images = pictures(3, dtype=dtype)
    thresholds = np.linspace(0, 1, B) * ops.bound(images)
    close(ops.solarize(images, thresholds), torch.stack([tv.solarize(i, t.item()) for i, t in zip(images, thresholds)]))


def test_equalize_is_exact_on_many_histograms() -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(0, 4, (40, 3, 24, 20), generator=generator) * 60
    images = torch.cat(
        [few.to(torch.uint8), torch.randint(0, 256, (40, 3, 24, 20), generator=generator, dtype=torch.uint8)]
    )
    assert torch.equal(ops.equalize(images), torch.stack([tv.equalize(image) for image in images]))


@pytest.mark.parametrize("fill", [0.0, 0.4])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (28, 41)])
def test_affine_equals_torchvision(interpolation: str, size: tuple[int, int], fill: float) -> None:
    images = pictures(3, *size)
    angles, scale = np.array([0.0, 10, -33, 90, 135, 180]), np.array([1.0, 0.8, 1.2, 1, 1.5, 1])
    translate = np.array([[0, 0], [3, -2], [0, 5], [32, 0], [-4, 1], [0, 0]])
    shear = np.array([[0.0, 0], [20, 0], [0, 30], [-44.7, 0], [5, -5], [0, 0]])
    center = np.array([[0.0, 0], [0, 0], [2, -3], [0, 0], [1, 1], [-16, -16]])
    ours = ops.affine(images, ops.affine_matrices(angles, translate, scale, shear, center), interpolation, fill)
    middle = np.array([size[1], size[0]]) / 2
    arguments = {"interpolation": v2.InterpolationMode(interpolation), "fill": fill * 255 if fill else None}
    expected = [
        tv.affine(image, a, t.tolist(), s, h.tolist(), center=(c + middle).tolist(), **arguments)
        for image, a, t, s, h, c in zip(images, angles.tolist(), translate, scale.tolist(), shear, center)
    ]
    if interpolation == "bilinear":
        # torchvision weighs half-covered border pixels by their cover twice when fill is not 0; those are left out
        cover = ops.affine(torch.ones(B, 1, *size), ops.affine_matrices(angles, translate, scale, shear, center))
        whole = (cover < 1e-4) | (cover > 1 - 1e-4) | (fill == 0)
        close(torch.where(whole, ours, 0), torch.where(whole, torch.stack(expected), 0))
    else:  # a source point that lies on the edge between two pixels may be rounded either way
        assert (ours != torch.stack(expected)).any(1).float().mean() < 0.01


@pytest.mark.parametrize(("policy", "theirs"), [("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment)])
def test_policy_equals_torchvision_operation_by_operation(
    policy: str, theirs: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = theirs(interpolation=v2.InterpolationMode.BILINEAR)
    names = list(oracle._AUGMENTATION_SPACE)
    images = pictures(3, 32, 32, count=14)
    for level in (0, 7, 30):
        for negative in (False, True):
            n = len(policies._OPERATIONS)
            draws = np.array([(i + 0.5) / n for i in range(n)])
            columns = [draws, np.full(n, (level + 0.5) / 31), np.full(n, 0.25 if negative else 0.75)]
            table = np.stack(columns if policy == "trivial" else [columns[0], columns[2]], 1)
            monkeypatch.setattr(policies, "uniform", lambda *_, table=table: table)
            ours = (
                policies.trivial_augment(images, sample_keys(n))
                if policy == "trivial"
                else policies.rand_augment(images, sample_keys(n), 1, level)
            )
            for image, name, result in zip(images, names, ours, strict=True):
                magnitudes, signed = oracle._AUGMENTATION_SPACE[name]
                values = magnitudes(31, 32, 32)
                magnitude = 0.0 if values is None else float(values[level]) * (-1 if signed and negative else 1)
                expected = oracle._apply_image_or_video_transform(
                    image, name, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill={}
                )
                assert (result.int() - expected.int()).abs().max() <= 1, (name, level, negative)


def test_shift_and_flip_equal_slices_of_the_padded_picture() -> None:
    images, keys = pictures(3, 20, 24, count=64), sample_keys(64)
    for padding, mode in (("constant", "constant"), ("reflect", "reflect"), ("edge", "replicate")):
        chosen = AugmentSettings(shift=0.2, padding=padding, flip_horizontal=True, flip_vertical=True)
        ours = augment(images, keys, chosen)
        padded = torch.nn.functional.pad(images.float(), (5, 5, 4, 4), mode=mode).to(torch.uint8)
        found = set()
        for image, result in zip(padded, ours, strict=True):
            options = {
                (y, x, fy, fx): image[:, y : y + 20, x : x + 24].flip([a for a, f in ((1, fy), (2, fx)) if f])
                for y in range(9)
                for x in range(11)
                for fy in (False, True)
                for fx in (False, True)
            }
            if (image != image[0, 0, 0]).any():
                found |= {where for where, option in options.items() if torch.equal(option, result)}
            assert any(torch.equal(option, result) for option in options.values())
        assert len(found) > 40  # they move differently
        assert len({f[2:] for f in found}) == 4


def test_flip_without_shift_and_no_change_by_default() -> None:
    images, keys = pictures(1, count=200), sample_keys(200)
    assert torch.equal(augment(images, keys, AugmentSettings()), images)
    flipped = augment(images, keys, AugmentSettings(flip_horizontal=True))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped[:-1], images[:-1])]
    same = [torch.equal(a, b) for a, b in zip(flipped[:-1], images[:-1])]
    assert all(a != b for a, b in zip(mirrored, same))
    assert 70 < sum(mirrored) < 130


def test_color_jitter_equals_torchvision_where_nothing_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    images = 0.4 + 0.2 * pictures(3, dtype=torch.float32)
    draws = np.random.default_rng(0).uniform(size=(B, 3))
    monkeypatch.setattr(transforms, "uniform", lambda *_: draws)
    ours = transforms.color_jitter(images, sample_keys(), 0.2, 0.3, 0.4)
    factors = 1 + (draws * 2 - 1) * [0.2, 0.3, 0.4]
    expected = [
        tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(i, b), c), s)
        for i, (b, c, s) in zip(images, factors.tolist())
    ]
    torch.testing.assert_close(ours, torch.stack(expected), atol=1e-5, rtol=0)
    gray = transforms.color_jitter(images[:, :1], sample_keys(), 0.2, 0.3, 0.4)
    expected = [
        tv.adjust_contrast(tv.adjust_brightness(i, b), c) for i, (b, c, _) in zip(images[:, :1], factors.tolist())
    ]
    torch.testing.assert_close(gray, torch.stack(expected), atol=1e-5, rtol=0)


EVERYTHING = [
    preset(name, small=small, flip=flip)
    for name in ("plain", "standard", "strong")
    for small in (True, False)
    for flip in (True, False)
] + [
    AugmentSettings(rotate=15, scale=0.2, shear=10, fill=0.3),
    AugmentSettings(policy="rand", rand_ops=3, rand_magnitude=20),
    AugmentSettings(erase=1.0, cutout=0.5, brightness=0.5, contrast=0.5, saturation=0.5),
]


@pytest.mark.parametrize("chosen", EVERYTHING)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_result_depends_on_the_key_alone(chosen: AugmentSettings, channels: int) -> None:
    images, keys = pictures(channels, 28, 30, count=40), sample_keys(40)
    whole = augment(images, keys, chosen)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    order = np.random.default_rng(1).permutation(40)
    assert torch.equal(augment(images[order], keys[order], chosen), whole[order])
    for i in (0, 13):
        assert torch.equal(augment(images[i : i + 1], keys[i : i + 1], chosen)[0], whole[i])
    assert torch.equal(augment(images.to(memory_format=torch.channels_last), keys, chosen), whole)


@pytest.mark.parametrize("chosen", EVERYTHING[4:])
def test_deep_pictures_follow_the_8_bit_ones(chosen: AugmentSettings) -> None:
    images, keys = pictures(3, count=16), sample_keys(16)
    eight = augment(images, keys, chosen).float() / 255
    deep = augment((images.int() * 257).to(torch.uint16), keys, chosen)
    assert deep.dtype == torch.uint16
    floats = augment(images.float() / 255, keys, chosen)
    shifted = augment(images.float() / 255 * 4 - 2, keys, chosen, value_range=(-2.0, 2.0))
    for other in (deep.float() / 65535, (shifted + 2) / 4):  # thresholds (solarize) may fall either way
        assert ((other - floats).abs() > 1e-4).float().mean() < 1e-3
    if chosen.policy == "none":  # posterize and equalize depend on the number of bits
        torch.testing.assert_close(floats, eight, atol=0.02, rtol=0)


def test_erasing_and_cutout_paint_one_rectangle_with_the_mean() -> None:
    images = pictures(3, 40, 30, count=200)[:-1]
    keys = sample_keys(199)
    for chosen, low, high in ((AugmentSettings(erase=1.0), 0.01, 0.36), (AugmentSettings(cutout=0.5), 0.04, 0.2)):
        changed = (augment(images, keys, chosen) != images).any(1)
        for mask, image, result in zip(changed, images, augment(images, keys, chosen)):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            box = result[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (box == box[:, :1, :1]).all()
            assert (box[:, 0, 0].float() - image.float().mean((1, 2))).abs().max() <= 1
            assert low < box[0].numel() / 1200 < high
    share = (augment(images, keys, AugmentSettings(erase=0.25)) != images).flatten(1).any(1).float().mean()
    assert 0.15 < share < 0.35


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_partners_are_a_permutation_without_fixed_points(count: int, seed: int) -> None:
    chosen = partners(seeding.keys(seed, 0, np.arange(count)))
    assert sorted(chosen) == list(range(count))
    assert count == 1 or (chosen != np.arange(count)).all()


def test_mixup_and_cutmix() -> None:
    count = 3000
    images = torch.cat(
        [torch.full((count, 1, 16, 16), 0, dtype=torch.uint8), torch.full((5, 1, 16, 16), 250, dtype=torch.uint8)]
    )
    others, keys = np.full(count, count + 2), sample_keys(count + 5)
    mixed, lam = mix(images, others, keys, AugmentSettings(mixup=0.4))
    assert mixed.shape == (count, 1, 16, 16)
    assert lam.shape == (count,)
    torch.testing.assert_close(mixed.float().mean((1, 2, 3)), 250 * (1 - lam), atol=0.51, rtol=0)
    assert stats.kstest(lam.numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    cut, lam = mix(images, others, keys, AugmentSettings(cutmix=1.0))
    assert set(cut.unique().tolist()) == {0, 250}
    torch.testing.assert_close(cut.float().mean((1, 2, 3)) / 250, 1 - lam, atol=1e-5, rtol=0)
    both, lam = mix(images, others, keys, AugmentSettings(mixup=0.4, cutmix=1.0))
    hard = torch.tensor([set(picture.unique().tolist()) <= {0, 250} for picture in both])
    assert 0.4 < hard.float().mean() < 0.7
    torch.testing.assert_close(both.float().mean((1, 2, 3)), 250 * (1 - lam), atol=0.51, rtol=0)
    half, lam = mix(images, others, keys, AugmentSettings(cutmix=1.0, mix=0.3))
    assert 0.6 < (lam == 1).float().mean() < 0.8
    assert (half[lam == 1] == 0).all()


def test_mix_depends_on_the_key_alone() -> None:
    images, keys, chosen = pictures(3, count=50), sample_keys(50), preset("strong", small=True, flip=True)
    others = partners(keys)
    whole, lam = mix(images, others, keys, chosen)
    for part in (slice(0, 1), slice(10, 30)):
        rows = np.concatenate([np.arange(50)[part], others[part]])
        size = len(rows) // 2
        mixed, share = mix(images[rows], np.arange(size, 2 * size), keys[part], chosen)
        assert torch.equal(mixed, whole[part])
        assert torch.equal(share, lam[part])


def test_presets() -> None:
    assert preset("plain", small=False, flip=True) == AugmentSettings()
    for name in ("standard", "strong"):
        for small in (True, False):
            digits = preset(name, small=small, flip=False)
            assert not digits.flip_horizontal
            assert digits.policy != "trivial"
            assert preset(name, small=small, flip=True).flip_horizontal
    with pytest.raises(UnknownName, match="strong"):
        preset("stron", small=True, flip=True)
    with pytest.raises(ShapeError, match="one key each"):
        augment(pictures(3), sample_keys(3), AugmentSettings())


# Single pictures -----------------------------------------------------------------------------------------------------


def photo(height: int = 90, width: int = 120, interleaved: bool = True) -> torch.Tensor:
    image = pictures(3, height, width, count=2)[0]
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if interleaved else image


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.uint16])
@pytest.mark.parametrize("size", [(32, 32), (90, 60), (200, 100), (1, 7)])
def test_resize_equals_torchvision(size: tuple[int, int], dtype: torch.dtype, interleaved: bool) -> None:
    image = photo(interleaved=interleaved)
    image = (
        image
        if dtype == torch.uint8
        else (image.float() / 255 if dtype == torch.float32 else (image.int() * 257).to(dtype))
    )
    ours, geometry = resize.resize(image, size)
    theirs = tv.resize(image if dtype != torch.uint16 else image.float(), list(size), antialias=True)
    theirs = theirs.round().to(dtype) if dtype == torch.uint16 else theirs
    assert torch.equal(ours, theirs)
    assert geometry.scale == (120 / size[1], 90 / size[0])
    assert torch.equal(resize.resize(image[:1], size)[0], ours[:1])


def test_resize_is_the_same_for_any_number_of_threads() -> None:
    image, threads = photo(700, 900), torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(resize.resize(image, (224, 200))[0])
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (64, 64), (31, 200)])
def test_shortest_side_and_center_crop_equal_torchvision(height: int, width: int) -> None:
    image = photo(height, width)
    assert torch.equal(resize.resize_shortest(image, 48)[0], tv.resize(image, [48], antialias=True))
    for size in ((32, 40), (33, 21), (130, 230)):
        assert torch.equal(resize.center_crop(image, size)[0], tv.center_crop(image, list(size)))
    resized, _ = resize.resize_center_crop(image, 56)
    assert torch.equal(resized, tv.center_crop(tv.resize(image, [64], antialias=True), [56, 56]))


def marked(height: int, width: int, x: int, y: int) -> torch.Tensor:
    """A black picture with one bright block whose middle is (x, y)."""
    image = torch.zeros(3, height, width)
    image[:, y - 6 : y + 6, x - 6 : x + 6] = 1.0
    return image


def test_geometry_leads_back_to_the_original() -> None:
    image = marked(90, 140, 60, 50)
    steps = {
        "shortest": lambda i: resize.resize_shortest(i, 64),
        "center": lambda i: resize.center_crop(i, (70, 100)),
        "usual": lambda i: resize.resize_center_crop(i, 56),
        "letterbox": lambda i: resize.letterbox(i, (64, 64), fill=0),
        "letterbox wide": lambda i: resize.letterbox(i, (50, 200), fill=0),
        "crop": lambda i: resize.random_resized_crop(i, 12, (64, 64), (0.9, 1.0)),
        "padded": lambda i: resize.center_crop(i, (100, 200)),
    }
    for name, step in steps.items():
        result, geometry = step(image)
        assert geometry.original_size == (90, 140), name
        assert geometry.input_size == tuple(result.shape[1:]), name
        weight = result[0] / result[0].sum()
        y = (weight.sum(1) * (torch.arange(result.shape[1]) + 0.5)).sum().item()
        x = (weight.sum(0) * (torch.arange(result.shape[2]) + 0.5)).sum().item()
        back = (geometry.scale[0] * x + geometry.offset[0], geometry.scale[1] * y + geometry.offset[1])
        assert back == pytest.approx((60, 50), abs=0.25), name


def test_letterbox_keeps_proportions_and_fills() -> None:
    result, geometry = resize.letterbox(photo(90, 120), (64, 64))
    assert (result[:, :8] == 114).all()
    assert (result[:, -8:] == 114).all()
    assert geometry.scale[0] == geometry.scale[1]
    assert torch.equal(result[:, 8:56], tv.resize(photo(90, 120), [48, 64], antialias=True))


def test_random_crop_is_torchvision_s_distribution_and_pixels() -> None:
    image = photo(90, 120)
    boxes = [resize.random_box(90, 120, key, (0.08, 1.0), (3 / 4, 4 / 3)) for key in range(1500)]
    for key, (top, left, h, w) in list(enumerate(boxes))[:20]:
        assert 0 <= top <= 90 - h
        assert 0 <= left <= 120 - w
        ours, _ = resize.random_resized_crop(image, key, (32, 32))
        assert torch.equal(ours, tv.resized_crop(image, top, left, h, w, [32, 32], antialias=True))
    torch.manual_seed(0)
    theirs = [v2.RandomResizedCrop(32).make_params([image]) for _ in range(1500)]
    for ours, name in zip(zip(*boxes), ("top", "left", "height", "width")):
        assert stats.ks_2samp(ours, [t[name] for t in theirs]).pvalue > 1e-3
    assert resize.random_box(10, 400, 1, (1.0, 1.0), (3 / 4, 4 / 3)) == (0, 193, 10, 13)
    assert resize.random_box(400, 10, 1, (1.0, 1.0), (3 / 4, 4 / 3)) == (193, 0, 13, 10)


def test_stack_keeps_interleaved_pixels() -> None:
    images = [photo(20, 30), photo(20, 30).flip(1)]
    batch = resize.stack([i.permute(1, 2, 0).contiguous().permute(2, 0, 1) for i in images])
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, torch.stack(images))
    assert resize.stack([photo(20, 30, False)] * 2).is_contiguous()
    with pytest.raises(OpsinError, match="Picture 1"):
        resize.stack([photo(20, 30), photo(20, 31)])
