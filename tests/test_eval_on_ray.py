"""Clips over a real Ray cluster: the same numbers, resumable, and workers may die."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from syncflow.errors import UserError
from syncflow.eval.catalogue import FEATURES
from syncflow.eval.clips import ClipFile, Failure, find_clips
from syncflow.eval.feature_scores import Backbones
from syncflow.eval.measure import measure_cached
from syncflow.eval.scores import ClipScore, score_clip
from syncflow.eval.work import map_clips


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster of two workers for the module; a run that finds one uses it."""
    # Ray reads it once in a process, where other tests start clusters too.
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see this module
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def die_once(clip: ClipFile, folder: Path) -> str:
    """Ends its own process at the third clip, the first time it gets there."""
    fuse = folder / "burnt"
    if clip.name == "2" and not fuse.exists():
        fuse.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / clip.name).touch()
    return clip.name


def die_at_two(clip: ClipFile) -> str:
    if clip.name == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return clip.name


def test_a_worker_that_dies_costs_nothing(tmp_path: Path) -> None:
    clips = [ClipFile(str(k), tmp_path / f"{k}.mp4") for k in range(20)]
    names, failures = map_clips(die_once, clips, (tmp_path,), 2, "clips", "local")
    assert names == [clip.name for clip in clips]
    assert failures == []
    assert (tmp_path / "burnt").exists()


def test_a_clip_that_kills_its_worker_is_lost_alone(tmp_path: Path) -> None:
    clips = [ClipFile(str(k), tmp_path / f"{k}.mp4") for k in range(20)]
    names, failures = map_clips(die_at_two, clips, (), 2, "clips", "local")
    assert names == [None if k == 2 else str(k) for k in range(20)]
    (failure,) = failures
    assert isinstance(failure, Failure)
    assert (failure.clip, failure.reason) == ("2", "crash")


class Pictures(torch.nn.Module):
    """Called as I3D is: (1, 3, T, 224, 224) -> (1, 6)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv3d(3, 6, (2, 16, 16), stride=(2, 16, 16))

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True
    ) -> torch.Tensor:
        return self.layer(x / 255).abs().mean(dim=[2, 3, 4])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("weights")
    torch.jit.script(Pictures()).save(str(home / "i3d_torchscript.pt"))
    return home


def test_measures_and_features_are_those_of_one_process(impacts_dir: Path, weights: Path, tmp_path: Path) -> None:
    """In any order, by any number of workers; what one way has kept, the other goes on from."""
    clips = find_clips(impacts_dir).clips[:6]
    here, _ = map_clips(measure_cached, clips, (tmp_path / "here",), 1, "here")
    there, failures = map_clips(measure_cached, clips[::-1], (tmp_path / "there",), 2, "there", "local")
    assert failures == []
    assert there[::-1] == here
    scores = [score_clip(clip, m) for clip, m in zip(clips, here, strict=True) if m is not None]
    metric = FEATURES["fvd_i3d"]

    def features(cache: str, chosen: list[ClipScore], workers: int, ray: str) -> dict[str, np.ndarray]:
        backbones = Backbones(weights, tmp_path / cache, False, workers, ray)
        found, failures = backbones.features(metric, chosen, "test")
        assert failures == []
        return {name: arrays["embedding"] for name, arrays in found.items()}

    alone = features("alone", scores, 1, "")
    assert alone.keys() == {clip.name for clip in clips}
    for other in (
        features("ray", scores[::-1], 2, "local"),
        features("half", scores[:3], 1, "") | features("half", scores, 2, "local"),
        features("processes", scores, 2, ""),
    ):
        assert other.keys() == alone.keys()
        for name in alone:
            np.testing.assert_array_equal(other[name], alone[name])
    assert len(list((tmp_path / "half").iterdir())) == len(clips)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    import ray

    from syncflow.eval import on_ray

    ray.shutdown()
    with pytest.raises(UserError, match="no Ray cluster answers") as error:
        list(on_ray.outcomes(print, print, [ClipFile("a", tmp_path)], (), 1, "127.0.0.1:1"))
    assert "\n" not in str(error.value)
