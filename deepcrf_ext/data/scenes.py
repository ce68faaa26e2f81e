"""Rendered scenes in which many pixels can be named only by what is above, below or around them.

Four pairs of classes are drawn by the same code with the same distribution of shapes, sizes, colours
and textures, and are told apart by context alone:

- *sky* has hills below it; *water* has ground below it;
- the *sun* hangs in the sky, a *buoy* of the same look swims on the water;
- a *tree* has a trunk below its crown; a *bush* is the same green ball without one;
- a *statue* has a pedestal below it; a *person* of the same look has none.

The camera looks up, ahead or down, so that the height in the picture does not tell them apart
either: both sky and water can be the top of the picture, nearly all of it or a strip.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.errors import InputError

Colour = tuple[int, int, int]

LABEL_COLOURS: dict[str, Colour] = {
    "sky": (120, 190, 240),
    "water": (20, 90, 180),
    "hill": (110, 90, 150),
    "ground": (200, 210, 110),
    "sun": (255, 200, 0),
    "buoy": (230, 80, 20),
    "tree": (0, 100, 40),
    "bush": (90, 190, 120),
    "trunk": (120, 70, 30),
    "person": (220, 20, 120),
    "statue": (140, 220, 220),
    "pedestal": (128, 128, 128),
}
SKY, WATER, HILL, GROUND, SUN, BUOY, TREE, BUSH, TRUNK, PERSON, STATUE, PEDESTAL = range(12)

LENGTHS = {"train": 256, "val": 64, "test": 64}

# Bands from top to bottom, each with the range of its share of the height; and how likely they are.
_BLUE, _RIDGE = (0.6, 2.0), (0.2, 0.45)
_LAYOUTS: tuple[tuple[float, tuple[tuple[int, tuple[float, float]], ...]], ...] = (
    (0.15, ((SKY, _BLUE), (HILL, _RIDGE))),
    (0.2, ((SKY, _BLUE), (HILL, _RIDGE), (GROUND, (0.2, 1.0)))),
    (0.25, ((WATER, _BLUE), (GROUND, (0.3, 1.4)))),
    (0.15, ((HILL, _RIDGE), (WATER, _BLUE), (GROUND, (0.3, 1.4)))),
    (0.2, ((SKY, _BLUE), (HILL, _RIDGE), (WATER, _BLUE), (GROUND, (0.4, 1.4)))),
    (0.05, ((GROUND, (1.0, 1.0)),)),
)
# How strongly the coarse and the fine texture show on each class, in 1/256 of their full range.
# The two classes of a pair have the same numbers.
_TEXTURE = np.array(
    [
        (56, 10),  # sky
        (56, 10),  # water
        (50, 34),  # hill
        (40, 60),  # ground
        (0, 12),  # sun
        (0, 12),  # buoy
        (30, 110),  # tree
        (30, 110),  # bush
        (0, 70),  # trunk
        (0, 20),  # person
        (0, 20),  # statue
        (0, 40),  # pedestal
    ],
    np.int32,
)


class Scenes(SegmentationDataset):
    """Rendered scenes of 12 classes, 96 x 128 pixels: 256 for training, 64 each for val and test.

    An image depends on (seed, split, index) alone: all chance comes from a NumPy generator
    seeded with them, and drawing and shading are done in integers.

    Attributes:
        look_alikes: pairs of classes that only their context tells apart.

    Args:
        split: train, val or test.
        seed: at least 0; another seed gives other images.
        size: (height, width) of the images in pixels, at least 32 each; objects scale with the height.

    Raises:
        InputError: an unknown split, a negative seed or a size that is too small.
    """

    classes = tuple(LABEL_COLOURS)
    palette = np.array(list(LABEL_COLOURS.values()), np.uint8)
    look_alikes = (("sky", "water"), ("sun", "buoy"), ("tree", "bush"), ("person", "statue"))

    def __init__(self, split: str, seed: int = 0, size: tuple[int, int] = (96, 128)) -> None:
        if split not in LENGTHS:
            raise InputError(f"split is {split!r}; must be one of {', '.join(LENGTHS)}")
        if seed < 0:
            raise InputError(f"seed is {seed}; must be at least 0")
        if min(size) < 32:
            raise InputError(f"size is {size}; must be (height, width), both at least 32")
        self.split = split
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return LENGTHS[self.split]

    def __getitem__(self, index: int) -> Sample:
        position = range(len(self))[index]  # IndexError past the end; negative ones count from there
        random = np.random.default_rng((self.seed, list(LENGTHS).index(self.split), position))
        image, labels = render(random, *self.size)
        return Sample(image, labels, f"{self.split}_{position:04d}")


def render(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: uint8 [height, width, 3] RGB and uint8 [height, width] class indices."""
    canvas = _Canvas(random, height, width)
    tops = _draw_bands(canvas)
    _draw_balls(canvas, tops)
    _draw_objects(canvas, tops)
    return canvas.shaded(), canvas.labels


class _Canvas:
    """An image and its label map, drawn together; lengths are in 1/96 of the height ("units")."""

    def __init__(self, random: np.random.Generator, height: int, width: int) -> None:
        self.random = random
        self.height = height
        self.width = width
        self.unit = height / 96
        self.columns = width / self.unit  # the width in units; the height is 96
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels = np.zeros((height, width), np.uint8)
        self.light = 1 if random.random() < 0.5 else -1  # the light comes from the left or the right

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def between(self, one: Colour, other: Colour) -> Colour:
        """A random colour on the line between two colours."""
        share = self.random.random()
        return _mix(one, other, share)

    def polygon(self, points: np.ndarray, colour: Colour, label: int) -> None:
        """Fill a polygon, float [P, 2] of (x, y) in units."""
        fixed = np.rint(points * (self.unit * 16)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, shift=4)
        cv2.fillPoly(self.labels, [fixed], label, cv2.LINE_8, shift=4)

    def ellipse(
        self, x: float, y: float, across: float, down: float, colour: Colour, label: int | None
    ) -> None:
        """Fill an ellipse with the given half axes; label None leaves the label map as it is."""
        scale = self.unit * 16
        centre = (round(x * scale), round(y * scale))
        axes = (max(8, round(across * scale)), max(8, round(down * scale)))
        cv2.ellipse(self.image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA, 4)
        if label is not None:
            cv2.ellipse(self.labels, centre, axes, 0, 0, 360, label, -1, cv2.LINE_8, 4)

    def box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, label: int
    ) -> None:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self.polygon(np.array(corners), colour, label)

    def shadow(self, x: float, y: float, across: float) -> None:
        """Darken the picture below something that stands at (x, y)."""
        row = min(max(int(y * self.unit), 0), self.height - 1)
        column = min(max(int(x * self.unit), 0), self.width - 1)
        red, green, blue = (int(value) for value in self.image[row, column])
        colour = _mix((red, green, blue), (20, 25, 40), 0.35)
        self.ellipse(x - self.light * 0.4 * across, y, across, 0.22 * across + 0.6, colour, None)

    def shaded(self) -> np.ndarray:
        """The image with textures, uneven light, a colour cast and noise."""
        shape = (self.height, self.width)
        coarse = self.random.integers(0, 256, (12, 7), np.uint8)
        coarse = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
        coarse = cv2.blur(coarse, (7, 3))
        fine = self.random.integers(0, 256, ((shape[0] + 1) // 2, (shape[1] + 1) // 2), np.uint8)
        fine = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
        weights = _TEXTURE[self.labels]
        texture = weights[..., 0] * (coarse.astype(np.int32) - 128)
        texture += weights[..., 1] * (fine.astype(np.int32) - 128)
        pixels = self.image.astype(np.int32)
        pixels += (texture >> 8)[..., None]

        brightness = self.uniform(0.72, 1.15)
        slope = self.uniform(-0.15, 0.15)
        cast = np.array([self.uniform(0.95, 1.05) for _ in range(3)])
        across = 1 + slope * np.linspace(-1, 1, self.width)
        gain = np.rint(256 * brightness * across[:, None] * cast).astype(np.int32)  # [W, 3]
        noise = self.random.integers(0, 256, (2, *shape, 3), np.uint8).astype(np.int32)
        strength = int(self.uniform(4, 16))
        pixels = (pixels * gain + (noise[0] - noise[1]) * strength) >> 8
        return np.clip(pixels, 0, 255).astype(np.uint8)


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _draw_bands(canvas: _Canvas) -> list[tuple[int, float, float]]:
    """Draw sky, hills, water and ground; return (class, top, bottom) of each band in units."""
    draw = canvas.random.random()
    layout = _LAYOUTS[-1][1]
    for probability, candidate in _LAYOUTS:
        if draw < probability:
            layout = candidate
            break
        draw -= probability
    shares = np.array([canvas.uniform(*share) for _, share in layout])
    edges = np.concatenate([[0.0], np.cumsum(shares / shares.sum()) * 96])
    bands = []
    for (label, _), top, bottom in zip(layout, edges[:-1], edges[1:], strict=True):
        _BANDS[label](canvas, float(top), label)
        bands.append((label, float(top), float(bottom)))
    return bands


def _edge(canvas: _Canvas, top: float, waves: tuple[tuple[float, float], ...]) -> np.ndarray:
    """The region below a wavy line: waves are (length, height) in units; at the top it is straight."""
    x = np.linspace(0, canvas.columns, 33)
    y = np.full_like(x, top)
    if top > 0:
        for length, size in waves:
            y += canvas.uniform(0.5, 1) * size * np.sin(
                x * (2 * np.pi / (length * canvas.uniform(0.7, 1.4))) + canvas.uniform(0, 2 * np.pi)
            )
    corners = [(canvas.columns, 97.0), (0.0, 97.0)]
    return np.concatenate([np.stack([x, y], axis=1), corners])


def _draw_blue(canvas: _Canvas, top: float, label: int) -> None:
    region = _edge(canvas, top, ((90, 0.8),))
    first = canvas.between((70, 130, 205), (165, 205, 235))
    last = canvas.between((70, 130, 205), (165, 205, 235))
    canvas.polygon(region, first, label)
    steps = 12
    for step in range(1, steps):
        start = top + (96 - top) * step / steps
        region[:33, 1] += start - region[:33, 1].mean()
        canvas.polygon(region, _mix(first, last, step / (steps - 1)), label)


def _draw_hill(canvas: _Canvas, top: float, label: int) -> None:
    colour = canvas.between((95, 80, 115), (125, 120, 135))
    canvas.polygon(_edge(canvas, top, ((70, 3.5), (23, 2))), colour, label)
    nearer = _mix(colour, (60, 75, 80), 0.3)
    canvas.polygon(_edge(canvas, top + 6, ((50, 2.5), (17, 1.5))), nearer, label)


def _draw_ground(canvas: _Canvas, top: float, label: int) -> None:
    colour = canvas.between((150, 185, 95), (220, 200, 140))
    canvas.polygon(_edge(canvas, top, ((80, 2), (31, 1))), colour, label)
    for start in (top + 0.35 * (96 - top), top + 0.7 * (96 - top)):
        colour = _mix(colour, (120, 130, 60), 0.15)
        canvas.polygon(_edge(canvas, start + 0.1, ((60, 3),)), colour, label)


_BANDS: dict[int, Callable[[_Canvas, float, int], None]] = {
    SKY: _draw_blue,
    WATER: _draw_blue,
    HILL: _draw_hill,
    GROUND: _draw_ground,
}


def _draw_balls(canvas: _Canvas, bands: list[tuple[int, float, float]]) -> None:
    """Up to two orange balls in every blue band: suns in the sky, buoys on the water."""
    for label, top, bottom in bands:
        if label not in (SKY, WATER):
            continue
        for probability in (0.75, 0.25):
            radius = canvas.uniform(3.5, 8)
            low, high = top + radius + 1, bottom - radius - 4
            if high <= low or not canvas.chance(probability):
                continue
            x, y = canvas.uniform(0, canvas.columns), canvas.uniform(low, high)
            colour = canvas.between((235, 110, 35), (250, 170, 60))
            ball = SUN if label == SKY else BUOY
            canvas.ellipse(x, y, radius, radius, colour, ball)
            shine = _mix(colour, (255, 240, 200), 0.6)
            canvas.ellipse(
                x - canvas.light * 0.3 * radius, y - 0.3 * radius, 0.4 * radius, 0.4 * radius, shine, None
            )


def _draw_objects(canvas: _Canvas, bands: list[tuple[int, float, float]]) -> None:
    """Trees, bushes, persons and statues on the ground, bushes also on hills; the nearest last."""
    label, top, _ = bands[-1]
    kinds = (TREE, BUSH, PERSON, STATUE) if label == GROUND else (BUSH,)
    count = int(canvas.random.integers(1, 3 if label == HILL else 6))
    standing = []
    for _ in range(count):
        kind = kinds[int(canvas.random.integers(len(kinds)))]
        standing.append((canvas.uniform(top + 3, 97), canvas.uniform(0, canvas.columns), kind))
    for y, x, kind in sorted(standing):
        if kind in (TREE, BUSH):
            _draw_plant(canvas, x, y, kind)
        else:
            _draw_figure(canvas, x, y, kind)


def _draw_plant(canvas: _Canvas, x: float, y: float, label: int) -> None:
    """A green ball of leaves standing at (x, y), for a tree on a trunk."""
    radius = canvas.uniform(7, 13)
    canvas.shadow(x, y, 0.8 * radius)
    if label == TREE:
        trunk = canvas.uniform(12, 24)
        thick = canvas.uniform(1.3, 2.2)
        colour = canvas.between((90, 60, 40), (130, 90, 60))
        canvas.box(x - thick, y - trunk - radius, x + thick, y, colour, TRUNK)
        y -= trunk
    colour = canvas.between((40, 95, 45), (85, 135, 60))
    y -= 0.85 * radius
    canvas.ellipse(x, y, 0.85 * radius, 0.75 * radius, colour, label)
    turn = canvas.uniform(0, 1)
    for step in range(7):
        angle = 2 * np.pi * (step + turn) / 7
        across, down = 0.62 * np.cos(angle), 0.55 * np.sin(angle)
        lit = 0.3 - 0.25 * down - 0.2 * canvas.light * across
        tuft = canvas.uniform(0.32, 0.42) * radius
        shade = _mix(_mix(colour, (20, 45, 30), 0.4), (150, 185, 90), max(0.0, lit) * 0.8)
        canvas.ellipse(x + across * radius, y + down * radius, tuft, tuft, shade, label)


def _draw_figure(canvas: _Canvas, x: float, y: float, label: int) -> None:
    """A standing figure with its feet at (x, y), for a statue on a pedestal."""
    size = canvas.uniform(17, 28)
    canvas.shadow(x, y, 0.32 * size)
    if label == STATUE:
        high, half = canvas.uniform(7, 13), canvas.uniform(0.26, 0.36) * size
        stone = canvas.between((150, 150, 145), (205, 200, 190))
        canvas.box(x - half, y - high, x + half, y, stone, PEDESTAL)
        darker = _mix(stone, (90, 90, 95), 0.4)
        canvas.box(x - half - 1.2, y - high, x + half + 1.2, y - high + 2, darker, PEDESTAL)
        canvas.box(x - half - 1.2, y - 1.8, x + half + 1.2, y, darker, PEDESTAL)
        y -= high
    skin = canvas.between((150, 105, 80), (225, 180, 150))
    coat = canvas.between((150, 40, 60), (70, 60, 140))
    legs = canvas.between((40, 40, 55), (85, 75, 80))
    wide = canvas.uniform(0.13, 0.17) * size
    stride = canvas.uniform(0.05, 0.14) * size
    for side in (-1, 1):
        foot = x + side * stride
        hip = x + side * 0.06 * size
        thick = 0.055 * size
        leg = [(hip - thick, y - 0.45 * size), (hip + thick, y - 0.45 * size)]
        leg += [(foot + thick, y), (foot - thick, y)]
        canvas.polygon(np.array(leg), legs, label)
    for side in (-1, 1):
        swing = canvas.uniform(0.18, 0.3) * size
        hand = canvas.uniform(0.38, 0.55) * size
        arm = [(x, y - 0.8 * size), (x + side * wide, y - 0.78 * size)]
        arm += [(x + side * (swing + 0.06 * size), y - hand), (x + side * swing, y - hand)]
        canvas.polygon(np.array(arm), _mix(coat, (30, 30, 40), 0.25), label)
    torso = [(x - wide, y - 0.8 * size), (x + wide, y - 0.8 * size)]
    torso += [(x + 0.8 * wide, y - 0.42 * size), (x - 0.8 * wide, y - 0.42 * size)]
    canvas.polygon(np.array(torso), coat, label)
    head = 0.1 * size
    canvas.ellipse(x, y - 0.89 * size, head, 1.15 * head, skin, label)
