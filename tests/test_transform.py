"""The drawing is compared with torchvision's own draws in distribution, the applying with its operations to the bit."""

from __future__ import annotations

import dataclasses
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional as F

from barlowtwins.core.errors import ConfigError, DataError
from barlowtwins.views.transform import (
    AUGMENTATIONS,
    Augmentation,
    Jitter,
    TwinTransform,
    ViewParameters,
    apply_view,
    augmentation,
    draw_view,
    draw_views,
    rng_for,
    to_tensor,
)

IMAGENET = AUGMENTATIONS["imagenet"]
DRAWS = 20_000
SIGMAS = 5.0  # a frequency or correlation may be off by so many standard errors
UNLIKELY = 1e-4  # a smaller p-value of a Kolmogorov-Smirnov or chi-square test means: another distribution


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured noise on gradients."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 255 / width, y * 255 / height, (3 * x + y) % 256], -1)
    return Image.fromarray(np.clip(ramp + rng.normal(0, 30, ramp.shape), 0, 255).astype(np.uint8))


# --- applying: the oracle is torchvision's functional operations on PIL images ---------------------------------------


def torchvision_view(image: Image.Image, p: ViewParameters, recipe: Augmentation) -> torch.Tensor:
    """The published pipeline written with torchvision, for parameters that are given."""
    view = F.resized_crop(
        image, p.top, p.left, p.height, p.width, [recipe.size, recipe.size], InterpolationMode.BICUBIC
    )
    if p.flip:
        view = F.hflip(view)
    if p.jitter is not None:
        operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for which in p.jitter.order:
            if recipe.jitter[which] > 0:  # ColorJitter leaves out what has no range
                view = operations[which](view, p.jitter.factors[which])
    if p.grey:
        view = F.to_grayscale(view, recipe.channels)
    if p.blur_sigma is not None:
        view = view.filter(ImageFilter.GaussianBlur(radius=p.blur_sigma))
    if p.solarize:
        view = F.solarize(view, recipe.solarize_threshold)
    return F.normalize(F.to_tensor(view), list(recipe.mean), list(recipe.std))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("view", [0, 1])
def test_apply_equals_torchvision_to_the_bit(name: str, view: int) -> None:
    recipe = dataclasses.replace(AUGMENTATIONS[name], flip_p=0.5, solarize_p=(0.3, 0.3))
    image = draw(61, 47) if recipe.channels == 3 else draw(61, 47).convert("L")
    seen = set()
    for index in range(40):
        params = draw_view(recipe, view, image.width, image.height, rng_for(0, 0, index))
        seen |= {key for key in ("flip", "jitter", "grey", "blur_sigma", "solarize") if getattr(params, key)}
        ours = to_tensor(apply_view(image, params, recipe), recipe)
        assert ours.shape == (recipe.channels, recipe.size, recipe.size) and ours.dtype == torch.float32
        assert torch.equal(ours, torchvision_view(image, params, recipe)), params
    assert seen >= {"flip", "jitter", "solarize"}  # each operation was among those compared
    assert seen >= ({"grey", "blur_sigma"} if name == "imagenet" else set())


@pytest.mark.parametrize("which", range(4))
def test_each_jitter_alone_equals_torchvision_at_its_ends(which: int) -> None:
    image = draw(64, 64)
    operation = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[which]
    neutral = (1.0, 1.0, 1.0, 0.0)
    recipe = dataclasses.replace(IMAGENET, size=64)
    for factor in (-0.5, -0.1, -0.003, 0.003, 0.1, 0.5) if which == 3 else (0.0, 0.6, 0.999, 1.4, 2.0):
        factors = (*neutral[:which], factor, *neutral[which + 1 :])
        params = ViewParameters(0, 0, 64, 64, jitter=Jitter(factors, (3, 1, 0, 2)))  # type: ignore[arg-type]
        assert apply_view(image, params, recipe).tobytes() == operation(image, factor).tobytes()


def test_parameters_that_change_nothing_change_nothing() -> None:
    image = draw(32, 32)
    params = ViewParameters(0, 0, 32, 32, jitter=Jitter((1.0, 1.0, 1.0, 0.0), (0, 1, 2, 3)))
    assert apply_view(image, params, AUGMENTATIONS["small"]).tobytes() == image.tobytes()


def test_apply_leaves_its_image_alone() -> None:
    image = draw(32, 32)
    before = image.tobytes()
    for index in range(10):
        apply_view(image, draw_view(IMAGENET, 1, 32, 32, rng_for(0, 0, index)), IMAGENET)
    assert image.tobytes() == before


# --- drawing: the oracle is torchvision's get_params, in distribution ------------------------------------------------


def drawn(recipe: Augmentation, view: int, width: int, height: int, seed: int = 0) -> list[ViewParameters]:
    rng = np.random.default_rng(seed)
    return [draw_view(recipe, view, width, height, rng) for _ in range(DRAWS)]


@pytest.mark.parametrize(
    ("width_height", "scale"),
    [
        ((500, 375), (0.08, 1.0)),
        ((32, 32), (0.08, 1.0)),
        ((32, 32), (0.25, 1.0)),
        ((110, 400), (0.08, 1.0)),
        ((420, 90), (0.08, 1.0)),
        ((3, 3), (0.25, 1.0)),
        ((1, 5000), (0.08, 1.0)),
        ((5000, 1), (0.08, 1.0)),
    ],
)
def test_crops_are_distributed_as_torchvisions(width_height: tuple[int, int], scale: tuple[float, float]) -> None:
    width, height = width_height
    recipe = dataclasses.replace(IMAGENET, scale=scale)
    rng = np.random.default_rng(1)
    boxes = np.array([_box(draw_view(recipe, 0, width, height, rng)) for _ in range(DRAWS)])
    torch.manual_seed(1)
    blank = Image.new("L", (width, height))
    theirs = np.array([_crop_of(blank, scale, recipe.ratio) for _ in range(DRAWS // 2)])

    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (left + w <= width).all() and (top + h <= height).all()
    for mine, torchvisions in zip(_features(boxes), _features(theirs), strict=True):
        assert stats.ks_2samp(mine, torchvisions, method="asymp").pvalue > UNLIKELY

    fallback = _fallback(width, height, recipe.ratio)
    mine, torchvisions = ((sample == fallback).all(1).mean() for sample in (boxes, theirs))
    assert mine == pytest.approx(torchvisions, abs=1.5 * _tolerance(torchvisions))
    if min(width, height) == 1:
        assert mine == torchvisions == 1
    if width_height == (110, 400):
        assert 0.05 < mine < 0.95  # both ways were taken


def _box(params: ViewParameters) -> tuple[int, int, int, int]:
    return params.left, params.top, params.width, params.height


def _crop_of(image: Image.Image, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    top, left, height, width = transforms.RandomResizedCrop.get_params(image, list(scale), list(ratio))
    return left, top, width, height


def _features(boxes: np.ndarray) -> list[np.ndarray]:
    left, top, width, height = boxes.T
    return [left, top, width, height, width * height, width / height, left + width, top + height]


def _fallback(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """What torchvision falls back to, found by allowing it no other crop: areas that never fit."""
    return _crop_of(Image.new("L", (width, height)), (1e4, 1e4), ratio)


def test_jitter_is_distributed_as_torchvisions() -> None:
    jitters = [params.jitter for params in drawn(IMAGENET, 0, 50, 50) if params.jitter is not None]
    assert len(jitters) / DRAWS == pytest.approx(0.8, abs=_tolerance(0.8))

    torch.manual_seed(2)
    colour = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)
    theirs = [
        colour.get_params(colour.brightness, colour.contrast, colour.saturation, colour.hue) for _ in range(DRAWS)
    ]
    for which in range(4):
        mine = [jitter.factors[which] for jitter in jitters]
        assert stats.ks_2samp(mine, [draws[which + 1] for draws in theirs], method="asymp").pvalue > UNLIKELY

    orders, counts = np.unique([jitter.order for jitter in jitters], axis=0, return_counts=True)
    assert len(orders) == 24 and (np.sort(orders, 1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 1.7])
def test_jitter_ranges_are_those_of_torchvision(strength: float) -> None:
    jitter = transforms.ColorJitter(brightness=strength)
    low, high = jitter.brightness or (1.0, 1.0)
    recipe = dataclasses.replace(IMAGENET, jitter=(strength, 0.0, 0.0, 0.0), jitter_p=1.0)
    factors = np.array([params.jitter.factors for params in drawn(recipe, 0, 9, 9)[:4000] if params.jitter])
    assert factors[:, 0].min() == pytest.approx(low, abs=0.005) and factors[:, 0].min() >= low
    assert factors[:, 0].max() == pytest.approx(high, abs=0.005) and factors[:, 0].max() <= high
    assert (factors[:, 1:] == (1, 1, 0)).all()


@pytest.mark.parametrize("view", [0, 1])
def test_probabilities_are_the_published_ones(view: int) -> None:
    sample = drawn(IMAGENET, view, 64, 48, seed=view)
    expected = {"flip": 0.5, "grey": 0.2, "solarize": (0.0, 0.2)[view]}
    for name, p in expected.items():
        assert np.mean([getattr(params, name) for params in sample]) == pytest.approx(p, abs=_tolerance(p)), name

    sigmas = [params.blur_sigma for params in sample if params.blur_sigma is not None]
    p = (1.0, 0.1)[view]
    assert len(sigmas) / DRAWS == pytest.approx(p, abs=_tolerance(p))
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > UNLIKELY


def _tolerance(p: float) -> float:
    return SIGMAS * (p * (1 - p) / DRAWS) ** 0.5


def test_decisions_are_independent_within_a_view_and_between_the_views() -> None:
    recipe = dataclasses.replace(IMAGENET, blur_p=(0.5, 0.5), solarize_p=(0.5, 0.5), jitter_p=0.5)
    pairs = (draw_views(recipe, 200, 200, rng_for(0, 0, index)) for index in range(5000))
    columns = np.array([[x for params in pair for x in _decisions(params)] for pair in pairs])  # (5000, 12)
    correlation = np.corrcoef(columns.T) - np.eye(12)
    assert np.abs(correlation).max() < SIGMAS / 5000**0.5


def _decisions(p: ViewParameters) -> list[float]:
    return [float(x) for x in (p.left, p.flip, p.jitter is None, p.grey, p.blur_sigma is None, p.solarize)]


def test_streams_of_neighbours_are_unrelated_and_uniform() -> None:
    by_index = np.array([rng_for(7, 3, index).random() for index in range(5000)])
    by_epoch = np.array([rng_for(7, epoch, 3).random() for epoch in range(5000)])
    by_seed = np.array([rng_for(seed, 3, 7).random() for seed in range(5000)])
    for sample in (by_index, by_epoch, by_seed):
        assert stats.kstest(sample, "uniform").pvalue > UNLIKELY
        assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < SIGMAS / 5000**0.5
        assert len(set(sample)) == 5000


def test_streams_of_neighbours_never_overlap() -> None:
    numbers = np.concatenate([rng_for(0, epoch, index).random(200) for epoch in range(20) for index in range(20)])
    assert len(np.unique(numbers)) == len(numbers)


@pytest.mark.parametrize("bad", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**63, 0, 0)])
def test_a_stream_has_a_number_from_zero_on(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="2\\*\\*63"):
        rng_for(*bad)


def test_a_probability_changed_leaves_the_other_draws_alone() -> None:
    plain, other = AUGMENTATIONS["small"], dataclasses.replace(AUGMENTATIONS["small"], blur_p=(1.0, 1.0), jitter_p=0.0)
    for index in range(50):
        one, two = draw_views(plain, 40, 40, rng_for(0, 0, index)), draw_views(other, 40, 40, rng_for(0, 0, index))
        for a, b in zip(one, two, strict=True):
            assert b == dataclasses.replace(a, blur_sigma=b.blur_sigma, jitter=None)


# --- the whole: the published pipeline run by torchvision, in distribution -------------------------------------------


class _Blur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.random() * 1.9 + 0.1))


def test_pixels_are_distributed_as_those_of_the_published_pipeline() -> None:
    recipe = dataclasses.replace(IMAGENET, size=16)
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(16, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([_Blur()], p=0.1),
            transforms.RandomSolarize(128, p=0.2),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )
    image = draw(40, 30)
    torch.manual_seed(3)
    random.seed(3)
    n = 2000
    transform = TwinTransform(recipe)
    a = torch.stack([transform(image, epoch=0, index=index)[1] for index in range(n)])  # (n, 3, 16, 16)
    b = torch.stack([theirs(image) for _ in range(n)])
    for statistic in (_per_channel_mean, _contrast, _roughness):
        x, y = statistic(a), statistic(b)  # (n, 3)
        error = ((x.var(0) + y.var(0)) / n).sqrt()
        assert ((x.mean(0) - y.mean(0)).abs() < SIGMAS * error).all(), statistic.__name__
        for channel in range(3):
            assert stats.ks_2samp(x[:, channel], y[:, channel], method="asymp").pvalue > UNLIKELY


def _per_channel_mean(views: torch.Tensor) -> torch.Tensor:
    return views.mean((2, 3))


def _contrast(views: torch.Tensor) -> torch.Tensor:
    return views.std((2, 3))


def _roughness(views: torch.Tensor) -> torch.Tensor:
    return views.diff(dim=3).abs().mean((2, 3))


# --- the transform ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_are_tensors_of_the_recipes_shape(name: str) -> None:
    recipe = AUGMENTATIONS[name]
    y1, y2 = TwinTransform(name)(draw(60, 50))
    assert y1.shape == y2.shape == (recipe.channels, recipe.size, recipe.size)
    assert y1.dtype == y2.dtype == torch.float32 and not torch.equal(y1, y2)


def test_size_and_channels_override_the_recipe() -> None:
    grey = TwinTransform("imagenet", size=40, channels=1)
    assert grey(draw(60, 50))[0].shape == (1, 40, 40)
    assert grey.recipe.mean == pytest.approx((0.449,)) and grey.recipe.std == pytest.approx((0.226,))
    colour = TwinTransform("grey", channels=3)
    assert colour(draw(60, 50))[0].shape == (3, 28, 28)
    assert TwinTransform("grey", size=28, channels=1).recipe == AUGMENTATIONS["grey"]


def test_kinds_of_input_give_the_same_views(tmp_path: Path) -> None:
    image = draw(70, 50)
    image.save(tmp_path / "image.png")
    transform = TwinTransform("small")
    expected = transform(image, epoch=1, index=2)
    for same in (np.asarray(image), tmp_path / "image.png", str(tmp_path / "image.png"), image.convert("RGBA")):
        for a, b in zip(transform(same, epoch=1, index=2), expected, strict=True):
            assert torch.equal(a, b)
    with pytest.raises(DataError, match="missing"):
        transform(tmp_path / "missing.png")
    with pytest.raises(DataError, match="float64"):
        transform(np.zeros((4, 4, 3)))


def test_seed_epoch_and_index_decide_the_views_in_any_order() -> None:
    image = draw(50, 50)
    keys = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)]

    def views(order: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], bytes]:
        made = {}
        for seed, epoch, index in order:
            y1, y2 = TwinTransform("small", seed=seed)(image, epoch=epoch, index=index)
            made[seed, epoch, index] = torch.stack([y1, y2]).numpy().tobytes()
        return made

    forward = views(keys)
    assert forward == views(keys[::-1])
    assert len(set(forward.values())) == len(keys)
    assert TwinTransform("small")(image, epoch=1, index=2)[0].numpy().tobytes() == forward[0, 1, 2][: 32 * 32 * 3 * 4]


def test_without_epoch_and_index_torch_seeds_the_views() -> None:
    image, transform = draw(50, 50), TwinTransform("small")
    torch.manual_seed(5)
    first, second = transform(image), transform(image)
    torch.manual_seed(5)
    assert torch.equal(transform(image)[0], first[0])
    assert not torch.equal(first[0], second[0])


class Views(Dataset[dict[str, torch.Tensor]]):
    """Item i: the first view of one image, as a function of the index, and drawn afresh."""

    def __init__(self, transform: TwinTransform, length: int) -> None:
        self.transform, self.length, self.image = transform, length, draw(40, 40)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pure, fresh = self.transform(self.image, epoch=4, index=index), self.transform(self.image)
        return {"pure": torch.stack(pure), "fresh": torch.stack(fresh)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on a single core
def test_spawned_workers_agree_on_pure_views_and_never_repeat_fresh_ones() -> None:
    dataset = Views(TwinTransform("small"), 12)
    torch.manual_seed(6)
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    pure = torch.cat([batch["pure"] for batch in batches])
    fresh = torch.cat([batch["fresh"] for batch in batches])
    assert torch.equal(pure, torch.stack([dataset[index]["pure"] for index in range(12)]))
    assert len({view.numpy().tobytes() for view in fresh.flatten(0, 1)}) == 24


def test_transform_and_parameters_survive_pickle() -> None:
    transform = TwinTransform("small", size=20, seed=9)
    again = pickle.loads(pickle.dumps(transform))
    image = draw(30, 30)
    assert torch.equal(again(image, epoch=0, index=0)[1], transform(image, epoch=0, index=0)[1])
    params = draw_view(IMAGENET, 1, 30, 30, rng_for(0, 0, 0))
    assert pickle.loads(pickle.dumps(params)) == params


@pytest.mark.parametrize("arguments", [{"epoch": 1}, {"index": 1}])
def test_epoch_and_index_come_together(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="both"):
        TwinTransform("small")(draw(9, 9), **arguments)


def test_a_seed_without_epoch_and_index_is_not_ignored() -> None:
    with pytest.raises(ConfigError, match="manual_seed"):
        TwinTransform("small", seed=1)(draw(9, 9))


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_the_published_recipe_differs_between_views_in_blur_and_solarise_only() -> None:
    assert (IMAGENET.blur_p, IMAGENET.solarize_p) == ((1.0, 0.1), (0.0, 0.2))
    recipe = dataclasses.replace(IMAGENET, blur_p=(0.5, 0.5), solarize_p=(0.5, 0.5))
    for index in range(20):
        assert draw_view(recipe, 0, 50, 50, rng_for(0, 0, index)) == draw_view(recipe, 1, 50, 50, rng_for(0, 0, index))


@pytest.mark.parametrize(("name", "hint"), [("imagnet", "'imagenet'"), ("Small", "'small'"), ("xyz", "grey")])
def test_an_unknown_recipe_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        augmentation(name)
    with pytest.raises(ConfigError, match=hint):
        TwinTransform(name)


def test_an_unknown_backend_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="'pillow'"):
        TwinTransform(backend="pilow")


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"ratio": (2.0, 1.0)},
        {"flip_p": 1.1},
        {"grey_p": -0.1},
        {"blur_p": (0.5, 1.5)},
        {"solarize_p": (0.5,)},
        {"jitter": (0.4, 0.4, 0.2, 0.6)},
        {"jitter": (-0.4, 0.4, 0.2, 0.1)},
        {"blur_sigma": (2.0, 0.1)},
        {"solarize_threshold": 300},
    ],
)
def test_numbers_out_of_range_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(fields))} of augmentation 'imagenet'"):
        dataclasses.replace(IMAGENET, **fields)  # type: ignore[arg-type]


def test_channels_and_normalisation_must_agree() -> None:
    with pytest.raises(ConfigError, match="3 means"):
        dataclasses.replace(IMAGENET, channels=1)


def test_evaluation_follows_from_the_recipe() -> None:
    evaluation = IMAGENET.preprocessing()
    assert (evaluation.image_size, evaluation.resize) == (224, 256)
    small = AUGMENTATIONS["small"].preprocessing()
    assert (small.image_size, small.resize, small.mean) == (32, None, (0.5, 0.5, 0.5))
    assert AUGMENTATIONS["grey"].preprocessing().channels == 1
