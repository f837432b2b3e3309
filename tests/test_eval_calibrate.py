"""Known damage and what the metrics say of it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from syncflow.errors import UserError
from syncflow.eval import damage
from syncflow.eval.calibrate import main
from syncflow.eval.damage import DAMAGES, Stream, undamaged
from syncflow.eval.response import monotone, sensitivity, smallest_seen

RNG = np.random.default_rng(0)
CLIP = Stream(RNG.integers(0, 255, (16, 12, 10, 3)).astype(np.uint8), Fraction(8), RNG.normal(0, 0.1, 16000), 8000)
OTHER = Stream(CLIP.frames, CLIP.fps, RNG.normal(0, 0.1, 16000), 8000)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_keeps_shapes_and_touches_one_stream(name: str) -> None:
    do, amounts, _ = DAMAGES[name]
    for amount in amounts:
        one = do(CLIP, amount, OTHER, 0)
        assert one.frames.shape == CLIP.frames.shape
        assert one.waveform.shape == CLIP.waveform.shape
        assert (one.frames is CLIP.frames) or (one.waveform is CLIP.waveform)
    if name != "noise":  # whose least amount is a little noise
        none = do(CLIP, amounts[undamaged(name)], OTHER, 0)
        np.testing.assert_allclose(none.waveform, CLIP.waveform, atol=1e-6)
        np.testing.assert_array_equal(none.frames, CLIP.frames)


def test_damage_is_what_it_says() -> None:
    late = damage.shift(CLIP, 100, OTHER, 0).waveform
    np.testing.assert_allclose(late[800:], CLIP.waveform[:-800], atol=1e-6)
    assert not late[:800].any()
    early = damage.shift(CLIP, -100, OTHER, 0).waveform
    np.testing.assert_allclose(early[:-800], CLIP.waveform[800:], atol=1e-6)
    noisy = damage.noise(CLIP, 20, OTHER, 0).waveform - CLIP.waveform
    assert 10 * np.log10(np.mean(CLIP.waveform**2) / np.mean(noisy**2)) == pytest.approx(20, abs=0.2)
    np.testing.assert_allclose(damage.swapped(CLIP, 1.0, OTHER, 0).waveform, OTHER.waveform, atol=1e-6)
    frozen = damage.frozen(CLIP, 0.5, OTHER, 0).frames
    assert (frozen[8:] == frozen[7]).all()
    dropped = damage.dropped(CLIP, 0.5, OTHER, 0).frames
    assert all((frame == CLIP.frames[: k + 1]).all(axis=(1, 2, 3)).any() for k, frame in enumerate(dropped))
    tone = Stream(CLIP.frames, CLIP.fps, np.sin(np.arange(16000) * 2 * np.pi * 3000 / 8000), 8000)
    assert np.abs(damage.low_pass(tone, 1000, OTHER, 0).waveform[2000:-2000]).max() < 0.01


def test_smallest_amount_that_is_seen() -> None:
    amounts = (0, 1, 2, 4)
    noise = RNG.normal(0, 0.3, (4, 20))
    rows = [list(noise[k] + change) for k, change in enumerate((0, 0, 1, 3))]
    assert smallest_seen(amounts, rows, 0) == 2
    assert smallest_seen(amounts, [list(noise[0])] * 4, 0) is None
    assert monotone(amounts, [5, 6, 7, 9], 0) == pytest.approx(1)
    assert monotone(amounts, [5, 5, 5, 5], 0) is None
    assert sensitivity([[0.0, 2.0], [1.0, 3.0], [3.0, 5.0]], 0) == pytest.approx(3)
    assert sensitivity([[1.0, 1.0], [2.0, 2.0]], 0) is None


def test_every_metric_answers_a_shift_as_it_should(impacts_dir: Path, shared: Path, tmp_path: Path) -> None:
    argv = [str(impacts_dir), "-o", str(tmp_path), "--damages", "shift,quieter,frozen", "--limit", "6"]
    assert main([*argv, "--workers", "1", "--weights", str(shared / "weights" / "mn04")]) == 0
    text = (tmp_path / "calibration.json").read_text()
    assert "NaN" not in text
    found = json.loads(text)
    assert found["network"].startswith("efficientat-mn04:")
    shift = found["damages"]["shift"]
    curves = shift["metrics"]
    for amount, point in zip(shift["amounts"], curves["onset_offset"]["points"], strict=True):
        if abs(amount) <= 400:
            assert point[0] == pytest.approx(amount, abs=10)
    assert curves["onset_offset"]["smallest"] == 20
    assert curves["onset_f1"]["smallest"] in (80, 120)
    assert curves["motion"]["smallest"] is None
    quieter = found["damages"]["quieter"]
    loudness = [
        point[0] - quieter["metrics"]["loudness"]["points"][0][0] for point in quieter["metrics"]["loudness"]["points"]
    ]
    np.testing.assert_allclose(loudness[:3], [0, -6, -12], atol=0.3)
    for metric in ("fad_efficientat", "kl_efficientat"):
        points = quieter["metrics"][metric]["points"]
        assert points[0][0] == pytest.approx(0, abs=1e-6)
        assert points[-1][0] > points[1][0] > 0
    page = (tmp_path / "calibration.html").read_text()
    assert "onset offset" in page
    assert "sees 20" in page
    assert "does not see it" in page


def test_mistakes_are_one_line(impacts_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no damage 'shifted'"):
        main([str(impacts_dir), "-o", str(tmp_path), "--damages", "shifted"])
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "none")])
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.mp4").touch()
    with pytest.raises(UserError, match="at least 2"):
        main([str(tmp_path / "one")])
