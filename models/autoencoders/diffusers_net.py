"""Loading a network that diffusers saved, refusing what diffusers would let pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from syncflow.errors import UserError
from syncflow.models.resolve import quiet_loading


def load_net(classes: tuple[type[Any], ...], folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The network in `folder`, frozen, if it is of one of `classes`.

    diffusers reads any configuration into any class and leaves what it misses at random.

    Raises:
        UserError: another class of network, weights that are missing or of other shapes, or values that are no numbers.
    """
    names = {cls.__name__: cls for cls in classes}
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    if name not in names:
        raise UserError(f"{folder} holds {name or 'no diffusers model'}; wanted: {' or '.join(names)}")
    with quiet_loading():
        net, info = names[name].from_pretrained(
            folder, torch_dtype=dtype, low_cpu_mem_usage=False, output_loading_info=True
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"{folder}: {len(missing)} weights are missing, for example {missing[0]}; copy it again")
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{folder}: weight {key} is not finite; train or copy it again")
    return net.to(device).eval().requires_grad_(False)
