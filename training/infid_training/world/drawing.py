"""Drawing a person in a scene: shapes on a turned head, drawn at three times the size and averaged down.

The face is described in its own coordinates: (u, v), u to the image's right and v down, both -1 to 1 at the edge of
the head, which is an ellipsoid. All points are projected together, so turning the head foreshortens every feature.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from infid_training.world.people import Person
from infid_training.world.places import draw_place
from infid_training.world.scenes import Scene
from infid_training.world.styles import apply_style

Array = np.ndarray[Any, Any]

Color = tuple[int, int, int]
Points = Array
_OVERSAMPLED = 3  # averaging 3 × 3 pixels gives edges 10 levels
_CLOTHES: dict[str, Color] = {
    "red": (196, 40, 44), "orange": (230, 126, 34), "yellow": (240, 200, 50), "green": (52, 140, 72),
    "blue": (44, 88, 184), "purple": (124, 62, 160), "white": (238, 238, 234), "black": (36, 36, 40),
}  # fmt: skip
# Colors along a trait, evenly spaced.
_SKIN: Sequence[Color] = ((255, 226, 204), (241, 194, 160), (205, 148, 108), (146, 96, 64), (86, 54, 38))
_HAIR: Sequence[Color] = ((24, 20, 20), (74, 46, 28), (150, 62, 30), (222, 178, 96), (178, 178, 180))
_IRIS: Sequence[Color] = ((84, 52, 28), (86, 118, 52), (52, 104, 176), (130, 140, 150))


def render(person: Person, scene: Scene, size: int = 128) -> Image.Image:
    """Draw a person in a scene.

    Args:
        person: the person.
        scene: the scene.
        size: side in pixels.

    Returns:
        `size` × `size` RGB.
    """
    side = size * _OVERSAMPLED
    image = draw_place(scene, side)
    canvas = _Canvas(person, scene, side)
    canvas.body()
    canvas.head()
    canvas.paint(ImageDraw.Draw(image))
    lit = _light(image.reduce(_OVERSAMPLED), scene)
    return apply_style(lit, scene.style, scene.seed)


def landmarks(person: Person, scene: Scene) -> Points:
    """Return where a face detector should find the face.

    Returns:
        `[5, 2]` x, y of left eye, right eye, nose, left and right mouth corner, as fractions of the image's side; left
        is the image's left.
    """
    eye, mouth = 0.30 + 0.14 * person.eye_spacing, 0.2 + 0.18 * person.mouth_width
    corner = 0.62 - 0.13 * scene.smile
    points = [(-eye, -0.06), (eye, -0.06), (0.0, 0.18 + 0.22 * person.nose_length), (-mouth, corner), (mouth, corner)]
    depth = np.array([0.0, 0.0, 0.16, 0.0, 0.0])
    return _Canvas(person, scene, 1).place(np.array(points), np.ones(5, bool), depth)


@dataclass
class _Shape:
    """A polygon or a line; `turned` points are the face's (u, v), the others are in half heights of the head."""

    points: Points
    color: Color
    turned: bool
    width: float = 0.0  # of a line, in half heights; 0 means a polygon
    depth: float = 0.0  # in front of the head's surface


@dataclass
class _Canvas:
    """Collects shapes, from back to front, and paints them."""

    person: Person
    scene: Scene
    side: int
    shapes: list[_Shape] = field(default_factory=list)

    def __post_init__(self) -> None:
        who = self.person
        self.half_width = 0.70 + 0.16 * who.face_width
        self.half_height = 0.92 + 0.14 * who.face_length
        self.skin = _warmed(_along(_SKIN, who.skin_tone), who.skin_warmth)
        self.hair = _along(_HAIR, who.hair_color)

    def body(self) -> None:
        """Add hair behind, neck, clothes and what the hands do."""
        who, scene = self.person, self.scene
        color = _CLOTHES[scene.color]
        if who.hair_length > 0.45:
            low = 0.4 + 1.6 * (who.hair_length - 0.45)
            wide = self.half_width * (1.08 + 0.25 * who.hair_volume)
            self._add(_rounded(0.0, low / 2 - 0.35, wide, low / 2 + 0.75), _shade(self.hair, 0.8))
        self._add(_box(-0.34, 0.5, 0.34, 1.5), _shade(self.skin, 0.82))
        self._add(_shoulders(), color)
        if scene.clothes == "striped sweater":
            light = _shade(color, 1.5 if sum(color) < 450 else 0.6)
            for row in range(4):
                self._add(_box(-1.5, 1.72 + 0.3 * row, 1.5, 1.85 + 0.3 * row), light)
        elif scene.clothes == "suit":
            self._add(np.array([(-0.4, 1.18), (0.4, 1.18), (0.0, 2.1)]), (244, 244, 244))
            self._add(np.array([(-0.09, 1.3), (0.09, 1.3), (0.13, 2.0), (0.0, 2.15), (-0.13, 2.0)]), (150, 30, 40))
        elif scene.clothes == "hoodie":
            self._add(_ring(0.0, 1.22, 0.62, 0.34), _shade(color, 0.7), 0.16)
        elif scene.clothes == "dress":
            self._add(_rounded(0.0, 1.05, 0.55, 0.42), self.skin)
        self._action()

    def _action(self) -> None:
        action = self.scene.action
        if action == "":
            return
        if action == "waving":
            self._add(np.array([(1.15, 2.6), (1.5, 2.6), (1.55, 1.0), (1.3, 1.0)]), _CLOTHES[self.scene.color])
            self._add(_rounded(1.43, 0.78, 0.24, 0.27), self.skin)
            for finger in range(4):
                self._add(_box(1.22 + 0.12 * finger, 0.35, 1.3 + 0.12 * finger, 0.75), self.skin)
            return
        if action == "reading a book":
            self._add(np.array([(-0.8, 1.75), (0.0, 1.9), (0.8, 1.75), (0.8, 2.6), (-0.8, 2.6)]), (120, 30, 36))
            self._add(
                np.array([(-0.72, 1.68), (0.0, 1.83), (0.72, 1.68), (0.72, 1.8), (0.0, 1.95), (-0.72, 1.8)]),
                (250, 246, 230),
            )
        elif action == "holding a cup":
            self._add(_ring(0.98, 1.68, 0.16, 0.18), (250, 250, 250), 0.08)
            self._add(_box(0.4, 1.4, 0.9, 2.0), (250, 250, 250))
            self._add(_box(0.4, 1.52, 0.9, 1.64), (200, 60, 50))
        else:
            self._add(_box(0.72, 1.3, 0.78, 2.3), (52, 130, 60))
            for angle in np.arange(6) * np.pi / 3:
                self._add(_rounded(0.75 + 0.2 * np.cos(angle), 1.15 + 0.2 * np.sin(angle), 0.14, 0.14), (236, 84, 130))
            self._add(_rounded(0.75, 1.15, 0.12, 0.12), (250, 210, 60))
        for across in (-0.55, 0.62):
            self._add(_rounded(across, 2.05, 0.22, 0.2), self.skin)

    def head(self) -> None:
        """Add the head with its features."""
        who, scene = self.person, self.scene
        ear = 0.13 + 0.12 * who.ears
        for side in (-1, 1):
            across = side * self.half_width * (1.0 - 0.25 * max(0.0, side * scene.yaw))
            self._add(_rounded(across, 0.08, ear * 0.7, ear * 1.4), _shade(self.skin, 0.9))
        self._add(self._outline(), self.skin)
        self._cheeks()
        self._beard()
        self._nose()
        self._mouth()
        for side in (-1, 1):
            self._eye(side)
        self._hair()
        self._glasses()
        self._hat()

    def _outline(self) -> Points:
        """Return the head's silhouette: an ellipse above, a jaw below, shifted to the side to which the head turns."""
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        across, down = np.cos(angle), np.sin(angle)
        below = np.clip(down, 0, 1)
        narrowed = 1.0 - (0.30 - 0.24 * self.person.jaw) * below**1.5
        chin = 0.10 * np.sin(self.scene.yaw) * below**2
        return np.stack([self.half_width * (across * narrowed + chin), self.half_height * down], 1)

    def _cheeks(self) -> None:
        who = self.person
        blush = _mix(self.skin, (214, 84, 70), 0.14)
        for side in (-1, 1):
            self._turn(_rounded(0.5 * side, 0.3, 0.2, 0.13), blush)
        if who.freckles > 0.6:
            spots = np.random.default_rng(int(1e6 * who.freckles)).random((int(14 + 50 * (who.freckles - 0.6)), 2))
            dark = _shade(_mix(self.skin, (150, 80, 40), 0.5), 0.85)
            for u, v in spots:
                self._turn(_rounded(1.1 * (u - 0.5), 0.08 + 0.36 * v, 0.022, 0.022, 6), dark)
        if who.mole_size > 0.5:
            radius = 0.03 + 0.07 * (who.mole_size - 0.5)
            self._turn(
                _rounded(1.1 * (who.mole_across - 0.5), 0.2 + 0.55 * who.mole_down, radius, radius, 10), (60, 36, 28)
            )

    def _beard(self) -> None:
        full = (self.person.beard - 0.6) / 0.4
        if full <= 0:
            return
        color = _mix(self.skin, _shade(self.hair, 0.85), 0.45 + 0.55 * full)
        angle = np.linspace(0.08 * np.pi, 0.92 * np.pi, 20)
        outer = np.stack(
            [0.93 * np.cos(angle) * (1 - 0.24 * (1 - self.person.jaw) * np.sin(angle)), 0.97 * np.sin(angle)], 1
        )
        inner = np.stack([0.62 * np.cos(angle[::-1]), 0.34 + 0.10 * np.sin(angle[::-1])], 1)
        self._turn(np.concatenate([outer, inner]), color)

    def _nose(self) -> None:
        who = self.person
        top, tip = 0.0, 0.18 + 0.22 * who.nose_length
        wide = 0.10 + 0.12 * who.nose_width
        dark = _shade(self.skin, 0.78)
        self._turn(
            np.array([(-0.04, top), (0.04, top), (wide, tip), (0.0, tip + 0.07), (-wide, tip)]),
            _shade(self.skin, 0.92),
            depth=0.16,
        )
        for side in (-1, 1):
            self._turn(_rounded(0.55 * wide * side, tip + 0.02, 0.035, 0.024, 8), dark, depth=0.12)
        self._turn(np.array([(-wide, tip), (0.0, tip + 0.07), (wide, tip)]), dark, 0.035, depth=0.14)

    def _mouth(self) -> None:
        who, scene = self.person, self.scene
        half, middle = 0.2 + 0.18 * who.mouth_width, 0.62
        full = 0.035 + 0.075 * who.lips
        across = np.linspace(-1, 1, 13)
        bend = -0.13 * scene.smile * across**2
        opened = 0.17 * scene.mouth_open * (1 - across**2)
        lip = _mix(self.skin, (172, 40, 56), 0.55)
        upper = np.stack(
            [half * across, middle + bend - full * (1 - across**2) * (1 + 0.25 * np.cos(3 * np.pi * across))], 1
        )
        lower = np.stack([half * across, middle + bend + opened + 1.25 * full * (1 - across**2)], 1)
        self._turn(np.concatenate([upper, lower[::-1]]), lip)
        line = np.stack([half * across, middle + bend], 1)
        if scene.mouth_open > 0.08:
            inside = np.stack([half * across, middle + bend + opened], 1)
            self._turn(np.concatenate([line, inside[::-1]]), (84, 22, 30))
            teeth = np.stack([half * across, middle + bend + 0.45 * opened], 1)
            self._turn(np.concatenate([line, teeth[::-1]])[1:-1], (246, 242, 236))
        else:
            self._turn(line, _shade(lip, 0.55), 0.03)

    def _eye(self, side: int) -> None:
        who, scene = self.person, self.scene
        center = side * (0.30 + 0.14 * who.eye_spacing)
        long, tall = 0.13 + 0.06 * who.eye_size, (0.055 + 0.055 * who.eye_size) * (1 - 0.95 * scene.eyes_closed)
        level, tilt = -0.06, 0.1 * (who.eye_tilt - 0.5)
        along = np.linspace(-1, 1, 11)
        base = level - tilt * along * side
        lid, under = base - tall * (1 - along**2), base + 0.8 * tall * (1 - along**2)
        across = center + long * along
        self._turn(np.concatenate([np.stack([across, lid], 1), np.stack([across, under], 1)[::-1]]), (246, 244, 240))
        if tall > 0.02:
            look = center + 0.3 * long * scene.gaze
            radius = min(0.075 + 0.02 * who.eye_size, 1.05 * tall)
            self._turn(_rounded(look, level, radius, radius), _along(_IRIS, who.iris))
            self._turn(_rounded(look, level, 0.5 * radius, 0.5 * radius, 10), (14, 12, 14))
            self._turn(
                _rounded(look - 0.3 * radius, level - 0.35 * radius, 0.2 * radius, 0.2 * radius, 6), (255, 255, 255)
            )
        self._turn(np.stack([across, lid], 1), (30, 22, 22), 0.035)
        brow = level - 0.17 - 0.07 * who.brow_arch * (1 - along**2) - 0.04 * scene.mouth_open - tilt * along * side
        self._turn(
            np.stack([center + 1.35 * long * along, brow], 1),
            _shade(self.hair, 0.75),
            0.035 + 0.065 * who.brow_thickness,
        )

    def _hair(self) -> None:
        who = self.person
        if self.scene.hat in ("beanie", "baseball cap"):
            return
        rise = 1.06 + 0.22 * who.hair_volume
        line = -0.74 + 0.36 * who.fringe
        angle = np.linspace(1.02 * np.pi, 1.98 * np.pi, 24)
        outer = np.stack([rise * self.half_width * np.cos(angle), rise * self.half_height * np.sin(angle)], 1)
        along = np.linspace(1, -1, 15)
        reach = 0.16 + 0.5 * min(who.hair_length, 0.5)
        inner = np.stack(
            [0.97 * self.half_width * along, self.half_height * (line + (reach - line) * np.abs(along) ** 5)], 1
        )
        inner[:, 1] += 0.05 * who.hair_volume * np.cos(9 * along)
        inner[:, 0] += 0.25 * self.half_width * np.sin(self.scene.yaw) * (1 - along**2)
        self._add(np.concatenate([outer, inner]), self.hair)

    def _glasses(self) -> None:
        who = self.person
        if who.glasses < 0.65:
            return
        center, radius = 0.30 + 0.14 * who.eye_spacing, 0.17 + 0.25 * (who.glasses - 0.65)
        red, green, blue = colorsys.hsv_to_rgb(who.frame_color, 0.7, 0.25 + 0.5 * who.frame_color)
        color = (int(255 * red), int(255 * green), int(255 * blue))
        for side in (-1, 1):
            rim = _rounded(side * center, -0.05, radius, 0.85 * radius)
            self._turn(np.concatenate([rim, rim[:1]]), color, 0.045, depth=0.1)
            self._turn(np.array([(side * (center + radius), -0.07), (side * 0.98, -0.1)]), color, 0.04)
        self._turn(np.array([(-(center - radius), -0.07), (center - radius, -0.07)]), color, 0.045, depth=0.14)

    def _hat(self) -> None:
        hat, wide, high = self.scene.hat, self.half_width, self.half_height
        turn = 0.3 * wide * np.sin(self.scene.yaw)
        if hat == "straw hat":
            self._add(_rounded(0.0, -0.95 * high, 0.95 * wide, 0.42), (214, 178, 96))
            self._add(_rounded(0.0, -0.72 * high, 1.75 * wide, 0.17), (226, 192, 110))
            self._add(_box(-0.93 * wide, -0.95 * high, 0.93 * wide, -0.82 * high), (150, 40, 44))
        elif hat == "baseball cap":
            angle = np.linspace(np.pi, 2 * np.pi, 20)
            self._add(
                np.stack([1.07 * wide * np.cos(angle), -0.42 * high + 0.8 * high * np.sin(angle)], 1), (40, 62, 130)
            )
            self._add(_rounded(turn + 0.45 * wide * np.sign(turn or 1), -0.42 * high, 0.95 * wide, 0.11), (30, 46, 104))
        elif hat == "beanie":
            angle = np.linspace(np.pi, 2 * np.pi, 20)
            self._add(
                np.stack([1.1 * wide * np.cos(angle), -0.38 * high + 0.92 * high * np.sin(angle)], 1), (170, 46, 60)
            )
            self._add(_box(-1.12 * wide, -0.56 * high, 1.12 * wide, -0.34 * high), (128, 30, 44))
            self._add(_rounded(0.0, -1.34 * high, 0.2, 0.2), (236, 230, 224))
        elif hat == "crown":
            teeth = [
                (-0.85, -0.7),
                (-0.95, -1.45),
                (-0.5, -1.08),
                (0.0, -1.55),
                (0.5, -1.08),
                (0.95, -1.45),
                (0.85, -0.7),
            ]
            self._add(np.array(teeth) * (wide, high), (232, 188, 52))
            self._add(_rounded(0.0, -0.88 * high, 0.09, 0.09, 10), (196, 40, 60))

    def _add(self, points: Points, color: Color, width: float = 0.0) -> None:
        self.shapes.append(_Shape(np.asarray(points, float), color, False, width))

    def _turn(self, points: Points, color: Color, width: float = 0.0, depth: float = 0.0) -> None:
        self.shapes.append(_Shape(np.asarray(points, float), color, True, width, depth))

    def paint(self, draw: ImageDraw.ImageDraw) -> None:
        """Project all points at once and draw."""
        counts = [len(shape.points) for shape in self.shapes]
        points = np.concatenate([shape.points for shape in self.shapes])
        turned = np.repeat([shape.turned for shape in self.shapes], counts)
        depth = np.repeat([shape.depth for shape in self.shapes], counts)
        pixels = self.place(points, turned, depth) * self.side
        start = 0
        for shape, count in zip(self.shapes, counts, strict=True):
            corners = pixels[start : start + count].ravel().tolist()
            start += count
            if shape.width:
                draw.line(corners, shape.color, max(1, round(shape.width * self.scene.scale * self.side)), "curve")
            else:
                draw.polygon(corners, shape.color)

    def place(self, points: Points, turned: Array, depth: Array) -> Points:
        """Return the points' positions in the image as fractions of its side; `turned` says which are the face's."""
        scene = self.scene
        points[turned] = self._on_the_head(points[turned], depth[turned])
        sine, cosine = np.sin(scene.roll), np.cos(scene.roll)
        below = np.clip((points[:, 1] - 0.9) / 0.8, 0, 1)  # the body does not tilt with the head
        tilted = points @ np.array([[cosine, sine], [-sine, cosine]])
        placed: Points = tilted + below[:, None] * (points - tilted)
        return placed * scene.scale + (scene.across, scene.down)

    def _on_the_head(self, face: Points, depth: Array) -> Points:
        """Turn points of the face's surface by yaw and pitch, and project them."""
        u, v = face[:, 0], face[:, 1]
        z = np.sqrt(np.clip(1 - 0.75 * u**2 - 0.6 * v**2, 0.02, 1)) * 0.9 + depth
        yaw, pitch = self.scene.yaw, self.scene.pitch
        u, z = u * np.cos(yaw) + z * np.sin(yaw), z * np.cos(yaw) - u * np.sin(yaw)
        v = v * np.cos(pitch) + z * np.sin(pitch) * 0.9
        return np.stack([u * self.half_width, v * self.half_height], 1)


def _light(image: Image.Image, scene: Scene) -> Image.Image:
    """Darken the side away from the light, and warm or cool it."""
    across, down = _grid(image.width)
    facing = across * np.sin(scene.light) - down * np.cos(scene.light)
    shade = 1.0 + 0.45 * scene.contrast * facing
    tint = np.array([1 + 0.08 * scene.warmth, 1.0, 1 - 0.08 * scene.warmth], np.float32)
    pixels = np.asarray(image, np.float32) * shade[..., None].astype(np.float32) * tint
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@cache
def _grid(side: int) -> tuple[Array, Array]:
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return axis[None, :], axis[:, None]


def _along(colors: Sequence[Color], at: float) -> Color:
    place = min(at, 0.9999) * (len(colors) - 1)
    return _mix(colors[int(place)], colors[int(place) + 1], place - int(place))


def _mix(first: Color, second: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue


def _warmed(color: Color, warmth: float) -> Color:
    return _mix(color, (color[0], min(255, color[1] + 12), max(0, color[2] - 34)), warmth)


def _rounded(across: float, down: float, wide: float, high: float, corners: int = 20) -> Points:
    unit = _circle(corners)
    return np.stack([across + wide * unit[0], down + high * unit[1]], 1)


@cache
def _circle(corners: int) -> tuple[Array, Array]:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.cos(angle), np.sin(angle)


def _ring(across: float, down: float, wide: float, high: float) -> Points:
    ring = _rounded(across, down, wide, high)
    return np.concatenate([ring, ring[:1]])


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _shoulders() -> Points:
    return np.array(
        [(-0.42, 1.14), (0.42, 1.14), (1.25, 1.5), (1.6, 2.0), (1.75, 4.0), (-1.75, 4.0), (-1.6, 2.0), (-1.25, 1.5)]
    )
