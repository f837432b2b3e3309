"""Sound of an impact by modal synthesis: a struck body rings in a few decaying sinusoids.

Every voice is a function of the time since contact, evaluated at the sample times themselves, so that a
sound begins at its event to a fraction of a sample. Source: van den Doel and Pai, "The sounds of physical
shapes", 1998 (modal model); van den Doel, "Physically based models for liquid sounds", 2005 (bubbles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from syncflow.impacts.motion import Strike

_NOISE_HZ = 48_000
_SILENT = 1e-4


@dataclass(frozen=True)
class Voice:
    """How a material sounds: sum of gain_k · exp(-decay_k τ) · sin(2π f_k τ), and a burst of noise.

    A harder blow is louder and brighter: mode k is weighted by force^(1 + brightness·k).
    """

    frequencies_hz: tuple[float, ...]
    gains: tuple[float, ...]
    decays_hz: tuple[float, ...]
    noise_gain: float
    noise_decay_hz: float
    noise_smooth: float
    """0 leaves the noise white; towards 1 it grows dull."""
    brightness: float = 0.5
    glide: float = 0.0
    """How far the pitch lies from its final value at contact, as a share of it (drums fall, bubbles rise)."""
    glide_decay_hz: float = 20.0
    level: float = 0.5
    """Peak of the hardest blow, roughly."""


def struck(
    voice: Voice, strike: Strike, noise: np.ndarray, sample_rate: int, num_samples: int
) -> tuple[int, np.ndarray]:
    """First sample at or after contact, and the sound from there on.

    `noise` (n,) is white, at 48 kHz from the moment of contact.
    """
    slowest = min(voice.decays_hz, default=voice.noise_decay_hz)
    length_s = math.log(1 / _SILENT) / slowest
    first = max(0, math.ceil(strike.time_s * sample_rate))
    last = min(num_samples, math.ceil((strike.time_s + length_s) * sample_rate))
    if last <= first:
        return first, np.zeros(0)
    tau = np.arange(first, last) / sample_rate - strike.time_s  # (n,) seconds since contact
    # Integral of f(1 + glide·exp(-r τ)): the phase of a gliding sinusoid over 2π f.
    warped = tau + voice.glide * (1 - np.exp(-voice.glide_decay_hz * tau)) / voice.glide_decay_hz
    sound = np.zeros(len(tau))
    total = sum(voice.gains) or 1.0
    for k, (f, gain, decay) in enumerate(zip(voice.frequencies_hz, voice.gains, voice.decays_hz, strict=True)):
        if f * (1 + max(0.0, voice.glide)) < 0.45 * sample_rate:
            weight = gain / total * strike.force ** (1 + voice.brightness * k)
            sound += weight * np.exp(-decay * tau) * np.sin(2 * math.pi * f * warped)
    burst_length = min(len(tau), int(math.log(1 / _SILENT) / voice.noise_decay_hz * sample_rate) + 1)
    burst_tau = tau[:burst_length]
    burst = np.interp(burst_tau * _NOISE_HZ, np.arange(len(noise)), noise) * np.exp(-voice.noise_decay_hz * burst_tau)
    sound[:burst_length] += voice.noise_gain * strike.force**1.5 * burst
    return first, voice.level * sound


def synthesise(
    voice: Voice,
    strikes: Sequence[Strike],
    rng: np.random.Generator,
    sample_rate: int,
    num_samples: int,
    floor: float,
) -> np.ndarray:
    """(L,) float32: every strike at its own time, over a faint hiss of amplitude `floor`.

    All randomness is drawn in an order that no sample rate changes.
    """
    seeds = rng.integers(2**32, size=len(strikes) + 1)
    waveform = np.zeros(num_samples)
    for strike, seed in zip(strikes, seeds, strict=False):
        noise = np.random.default_rng(seed).standard_normal(_NOISE_HZ // 4)
        if voice.noise_smooth:
            width = 1 + int(voice.noise_smooth * 24)
            noise = np.convolve(noise, np.hanning(width + 2)[1:-1], mode="same")
            noise /= np.sqrt(np.mean(noise**2))
        first, sound = struck(voice, strike, noise, sample_rate, num_samples)
        waveform[first : first + len(sound)] += sound
    peak = np.abs(waveform).max(initial=0.0)
    if peak > 0.9:
        waveform *= 0.9 / peak
    waveform += floor * np.random.default_rng(seeds[-1]).standard_normal(num_samples)
    return waveform.astype(np.float32)


def wood(rng: np.random.Generator) -> Voice:
    base = math.exp(rng.uniform(math.log(190), math.log(420)))
    ratios = np.array([1, 2.57, 4.2, 6.1, 8.35]) * rng.uniform(0.97, 1.03, 5)
    decays = rng.uniform(28, 42) * (1 + 0.35 * np.arange(5))
    return Voice(
        tuple(base * ratios), (1, 0.7, 0.45, 0.3, 0.2), tuple(decays), 0.12, 180, 0.5, brightness=0.35, level=0.8
    )


def metal(rng: np.random.Generator) -> Voice:
    base = math.exp(rng.uniform(math.log(650), math.log(1500)))
    ratios = np.array([1, 1.483, 2.093, 2.561, 3.392, 4.081, 5.207]) * rng.uniform(0.98, 1.02, 7)
    decays = rng.uniform(4, 9) * (1 + 0.3 * np.arange(7))
    return Voice(
        tuple(base * ratios),
        (1, 0.85, 0.75, 0.6, 0.5, 0.4, 0.3),
        tuple(decays),
        0.15,
        260,
        0.0,
        brightness=0.25,
        level=0.75,
    )


def drum(rng: np.random.Generator) -> Voice:
    base = math.exp(rng.uniform(math.log(85), math.log(190)))
    ratios = np.array([1, 1.594, 2.136, 2.296, 2.653, 2.918, 3.156])  # modes of an ideal membrane
    decays = rng.uniform(9, 16) * (1 + 0.25 * np.arange(7))
    return Voice(
        tuple(base * ratios),
        (1, 0.55, 0.4, 0.3, 0.25, 0.2, 0.15),
        tuple(decays),
        0.14,
        float(rng.uniform(40, 120)),
        0.15,
        brightness=0.3,
        glide=0.2,
        glide_decay_hz=30,
        level=0.95,
    )


def water(rng: np.random.Generator) -> Voice:
    base = math.exp(rng.uniform(math.log(550), math.log(1300)))
    return Voice(
        (base, base * 1.37, base * 0.61),
        (1, 0.35, 0.3),
        (22, 34, 26),
        0.05,
        60,
        0.2,
        brightness=0.2,
        glide=-0.35,
        glide_decay_hz=14,
        level=0.7,
    )
