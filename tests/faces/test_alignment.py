from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from infid_export.faces.alignment import ARCFACE_TEMPLATE, align, portrait_template, similarity


def turned(points: np.ndarray, degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


def gaussian_dots(landmarks: np.ndarray, side: int, width: float) -> np.ndarray:
    """A photo that is bright at the landmarks."""
    y, x = np.mgrid[:side, :side]
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2)) for px, py in landmarks)
    return np.repeat((np.clip(dots, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def brightest(crop: np.ndarray, near: np.ndarray, radius: int) -> np.ndarray:
    """Center of mass of the brightness around a point."""
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    weight = crop[..., 0].astype(float) * ((x - near[0]) ** 2 + (y - near[1]) ** 2 <= radius**2)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("degrees", [0, 30, -75, 180])
@pytest.mark.parametrize("scale", [0.1, 1, 13])
def test_similarity_recovers_a_known_transform(degrees: float, scale: float) -> None:
    source = ARCFACE_TEMPLATE * 112
    target = turned(source, degrees, scale, (5, -7))
    matrix = similarity(source, target)
    np.testing.assert_allclose(source @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-9)


def test_similarity_never_mirrors() -> None:
    source = ARCFACE_TEMPLATE * 112
    matrix = similarity(source, source * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) > 0


def test_similarity_is_the_least_squares_solution() -> None:
    random = np.random.default_rng(0)
    source, target = random.random((5, 2)), random.random((5, 2))
    # linear in (a, b, tx, ty): x' = a x − b y + tx, y' = b x + a y + ty
    rows = [row for x, y in source for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), target.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-12)


@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("eyes", [30, 60, 200, 400], ids=lambda value: f"eyes{value}px")
@pytest.mark.parametrize("degrees", [0, 25])
def test_landmarks_land_on_the_template(size: int, eyes: float, degrees: float) -> None:
    side = 1200
    landmarks = turned((ARCFACE_TEMPLATE - 0.5) * eyes / 0.3147, degrees, 1, (side / 2, side / 2 + 11))
    photo = gaussian_dots(landmarks, side, eyes / 12)
    crop = align(photo, landmarks, ARCFACE_TEMPLATE, size)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    for point in ARCFACE_TEMPLATE * size:
        assert np.linalg.norm(brightest(crop, point, size // 8) - point) < 0.1 * size / 112


@pytest.mark.parametrize("shrink", [1.9, 3.7, 7.3])
def test_shrinking_does_not_alias(shrink: float) -> None:
    """Stripes finer than a crop pixel must become gray, not coarse stripes."""
    side = int(112 * shrink) + 40
    stripes = np.where(np.arange(side) % 2, 255, 0).astype(np.uint8)
    photo = np.repeat(np.broadcast_to(stripes, (side, side))[..., None], 3, axis=2).copy()
    crop = align(photo, ARCFACE_TEMPLATE * 112 * shrink + 20, ARCFACE_TEMPLATE, 112)
    inner = crop[20:-20, 20:-20].astype(float)
    assert abs(inner.mean() - 127.5) < 3
    plain = Image.fromarray(photo).transform(
        (112, 112), Image.Transform.AFFINE, (shrink, 0, 20, 0, shrink, 20), resample=Image.Resampling.BICUBIC
    )
    aliased = np.asarray(plain)[20:-20, 20:-20].std()
    assert aliased > 60  # so the stripes reveal the difference
    assert inner.std() < aliased / 3


def test_outside_is_black() -> None:
    white = np.full((100, 100, 3), 255, np.uint8)
    crop = align(white, ARCFACE_TEMPLATE * 112 - 60, ARCFACE_TEMPLATE, 112)
    assert crop[:40, :40].max() == 0
    assert crop[-20:, -20:].min() == 255


def test_portrait_is_looser_than_arcface() -> None:
    eyes = [np.linalg.norm(points[1] - points[0]) for points in (portrait_template(), ARCFACE_TEMPLATE)]
    assert eyes[0] == pytest.approx(0.6 * eyes[1])
    assert (portrait_template() > 0.2).all()
    assert (portrait_template() < 0.8).all()
