"""Anti-aliased drawing with signed distances, vectorised in numpy.

World coordinates: the shorter side of the picture is 1, the origin is its centre, y points down. A shape is a
function from coordinates to the distance to its border (negative inside) with a box that holds it, so the same
scene can be drawn at any size and each shape costs only the pixels it may touch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Colour = np.ndarray
"""(3,) or (h, w, 3) float32 in [0, 1]."""
Paint = Callable[[np.ndarray, np.ndarray], Colour]
"""A colour that varies: x (1, w), y (h, 1) -> (h, w, 3)."""
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Shape:
    distance: Distance
    """x (1, w), y (h, 1) -> (h, w)."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom."""


class Canvas:
    """A picture being painted: `image` (H, W, 3) float32."""

    def __init__(self, width: int, height: int) -> None:
        self.pixel = 1 / min(width, height)
        self.x = ((np.arange(width, dtype=np.float32) + 0.5) - width / 2) * np.float32(self.pixel)  # (W,)
        self.y = ((np.arange(height, dtype=np.float32) + 0.5) - height / 2) * np.float32(self.pixel)  # (H,)
        self.half_width, self.half_height = width * self.pixel / 2, height * self.pixel / 2
        self.image = np.zeros((height, width, 3), dtype=np.float32)

    def window(self, box: tuple[float, float, float, float], margin: float) -> tuple[slice, slice]:
        """Rows and columns of the pixels in `box`."""
        left, right = np.searchsorted(self.x, (box[0] - margin, box[2] + margin))
        top, bottom = np.searchsorted(self.y, (box[1] - margin, box[3] + margin))
        return slice(int(top), int(bottom)), slice(int(left), int(right))

    def paint(
        self,
        shape: Shape,
        colour: Colour | Paint,
        alpha: float = 1.0,
        blur: float = 0.0,
    ) -> None:
        """Blend `colour` over the picture inside `shape`; `blur` is the width of a soft border."""
        softness = max(self.pixel, blur)
        rows, columns = self.window(shape.box, softness)
        if alpha <= 0 or rows.start >= rows.stop or columns.start >= columns.stop:
            return
        x, y = self.x[None, columns], self.y[rows, None]
        cover = np.clip(0.5 - shape.distance(x, y) / np.float32(softness), 0, 1) * np.float32(alpha)  # (h, w)
        value = colour(x, y) if callable(colour) else colour
        part = self.image[rows, columns]
        part += cover[..., None] * (value - part)

    def to_uint8(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.round(np.clip(self.image, 0, 1) * 255).astype(np.uint8)


def colour(red: float, green: float, blue: float) -> Colour:
    return np.array([red, green, blue], dtype=np.float32)


def mix(a: Colour, b: Colour, amount: float | np.ndarray) -> Colour:
    """`a` at 0, `b` at 1."""
    weight = np.asarray(amount, dtype=np.float32)
    return a + (b - a) * (weight[..., None] if weight.ndim else weight)


def shade(base: Colour, amount: float) -> Colour:
    """Lighter for positive amounts, darker for negative ones."""
    return mix(base, colour(1, 1, 1) if amount > 0 else colour(0, 0, 0), abs(amount))


def ellipse(cx: float, cy: float, rx: float, ry: float) -> Shape:
    rx, ry = max(rx, 1e-4), max(ry, 1e-4)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = (x - cx) / rx, (y - cy) / ry
        scale = np.sqrt((u / rx) ** 2 + (v / ry) ** 2) + 1e-6
        length = np.sqrt(u * u + v * v)
        return np.where(length < 1e-3, -min(rx, ry), length * (length - 1) / scale)

    return Shape(distance, (cx - rx, cy - ry, cx + rx, cy + ry))


def rectangle(cx: float, cy: float, half_x: float, half_y: float, radius: float = 0.0, angle: float = 0.0) -> Shape:
    """A box with rounded corners, turned by `angle` radians about its centre."""
    cos, sin = math.cos(angle), math.sin(angle)
    reach_x = abs(cos) * half_x + abs(sin) * half_y
    reach_y = abs(sin) * half_x + abs(cos) * half_y

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u = np.abs(cos * (x - cx) + sin * (y - cy)) - (half_x - radius)
        v = np.abs(-sin * (x - cx) + cos * (y - cy)) - (half_y - radius)
        outside = np.sqrt(np.maximum(u, 0) ** 2 + np.maximum(v, 0) ** 2)
        return outside + np.minimum(np.maximum(u, v), 0) - radius

    return Shape(distance, (cx - reach_x, cy - reach_y, cx + reach_x, cy + reach_y))


def capsule(x0: float, y0: float, x1: float, y1: float, r0: float, r1: float | None = None) -> Shape:
    """A line with round ends, `r0` thick at its start and `r1` at its end."""
    end = r0 if r1 is None else r1
    dx, dy = x1 - x0, y1 - y0
    length2 = dx * dx + dy * dy + 1e-9

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / length2, 0, 1)
        return np.sqrt((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2) - (r0 + along * (end - r0))

    r = max(r0, end)
    return Shape(distance, (min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r))


def convex(points: Sequence[tuple[float, float]]) -> Shape:
    """A convex polygon, corners in clockwise order as seen."""
    edges = list(zip(points, [*points[1:], points[0]], strict=True))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sides = []
        for (ax, ay), (bx, by) in edges:
            nx, ny = by - ay, -(bx - ax)
            norm = math.hypot(nx, ny)
            sides.append(((x - ax) * nx + (y - ay) * ny) / norm)
        return np.maximum.reduce(np.broadcast_arrays(*sides))

    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return Shape(distance, (min(xs), min(ys), max(xs), max(ys)))


def ring(shape: Shape, width: float) -> Shape:
    """The border of `shape`, `width` wide."""
    left, top, right, bottom = shape.box
    box = (left - width, top - width, right + width, bottom + width)
    return Shape(lambda x, y: np.abs(shape.distance(x, y)) - width / 2, box)


def outside(canvas: Canvas, *, above: float | None = None, below: float | None = None) -> Shape:
    """All of the picture above (y < `above`) or below (y > `below`) a level."""
    w, h = canvas.half_width + 1, canvas.half_height + 1
    if above is not None:
        return Shape(lambda x, y: y - above + 0 * x, (-w, -h, w, above))
    assert below is not None
    return Shape(lambda x, y: below - y + 0 * x, (-w, below, w, h))
