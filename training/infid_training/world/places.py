"""The places of the world, drawn behind the person."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from infid_training.world.scenes import Scene


def draw_place(scene: Scene, side: int) -> Image.Image:
    """Return a `side` × `side` RGB image of the scene's place."""
    random = np.random.default_rng(scene.seed)
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    {
        "at the beach": _beach,
        "in a forest": _forest,
        "in the city": _city,
        "in a room": _room,
        "in the snow": _snow,
        "at night": _night,
    }[scene.place](draw, side, random)
    return image


def _beach(draw: ImageDraw.ImageDraw, side: int, random: np.random.Generator) -> None:
    horizon = int(side * random.uniform(0.35, 0.5))
    shore = int(side * random.uniform(0.68, 0.78))
    draw.rectangle((0, 0, side, horizon), (142, 204, 240))
    draw.rectangle((0, horizon, side, shore), (38, 128, 176))
    draw.rectangle((0, shore, side, side), (236, 212, 156))
    x, y, r = random.uniform(0.1, 0.9) * side, 0.15 * side, 0.08 * side
    draw.ellipse((x - r, y - r, x + r, y + r), (255, 240, 150))


def _forest(draw: ImageDraw.ImageDraw, side: int, random: np.random.Generator) -> None:
    draw.rectangle((0, 0, side, side), (112, 160, 96))
    draw.rectangle((0, int(0.7 * side), side, side), (74, 108, 56))
    for x in random.uniform(0, side, 9):
        wide = side * random.uniform(0.02, 0.05)
        draw.rectangle((x - wide, 0, x + wide, 0.75 * side), (86, 62, 42))
    for x, y, r in random.uniform(0, 1, (16, 3)):
        radius = side * (0.05 + 0.08 * r)
        center = (x * side, 0.35 * y * side)
        draw.ellipse(
            (center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius),
            (36, int(84 + 60 * r), 44),
        )


def _city(draw: ImageDraw.ImageDraw, side: int, random: np.random.Generator) -> None:
    draw.rectangle((0, 0, side, side), (188, 200, 212))
    x = -0.05 * side
    while x < side:
        wide, top, grey = side * random.uniform(0.12, 0.22), side * random.uniform(0.05, 0.45), random.integers(90, 150)
        draw.rectangle((x, top, x + wide, side), (int(grey), int(grey), int(grey + 12)))
        for row in range(8):
            for column in range(3):
                left, upper = x + wide * (0.15 + 0.28 * column), top + side * (0.04 + 0.1 * row)
                draw.rectangle((left, upper, left + 0.15 * wide, upper + 0.05 * side), (236, 220, 150))
        x += wide * 1.05


def _room(draw: ImageDraw.ImageDraw, side: int, random: np.random.Generator) -> None:
    hue = random.integers(0, 3)
    wall = ((222, 206, 184), (196, 212, 206), (214, 196, 206))[int(hue)]
    draw.rectangle((0, 0, side, side), wall)
    draw.rectangle((0, int(0.82 * side), side, side), (140, 100, 70))
    left = side * float(random.choice([0.05, 0.62]))
    draw.rectangle((left, 0.1 * side, left + 0.3 * side, 0.5 * side), (250, 250, 250))
    draw.rectangle((left + 0.02 * side, 0.12 * side, left + 0.28 * side, 0.48 * side), (158, 208, 236))
    draw.line((left + 0.15 * side, 0.12 * side, left + 0.15 * side, 0.48 * side), (250, 250, 250), max(1, side // 60))


def _snow(draw: ImageDraw.ImageDraw, side: int, random: np.random.Generator) -> None:
    draw.rectangle((0, 0, side, side), (196, 214, 232))
    for x in random.uniform(0, 1, 4):
        peak = side * random.uniform(0.12, 0.35)
        draw.polygon(
            [((x - 0.35) * side, 0.75 * side), (x * side, peak), ((x + 0.35) * side, 0.75 * side)], (150, 168, 192)
        )
        draw.polygon(
            [((x - 0.09) * side, peak + 0.12 * side), (x * side, peak), ((x + 0.09) * side, peak + 0.12 * side)],
            (250, 252, 255),
        )
    draw.rectangle((0, int(0.7 * side), side, side), (244, 248, 252))
    for x, y in random.uniform(0, side, (40, 2)):
        radius = side * 0.008
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (255, 255, 255))


def _night(draw: ImageDraw.ImageDraw, side: int, random: np.random.Generator) -> None:
    draw.rectangle((0, 0, side, side), (18, 22, 52))
    for x, y in random.uniform(0, side, (40, 2)):
        radius = side * random.uniform(0.003, 0.008)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (240, 240, 210))
    x, y, r = random.uniform(0.1, 0.9) * side, 0.14 * side, 0.08 * side
    draw.ellipse((x - r, y - r, x + r, y + r), (244, 240, 214))
    draw.ellipse((x - 0.5 * r, y - 1.1 * r, x + 1.3 * r, y + 0.8 * r), (18, 22, 52))
