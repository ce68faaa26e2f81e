"""Rendered scenes in which many pixels can be named only by what is above, below or around them.

Four pairs of classes are drawn by the same code with the same distribution of shapes, sizes,
colours and textures, and are told apart by context alone:

- *sky* has hills below it; *water* has ground below it;
- the *sun* hangs in the sky, a *buoy* of the same look swims on the water;
- a *tree* has a trunk below its crown; a *bush* is the same green ball without one;
- a *statue* has a pedestal below it; a *person* of the same look has none.

The camera looks up, ahead or down and is held askew, so that the height in the picture does not
tell them apart either: both sky and water can be the top of the picture, nearly all of it or a
strip, and what lies below may show in one corner alone. What stands on the ground is near or far,
and the near ones are large: from a statue's head it is a long way to its pedestal.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deepcrf_ext.data.base import Sample, SegmentationDataset
from deepcrf_ext.data.scene_canvas import Canvas, Colour, mix
from deepcrf_ext.errors import InputError

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
# Part of every image's seed: keeps its generator apart from those of training, which are seeded
# with (seed, epoch, index).
_STREAM = 20150401

# Bands from top to bottom, each with the range of its share of the height.
_BLUE, _RIDGE, _SHORE = (0.6, 2.0), (0.2, 0.45), (0.4, 1.5)
_LAYOUTS: tuple[tuple[tuple[int, tuple[float, float]], ...], ...] = (
    ((SKY, _BLUE), (HILL, _RIDGE)),
    ((SKY, _BLUE), (HILL, _RIDGE), (GROUND, _SHORE)),
    ((WATER, _BLUE), (GROUND, _SHORE)),
    ((HILL, _RIDGE), (WATER, _BLUE), (GROUND, _SHORE)),
    ((SKY, _BLUE), (HILL, _RIDGE), (WATER, _BLUE), (GROUND, _SHORE)),
    ((HILL, _RIDGE), (GROUND, (1.0, 3.0))),
)
_LAYOUT_PROBABILITIES = (0.15, 0.2, 0.3, 0.1, 0.15, 0.1)
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
        size: (height, width) of the images in pixels, at least 32 each; objects scale with the
            height.

    Raises:
        InputError: an unknown split, a negative seed or a size that is too small.
    """

    classes = tuple(LABEL_COLOURS)
    palette = np.array(list(LABEL_COLOURS.values()), np.uint8)
    look_alikes = (("sky", "water"), ("sun", "buoy"), ("tree", "bush"), ("person", "statue"))

    def __init__(self, split: str, seed: int = 0, size: tuple[int, int] = (96, 128)) -> None:
        if split not in LENGTHS:
            raise InputError(f"split: got {split!r}, must be one of {', '.join(LENGTHS)}")
        if seed < 0:
            raise InputError(f"seed: got {seed}, must be at least 0")
        if min(size) < 32:
            raise InputError(f"size: got {size}, must be (height, width), both at least 32")
        self.split = split
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return LENGTHS[self.split]

    def __getitem__(self, index: int) -> Sample:
        position = range(len(self))[index]  # IndexError past the end
        split = list(LENGTHS).index(self.split)
        random = np.random.default_rng((self.seed, split, position, _STREAM))
        image, labels = render(random, *self.size)
        return Sample(image, labels, f"{self.split}_{position:04d}")


def render(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: uint8 [height, width, 3] RGB and uint8 [height, width] class indices."""
    canvas = Canvas(random, height, width, _TEXTURE)
    tops = _draw_bands(canvas)
    _draw_balls(canvas, tops)
    _draw_objects(canvas, tops)
    return canvas.shaded(), canvas.labels


def _draw_bands(canvas: Canvas) -> list[tuple[int, float, float]]:
    """Draw sky, hills, water and ground; return (class, top, bottom) of each band in units."""
    layout = _LAYOUTS[canvas.random.choice(len(_LAYOUTS), p=_LAYOUT_PROBABILITIES)]
    shares = np.array([canvas.uniform(*share) for _, share in layout])
    edges = np.concatenate([[0.0], np.cumsum(shares / shares.sum()) * 96])
    for index, (label, _) in enumerate(layout):
        if label == HILL:  # high enough that no wave of the next band reaches the sky
            edges[index + 1] = max(edges[index + 1], edges[index] + 11)
    bands = []
    for (label, _), top, bottom in zip(layout, edges[:-1], edges[1:], strict=True):
        _BANDS[label](canvas, float(top), label)
        bands.append((label, float(top), float(bottom)))
    return bands


def _edge(canvas: Canvas, top: float, waves: tuple[tuple[float, float], ...]) -> np.ndarray:
    """The region below a line with waves of (length, height) in units; straight at the very top."""
    x = np.linspace(0, canvas.columns, 33)
    y = np.full_like(x, top)
    if top > 0:
        y += canvas.drop(x)
        for length, size in waves:
            turns = x / (length * canvas.uniform(0.7, 1.4)) + canvas.random.random()
            y += canvas.uniform(0.5, 1) * size * np.sin(2 * np.pi * turns)
    corners = [(canvas.columns, 97.0), (0.0, 97.0)]
    return np.concatenate([np.stack([x, y], axis=1), corners])


def _draw_blue(canvas: Canvas, top: float, label: int) -> None:
    region = _edge(canvas, top, ((90, 0.8),))
    first = canvas.between((70, 130, 205), (165, 205, 235))
    last = canvas.between((70, 130, 205), (165, 205, 235))
    canvas.polygon(region, first, label)
    steps = 12
    for step in range(1, steps):
        start = top + (96 - top) * step / steps
        region[:33, 1] += start - region[:33, 1].mean()
        canvas.polygon(region, mix(first, last, step / (steps - 1)), label)


def _draw_hill(canvas: Canvas, top: float, label: int) -> None:
    colour = canvas.between((95, 80, 115), (125, 120, 135))
    canvas.polygon(_edge(canvas, top, ((70, 3.5), (23, 2))), colour, label)
    nearer = mix(colour, (60, 75, 80), 0.3)
    canvas.polygon(_edge(canvas, top + 6, ((50, 2.5), (17, 1.5))), nearer, label)


def _draw_ground(canvas: Canvas, top: float, label: int) -> None:
    colour = canvas.between((150, 185, 95), (220, 200, 140))
    canvas.polygon(_edge(canvas, top, ((80, 2), (31, 1))), colour, label)
    for start in (top + 0.35 * (96 - top), top + 0.7 * (96 - top)):
        colour = mix(colour, (120, 130, 60), 0.15)
        canvas.polygon(_edge(canvas, start + 0.1, ((60, 3),)), colour, label)


_BANDS: dict[int, Callable[[Canvas, float, int], None]] = {
    SKY: _draw_blue,
    WATER: _draw_blue,
    HILL: _draw_hill,
    GROUND: _draw_ground,
}


def _draw_balls(canvas: Canvas, bands: list[tuple[int, float, float]]) -> None:
    """Up to two orange balls in every blue band: suns in the sky, buoys on the water."""
    for label, top, bottom in bands:
        if label not in (SKY, WATER):
            continue
        for probability in (0.8, 0.35):
            radius, x = canvas.uniform(4.5, 9.5), canvas.uniform(0, canvas.columns)
            first = max(top + canvas.drop(x), 0) if top > 0 else 0  # rows of the band at x
            last = min(bottom + canvas.drop(x), 96)
            low, high = first + radius + 1, last - radius - 4
            if high <= low or not canvas.chance(probability):
                continue
            y = canvas.uniform(low, high)
            colour = canvas.between((235, 110, 35), (250, 170, 60))
            canvas.ellipse(x, y, radius, radius, colour, SUN if label == SKY else BUOY)
            for reach, share in ((0.62, 0.25), (0.36, 0.6)):
                shift = 0.5 * (1 - reach) * radius
                shine = mix(colour, (255, 240, 200), share)
                across = reach * radius
                canvas.ellipse(x - canvas.light * shift, y - shift, across, across, shine, None)


def _draw_objects(canvas: Canvas, bands: list[tuple[int, float, float]]) -> None:
    """Trees, bushes, persons and statues on the ground, or bushes on hills; the nearest last.

    Both classes of a pair end at heights of the same distribution; what a tree or a statue stands
    on comes below that and may be cut off in part by the edge of the picture.
    """
    label, top, _ = bands[-1]
    kinds = (TREE, BUSH, PERSON, STATUE) if label == GROUND else (BUSH,)
    standing = []
    for _ in range(int(canvas.random.integers(1, 6 if label == GROUND else 3))):
        kind = kinds[int(canvas.random.integers(len(kinds)))]
        x, size = canvas.uniform(0, canvas.columns), canvas.uniform(0.8, 2.4)
        low, high = top + canvas.drop(x) + 2, 84.0 if kind in (TREE, BUSH) else 90.0
        if low > high:
            continue
        end = canvas.uniform(max(low, 16 * size), high)
        support = {TREE: canvas.uniform(13, 25), STATUE: canvas.uniform(9, 15)}.get(kind, 0.0)
        standing.append((end + size * support, end, x, size, kind))
    for base, end, x, size, kind in sorted(standing):
        draw = _draw_plant if kind in (TREE, BUSH) else _draw_figure
        draw(canvas, x, end, base, size, kind)


def _draw_plant(canvas: Canvas, x: float, end: float, base: float, size: float, label: int) -> None:
    """A ball of leaves that ends at row `end`, with a trunk from there down to `base` if lower."""
    radius = size * canvas.uniform(8, 14)
    canvas.shadow(x, base, 0.8 * radius)
    if base > end:
        thick = size * canvas.uniform(1.6, 2.6)
        colour = canvas.between((90, 60, 40), (130, 90, 60))
        canvas.box(x - thick, end - radius, x + thick, base, colour, TRUNK)
    y = end - 0.85 * radius
    colour = canvas.between((40, 95, 45), (85, 135, 60))
    canvas.ellipse(x, y, 0.85 * radius, 0.75 * radius, colour, label)
    turn = canvas.uniform(0, 1)
    for step in range(7):
        angle = 2 * np.pi * (step + turn) / 7
        across, down = 0.62 * float(np.cos(angle)), 0.55 * float(np.sin(angle))
        lit = max(0.0, 0.3 - 0.25 * down - 0.2 * canvas.light * across)
        shade = mix(mix(colour, (20, 45, 30), 0.4), (150, 185, 90), 0.8 * lit)
        tuft = canvas.uniform(0.32, 0.42) * radius
        canvas.ellipse(x + across * radius, y + down * radius, tuft, tuft, shade, label)


def _draw_figure(
    canvas: Canvas, x: float, end: float, base: float, size: float, label: int
) -> None:
    """A figure with its feet at row `end`, on a pedestal from there down to `base` if lower."""
    size *= canvas.uniform(22, 34)
    canvas.shadow(x, base, 0.32 * size)
    if base > end:
        half = canvas.uniform(0.28, 0.38) * size
        stone = canvas.between((150, 150, 145), (205, 200, 190))
        darker = mix(stone, (90, 90, 95), 0.4)
        canvas.box(x - half, end, x + half, base, stone, PEDESTAL)
        canvas.box(x - half - 1.2, end, x + half + 1.2, end + 2, darker, PEDESTAL)
        canvas.box(x - half - 1.2, base - 1.8, x + half + 1.2, base, darker, PEDESTAL)
    skin = canvas.between((150, 105, 80), (225, 180, 150))
    coat = canvas.between((150, 40, 60), (70, 60, 140))
    legs = canvas.between((40, 40, 55), (85, 75, 80))
    wide = canvas.uniform(0.15, 0.2) * size
    stride = canvas.uniform(0.07, 0.14) * size
    shoulder, hip, thick = end - 0.78 * size, end - 0.42 * size, 0.07 * size
    for side in (-1, 1):
        _limb(canvas, (x + side * 0.07 * size, hip), (x + side * stride, end), thick, legs, label)
    sleeve = mix(coat, (30, 30, 40), 0.3)
    for side in (-1, 1):
        hand = (x + side * (wide + canvas.uniform(0.0, 0.12) * size), hip - canvas.uniform(-2, 3))
        _limb(canvas, (x + side * 0.9 * wide, shoulder), hand, 0.8 * thick, sleeve, label)
    torso = [(x - wide, shoulder), (x - 0.6 * wide, shoulder - 0.04 * size)]
    torso += [(x + 0.6 * wide, shoulder - 0.04 * size), (x + wide, shoulder)]
    torso += [(x + 0.8 * wide, hip + 1), (x - 0.8 * wide, hip + 1)]
    canvas.polygon(np.array(torso), coat, label)
    head = 0.1 * size
    canvas.ellipse(x, end - 0.9 * size, head, 1.15 * head, skin, label)


def _limb(
    canvas: Canvas,
    start: tuple[float, float],
    stop: tuple[float, float],
    thick: float,
    colour: Colour,
    label: int,
) -> None:
    """A leg or an arm: a bar between two points, `thick` to each side."""
    bar = [(start[0] - thick, start[1]), (start[0] + thick, start[1])]
    bar += [(stop[0] + thick, stop[1]), (stop[0] - thick, stop[1])]
    canvas.polygon(np.array(bar), colour, label)
