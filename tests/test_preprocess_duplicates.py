"""Near-duplicates: copies are found however they were made, moments of one scene are not, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from syncflow.clock import Span
from syncflow.errors import UserError
from syncflow.media import ffmpeg_path, probe
from syncflow.models.autoencoders import AutoencoderSpec
from syncflow.preprocess.config import FiltersConfig, PreprocessConfig
from syncflow.preprocess.duplicates import alike, near_duplicates
from syncflow.preprocess.plan import ClipPlan, Source, Surveyed, Unit, parse_survey, survey_json
from syncflow.preprocess.run import preprocess
from syncflow.preprocess.signature import BYTES, PARTS, SAMPLE_RATE, picture_bits, signature, sound_bits
from syncflow.preprocess.worker import Outcome, Trouble, Worker
from syncflow.samples import open_dataset

ENCODED = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "30", "-c:a", "aac", "-b:a", "64k"]
COPIES = {
    "encoded.mp4": ENCODED,
    "half.mp4": ["-vf", "scale=trunc(iw/4)*2:trunc(ih/4)*2", *ENCODED],
    "cropped.mp4": ["-vf", "crop=trunc(iw*0.94/2)*2:trunc(ih*0.94/2)*2", *ENCODED],
    "slower.mkv": ["-r", "24", "-vf", "eq=brightness=0.04:contrast=1.05", "-af", "volume=0.6", *ENCODED],
}


def copy(video: Path, to: Path, how: Sequence[str]) -> Path:
    subprocess.run([ffmpeg_path(), "-nostdin", "-v", "error", "-i", str(video), *how, str(to)], check=True)
    return to


def bits_of(video: Path, start_s: int = 0) -> np.ndarray:
    return np.frombuffer(signature(probe(video), Span(Fraction(start_s), Fraction(start_s + 2))), np.uint8)


def test_copies_of_real_clips_are_alike_and_moments_of_one_scene_are_not(develop: Path, tmp_path: Path) -> None:
    for name in ("dog_beagle_bark", "cello", "chopping_cabbage"):
        first, later = bits_of(develop / f"{name}.mp4"), bits_of(develop / f"{name}.mp4", 2)
        copies = [bits_of(copy(develop / f"{name}.mp4", tmp_path / f"{name}-{n}", how)) for n, how in COPIES.items()]
        assert alike(first, np.stack(copies)).all(), name
        assert not alike(later, np.stack([first, *copies])).any(), name


def test_no_two_rendered_clips_are_alike(impacts_dir: Path) -> None:
    found = np.stack([bits_of(video) for video in sorted(impacts_dir.glob("**/*.mp4"))])
    assert len(found) == 12
    for k, one in enumerate(found):
        assert alike(one, found).tolist() == [k == other for other in range(12)]


@pytest.mark.slow
def test_recall_and_false_alarms_on_all_real_clips(develop: Path, tmp_path: Path) -> None:
    videos = sorted(develop.glob("*.mp4"))
    clips = [
        clip_of(bits_of(video, start_s), f"{video.stem}-{start_s}", video.stem)
        for video in videos
        for start_s in (0, 2, 4)
        if probe(video).duration_s >= start_s + 2
    ]
    assert len(clips) > 100
    assert near_duplicates(other_files(clips)) == {}
    for name, how in COPIES.items():
        copies = []
        for video in videos:
            again = copy(video, tmp_path / f"{video.stem}-{name}", ["-t", "2.2", *how])
            copies.append(clip_of(bits_of(again), f"copy-{video.stem}", again.stem))
        found = near_duplicates([*clips, *copies])
        assert all(kept == f"{repeat.removeprefix('copy-')}-0" for repeat, kept in found.items()), name
        assert len(found) >= 0.9 * len(videos), name


def other_files(clips: list[ClipPlan]) -> list[ClipPlan]:
    """The same clips as if each were a file of its own."""
    return [clip_of(np.frombuffer(clip.signature, np.uint8), clip.id, clip.id) for clip in clips]


def clip_of(bits: np.ndarray, id: str, file: str, start_s: int = 0) -> ClipPlan:
    span = Span(Fraction(start_s), Fraction(start_s + 2))
    return ClipPlan(id, Source(file, f"/{file}.mp4"), span, "64x64x32", bits.tobytes())


def random_bits(count: int, seed: int = 0) -> np.ndarray:
    """(count, S) with as many bits set as real clips have."""
    rng = np.random.default_rng(seed)
    shares = np.repeat([0.4, 0.15, 0.36], list(PARTS.values()))
    return np.packbits(rng.random((count, len(shares))) < shares, axis=1)


def blurred(bits: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """With so many of the set bits moved elsewhere."""
    rng = np.random.default_rng(1000 + seed)  # not the numbers that the bits were drawn by
    flat = np.unpackbits(bits, axis=-1)
    drop = (flat == 1) & (rng.random(flat.shape) < share)
    add = (flat == 0) & (rng.random(flat.shape) < share * flat.mean())
    return np.packbits(flat ^ drop ^ add, axis=-1)


def test_of_alike_clips_the_first_is_kept_whatever_lies_between() -> None:
    bits = random_bits(300)
    rows = [*bits, *blurred(bits[:50], 0.05), *blurred(bits[:50], 0.05, seed=1)]
    clips = [clip_of(row, f"c{k:03d}", f"f{k}") for k, row in enumerate(rows)]
    wanted = {f"c{300 + 50 * turn + k}": f"c{k:03d}" for turn in range(2) for k in range(50)}
    assert near_duplicates(clips) == wanted
    backwards = near_duplicates(clips[::-1])
    assert len(backwards) == 100
    assert all(kept >= "c350" for kept in backwards.values()), "the first of the plan is kept"
    assert not backwards.keys() & backwards.values(), "what is repeated is itself kept"


def test_the_fast_search_finds_nearly_all_that_comparing_all_finds_and_nothing_else() -> None:
    bits = random_bits(120, seed=3)
    rows = np.concatenate([bits, *(blurred(bits, share, seed=k) for k, share in enumerate((0.05, 0.15, 0.6)))])
    clips = [clip_of(row, f"c{k:03d}", f"f{k}") for k, row in enumerate(rows)]
    slow: dict[str, str] = {}
    kept: list[int] = []
    for k, row in enumerate(rows):
        match = [j for j in kept if alike(row, rows[j : j + 1])[0]]
        if match:
            slow[clips[k].id] = clips[match[0]].id
        else:
            kept.append(k)
    assert len(slow) == 240
    found = near_duplicates(clips)
    assert found.items() <= slow.items()
    assert len(found) >= 0.99 * len(slow)


def test_moments_of_one_file_are_never_duplicates_and_a_clip_without_signature_neither() -> None:
    row = random_bits(1)[0]
    moments = [clip_of(row, f"a-{start_s}", "a", start_s) for start_s in (0, 2)]
    assert near_duplicates(moments) == {}
    again = clip_of(row, "b-0", "b")
    assert near_duplicates([*moments, again]) == {"b-0": "a-0"}
    unknown = clip_of(np.zeros(0, np.uint8), "c-0", "c")
    assert near_duplicates([unknown, unknown]) == {}
    dark_and_silent = [clip_of(np.zeros(BYTES, np.uint8), f"{file}-0", file) for file in "de"]
    assert near_duplicates(dark_and_silent) == {}
    same_file_again = clip_of(row, "other-id-0", "a", 0)
    assert near_duplicates([*moments, same_file_again]) == {"other-id-0": "a-0"}


def test_many_copies_and_many_silent_dark_clips_do_not_take_forever() -> None:
    copies = np.repeat(random_bits(1), 3000, axis=0)
    dark = np.zeros((3000, BYTES), np.uint8)
    dark[:, : PARTS["still"] // 8] = random_bits(3000, seed=5)[:, : PARTS["still"] // 8]  # silent, still, all different
    clips = [clip_of(row, f"c{k:05d}", f"f{k}") for k, row in enumerate(np.concatenate([copies, dark]))]
    found = near_duplicates(clips)
    assert set(found.values()) == {"c00000"}
    assert len(found) == 2999


def test_bits_say_nothing_of_silence_stillness_and_loudness() -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, 32, 36, 3), dtype=np.uint8), 8, axis=0)
    looks, moves = picture_bits(still)
    assert looks.size == PARTS["still"]
    assert moves.size == PARTS["motion"]
    assert looks.any()
    assert not moves.any()
    assert not any(bits.any() for bits in picture_bits(np.full_like(still, 17)))
    noise = rng.normal(size=2 * SAMPLE_RATE).astype(np.float32) * 0.1
    assert sound_bits(noise).size == PARTS["sound"]
    assert 0.2 < sound_bits(noise).mean() < 0.6
    assert (sound_bits(noise) == sound_bits(0.2 * noise)).all()
    assert not sound_bits(0 * noise).any()


def test_signatures_pass_through_the_plan_on_disk() -> None:
    clip = clip_of(random_bits(1)[0], "a-0", "a")
    assert parse_survey(survey_json(Surveyed([clip]), "x")).clips == [clip]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreprocessConfig:
    from syncflow.models.autoencoders.nano import (
        NanoAudioConfig,
        NanoVideoConfig,
        new_nano_audio_autoencoder,
        new_nano_video_autoencoder,
    )

    folder = tmp_path_factory.mktemp("weights")
    new_nano_video_autoencoder(0, NanoVideoConfig(block_out_channels=(8, 8, 8, 8))).save_pretrained(folder / "video")
    new_nano_audio_autoencoder(0, NanoAudioConfig(decoder_channels=4)).save_pretrained(folder / "audio")
    return PreprocessConfig(
        video_autoencoder=AutoencoderSpec(kind="image", path=str(folder / "video")),
        audio_autoencoder=AutoencoderSpec(kind="oobleck", path=str(folder / "audio")),
        filters=FiltersConfig(duplicates=True),
        shard_clips=3,
    )


@pytest.fixture(scope="module")
def with_copies(impacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rendered clips, two of them again under names that come later."""
    folder = tmp_path_factory.mktemp("copies")
    videos = sorted(impacts_dir.glob("**/*.mp4"))[:5]
    for k, video in enumerate(videos):
        shutil.copy(video, folder / f"a{k}.mp4")
    copy(videos[1], folder / "b1.mp4", ENCODED)
    copy(videos[3], folder / "b3.mkv", COPIES["half.mp4"])
    return folder


def ids(folder: Path) -> list[str]:
    return [sample.record.id for sample in open_dataset(str(folder))]


def test_a_job_counts_its_duplicates_and_names_what_they_repeat(
    config: PreprocessConfig, with_copies: Path, tmp_path: Path
) -> None:
    summary = preprocess(config, with_copies, tmp_path / "out", pool="inline")
    assert (summary.card.read, summary.card.kept, summary.card.rejected) == (7, 5, {"near_duplicate": 2})
    rows = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["id"][-10:], row["detail"][-10:]) for row in rows] == [
        ("duplicates", "b1-0000000", "a1-0000000"),
        ("duplicates", "b3-0000000", "a3-0000000"),
    ]
    again = preprocess(config, with_copies, tmp_path / "out", pool="inline")
    assert again.already_done
    assert again.card == summary.card
    everything = config.model_copy(update={"filters": FiltersConfig()})
    with pytest.raises(UserError, match=r"filters\.duplicates: True, now False"):
        preprocess(everything, with_copies, tmp_path / "out", pool="inline")


def dies_at(key: str) -> type[Worker]:
    """A worker that ends at a unit, as a kill would: nothing of it is committed."""

    class Dies(Worker):
        def run(self, unit: Unit, fingerprint: str, attempt: str, trouble: Trouble) -> Outcome:
            if unit.key == key:
                raise KeyboardInterrupt
            return super().run(unit, fingerprint, attempt, trouble)

    return Dies


@pytest.mark.parametrize("last", ["survey-000001", "shard-64x64x32-000000", "shard-64x64x32-000001"])
def test_a_job_ended_anywhere_ends_with_the_same_data_set(
    config: PreprocessConfig, with_copies: Path, tmp_path: Path, last: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        preprocess(config, with_copies, tmp_path / "out", pool="inline", worker=dies_at(last))
    summary = preprocess(config, with_copies, tmp_path / "out", pool="inline")
    assert (summary.card.read, summary.card.kept) == (7, 5)
    assert [name[-10:] for name in ids(tmp_path / "out")] == [f"a{k}-0000000" for k in range(5)]
