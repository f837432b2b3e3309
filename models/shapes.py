"""What sizes, lengths and rates a model can be asked for, and why not beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from syncflow.clock import ticks_in
from syncflow.errors import UserError
from syncflow.models.checkpoints import ModelCard
from syncflow.models.positions import LONGEST_PERIOD_S

MAX_TOKENS = 400_000
"""Video tokens of a clip that are still tried."""
MAX_FPS = 240


@dataclass(frozen=True)
class Shape:
    """What is to be made, in pixels, frames and samples."""

    width: int
    height: int
    num_frames: int
    num_samples: int
    fps: Fraction


def choose_shape(
    card: ModelCard,
    size: tuple[int, int] | None,
    duration_s: float | Fraction | None,
    rate: Fraction,
    given_s: Fraction | None,
) -> Shape:
    """The shape asked for, completed from what the model was trained at and from a given video of `given_s` seconds.

    Raises:
        UserError: a rate or duration that the model's positions cannot tell.
    """
    width, height = size or (card.width, card.height)
    if not 0 < rate <= MAX_FPS:
        raise UserError(f"fps must be more than 0 and at most {MAX_FPS}, got {rate}")
    if duration_s is not None and not math.isfinite(duration_s):
        raise UserError(f"duration must be a number of seconds, got {duration_s}")
    longest = Fraction(LONGEST_PERIOD_S)
    if duration_s is not None:
        duration = Fraction(duration_s).limit_denominator(10**6)
        duration = duration if given_s is None else min(duration, given_s)
    else:
        duration = card.num_frames / card.fps if given_s is None else min(given_s, longest)
    if not 0 < duration <= longest:
        raise UserError(
            f"duration must be more than 0 and at most {LONGEST_PERIOD_S:g} s, the longest time that the model's "
            f"positions tell apart; got {float(duration):g} s"
        )
    if duration_s is not None and duration * rate < 1 and given_s is None:
        raise UserError(f"{float(duration):g} s is shorter than one frame at {rate} fps; ask for more")
    num_frames = ticks_in(duration, rate)
    return Shape(width, height, num_frames, ticks_in(num_frames / rate, Fraction(card.sample_rate)), rate)


def check_shape(shape: Shape, multiple: int, latent: tuple[int, ...], patch: tuple[int, int, int]) -> None:
    """
    Raises:
        UserError: sides that the autoencoder cannot code, or more tokens than can be attended to.
    """
    if min(shape.width, shape.height) < multiple or shape.width % multiple or shape.height % multiple:
        near = [max(1, round(side / multiple)) * multiple for side in (shape.width, shape.height)]
        raise UserError(
            f"size {shape.width}x{shape.height}: sides must be multiples of {multiple}, for example {near[0]}x{near[1]}"
        )
    _, t, h, w = latent
    tokens = t * -(-h // patch[1]) * -(-w // patch[2])
    if tokens > MAX_TOKENS:
        raise UserError(
            f"{shape.width}x{shape.height} and {shape.num_frames} frames make {tokens:,} video tokens, more than "
            f"{MAX_TOKENS:,}: make it smaller or shorter"
        )
