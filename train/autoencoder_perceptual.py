"""How alike two pictures look to a network that was trained to name what is in them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncflow.config import Config
from syncflow.errors import UserError
from syncflow.models.resolve import check_identity, identity_hash, resolve
from syncflow.models.weights import mismatches, read_weights
from syncflow.samples import EncoderIdentity

TAKEN = (3, 8, 15, 22, 29)
"""Layers of VGG16 that are compared: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
LEAST_SIDE = 16
"""Pixels: the last layer taken has a sixteenth of the resolution."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualConfig(Config):
    """A VGG16 that judges pictures; without `path` there is none, and edges alone say what matters in a picture."""

    path: str = ""
    """Folder or hub repository of VGG16's weights in safetensors, named `features.*` as torchvision and
    timm/vgg16.tv_in1k have them."""
    sha256: str = ""
    """Identity hash that the weights must have; empty accepts any."""
    weight: float = 1.0
    """Weight of the distance."""


class PerceptualDistance(nn.Module):
    """Σ over layers of the mean over places of ‖a/‖a‖ − b/‖b‖‖², a and b the features of two pictures at a place.

    0 for equal pictures, at most 2 a layer (features after a ReLU are never opposite). All channels count alike; LPIPS
    weights them by human judgements. Gradients reach the first picture only.

    Source: Zhang et al. 2018, LPIPS, arXiv 1801.03924, equation 1 with w = 1; layers of Johnson et al. 2016.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Sequential) -> None:
        """`features` of torchvision's VGG16."""
        super().__init__()
        self.layers = features[: TAKEN[-1] + 1].requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, decoded: Tensor, target: Tensor) -> Tensor:
        """decoded, target (n, 3, H, W) in [-1, 1] -> ()."""
        with torch.no_grad():
            wanted = list(self._features(target))
        pairs = zip(self._features(decoded), wanted, strict=True)
        return torch.stack([(ours - theirs).square().sum(1).mean() for ours, theirs in pairs]).sum()

    def _features(self, pictures: Tensor) -> Iterator[Tensor]:
        """(n, 3, H, W) -> (n, C, h, w) of each layer taken, of unit length at each place."""
        x = ((pictures + 1) / 2 - self.mean) / self.std
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in TAKEN:
                yield F.normalize(x, dim=1)


def load_perceptual(config: PerceptualConfig) -> tuple[PerceptualDistance, EncoderIdentity]:
    """The distance with the weights that `config` names, and what they are.

    Raises:
        UserError: they cannot be found or read, are not VGG16's, or not those of `sha256`.
    """
    from torchvision.models import vgg16

    field = "video.perceptual.path"
    folder = resolve(config.path, field=field)
    identity = EncoderIdentity(
        kind="vgg16", path=config.path, sha256=identity_hash(folder, config_names=()), channels=512
    )
    check_identity(identity, config.sha256, field)
    state = {name: tensor.float() for name, tensor in read_weights(folder).items() if name.startswith("features.")}
    with torch.device("meta"):
        net = vgg16(weights=None).features
    wrong = mismatches({f"features.{name}": tensor for name, tensor in net.state_dict().items()}, state)
    if wrong:
        raise UserError(f"{field}: {folder} does not hold VGG16: {wrong[0]}")
    if any(not tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"{field}: {folder} holds NaN or infinity; download it again")
    net.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()}, assign=True)
    return PerceptualDistance(net), identity
