"""What `scenes` are drawn on: shapes in an image and its label map, then light and texture."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepcrf_ext.libraries import cv2

Colour = tuple[int, int, int]


_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


class Canvas:
    """An image and its label map, drawn together; lengths are in 1/96 of the height ("units").

    texture: int32 [K, 2], how strongly the coarse and the fine texture show on each class, in 1/256
    of their full range.
    """

    def __init__(
        self, random: np.random.Generator, height: int, width: int, texture: np.ndarray
    ) -> None:
        self.random = random
        self.height = height
        self.width = width
        self.texture = texture
        self.unit = height / 96
        self.columns = width / self.unit  # the width in units; the height is 96
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels = np.zeros((height, width), np.uint8)
        self.light = 1 if random.random() < 0.5 else -1  # light from the left, or from the right
        self.tilt = self.uniform(-40, 40)  # the horizon is this much lower on the right than ahead

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def drop(self, x: Any) -> Any:
        """How much lower at `x`, a number or an array, the horizon is than in the middle."""
        return self.tilt * (2 * x / self.columns - 1)

    def between(self, one: Colour, other: Colour) -> Colour:
        """A random colour on the line between two colours."""
        share = self.random.random()
        return mix(one, other, share)

    def polygon(self, points: np.ndarray, colour: Colour, label: int | None) -> None:
        """Fill a polygon, float [P, 2] of (x, y) in units; label None draws in the image only."""
        fixed = np.rint(points * (self.unit * 16)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, shift=4)
        if label is not None:
            cv2.fillPoly(self.labels, [fixed], label, cv2.LINE_8, shift=4)

    def ellipse(
        self, x: float, y: float, across: float, down: float, colour: Colour, label: int | None
    ) -> None:
        """Fill an ellipse with the given half axes; label None leaves the label map as it is."""
        self.polygon(_CIRCLE * (across, down) + (x, y), colour, label)

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
        colour = mix((red, green, blue), (20, 25, 40), 0.35)
        self.ellipse(x - self.light * 0.4 * across, y, across, 0.22 * across + 0.6, colour, None)

    def shaded(self) -> np.ndarray:
        """The image with textures, uneven light, a colour cast and noise."""
        shape = (self.height, self.width)
        coarse = self.random.integers(0, 256, (12, 7), np.uint8)
        coarse = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
        coarse = cv2.blur(coarse, (7, 3))
        fine = self.random.integers(0, 256, ((shape[0] + 1) // 2, (shape[1] + 1) // 2), np.uint8)
        fine = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
        weights = self.texture[self.labels]
        texture = weights[..., 0] * (coarse.astype(np.int32) - 128)
        texture += weights[..., 1] * (fine.astype(np.int32) - 128)
        pixels = self.image.astype(np.int32)
        pixels += (texture >> 8)[..., None]

        brightness = self.uniform(0.78, 1.15)
        slope = self.uniform(-0.15, 0.15)
        cast = np.array([self.uniform(0.95, 1.05) for _ in range(3)])
        across = 1 + slope * np.linspace(-1, 1, self.width)
        gain = np.rint(256 * brightness * across[:, None] * cast).astype(np.int32)  # [W, 3]
        noise = self.random.integers(0, 256, (2, *shape, 3), np.uint8).astype(np.int32)
        strength = int(self.uniform(4, 16))
        pixels = (pixels * gain + (noise[0] - noise[1]) * strength) >> 8
        return np.clip(pixels, 0, 255).astype(np.uint8)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """The colour at a share of the way from one to the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
