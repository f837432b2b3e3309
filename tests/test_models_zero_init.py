"""DeepSpeed's zero.Init partitions each parameter as soon as its module is built; the start must survive that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import sys, torch, deepspeed
sys.path.insert(0, sys.argv[1])
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
deepspeed.init_distributed("gloo")
from tiny import TINY
from syncflow.models.d_dit import DualDiT
with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 1, "zero_optimization": {"stage": 3}}):
    torch.manual_seed(0)
    model = DualDiT(TINY)
assert all(hasattr(p, "ds_shape") for p in model.parameters()), "not partitioned"
torch.manual_seed(0)
plain = dict(DualDiT(TINY).named_parameters())
for name, parameter in model.named_parameters():
    with deepspeed.zero.GatheredParameters([parameter]):
        assert parameter.shape == plain[name].shape, name
        spread, wanted = parameter.float().std(), plain[name].std()
        assert torch.isfinite(parameter).all() and abs(spread - wanted) < 0.2 * wanted + 1e-3, (name, spread, wanted)
print("partitioned and started")
"""


@pytest.mark.slow
def test_zero_init_builds_and_starts_the_model(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    here = Path(__file__).resolve().parent
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(here), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        cwd=here.parent,
    )
    assert "partitioned and started" in run.stdout, run.stderr[-2000:]
