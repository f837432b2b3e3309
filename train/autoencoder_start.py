"""Where training starts: not at noise, but at the best linear code of the data (pictures), or quiet and at unit scale
(sound).

From its usual random start a small AutoencoderKL needs thousands of steps to get as far as principal components of
8 × 8 pixels are at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_CARRIER = 3.0
_OPERATING_POINT = 2.0


@torch.no_grad()
def start_as_components(net: Any, folded: Tensor) -> None:
    """Make an untrained AutoencoderKL of one level code the leading principal components of its input.

    Residual and attention branches start at zero. What is left is convolution, group norm, SiLU, convolution, twice;
    both are made linear: constants of ±3 in half of the channels outweigh the features in the norm's variance, and the
    norm's bias of 2 puts SiLU where its slope hardly changes. Latents come out centred with standard deviation 1.

    Args:
        folded: (n, C, h, w), what the network takes; C the same as it gives.
    """
    from diffusers.models.resnet import ResnetBlock2D

    k = net.config.latent_channels
    values = folded.permute(0, 2, 3, 1).flatten(0, 2)  # (n·h·w, C)
    mean = values.mean(0)
    directions, variances, _ = torch.linalg.svd(torch.cov((values - mean).T))
    directions, stds = directions[:, :k], variances[:k].sqrt().clamp(min=1e-3)

    for part in (net.encoder, net.decoder):
        for module in part.modules():
            if isinstance(module, ResnetBlock2D):
                _zero(module.conv2)
        for attention in part.mid_block.attentions:
            _zero(attention.to_out[0])
    net.quant_conv.weight[:k] = torch.eye(2 * k)[:k, :, None, None]
    net.quant_conv.bias[:k] = 0
    net.post_quant_conv.weight.copy_(torch.eye(k)[:, :, None, None])
    _zero(net.post_quant_conv, bias_only=True)

    _linear(
        net.encoder, folded, directions.T / stds[:, None], -(mean @ directions) / stds, torch.eye(k), torch.zeros(k)
    )
    latents = net.encode(folded).latent_dist.mean
    _linear(net.decoder, latents, torch.eye(k), torch.zeros(k), directions * stds, mean)


def _linear(part: Any, inputs: Tensor, read: Tensor, read_bias: Tensor, write: Tensor, write_bias: Tensor) -> None:
    """Make encoder or decoder `part` compute write · (read · x + read_bias) + write_bias at each position.

    Args:
        read: (k, C_in); write: (C_out, k).
    """
    conv_in, norm, conv_out = part.conv_in, part.conv_norm_out, part.conv_out
    k, width, outputs = len(read), conv_in.out_channels, len(write)
    half = width // 2
    conv_in.weight[:k] = 0
    conv_in.weight[:k, :, 1, 1] = read
    conv_in.bias[:k] = read_bias
    conv_in.weight[half:] = 0
    conv_in.bias[half:] = _CARRIER * torch.tensor([1.0, -1.0]).repeat(half)[: width - half]

    groups = conv_in(inputs).unflatten(1, (norm.num_groups, -1))  # (n, groups, width / groups, h, w)
    std = groups.var(dim=(2, 3, 4)).mean(0).sqrt()
    centre = groups.mean(dim=(0, 2, 3, 4))
    group = torch.arange(k) // (width // norm.num_groups)
    norm.bias.fill_(_OPERATING_POINT)
    sigmoid = 1 / (1 + math.exp(-_OPERATING_POINT))
    gain = sigmoid * (1 + _OPERATING_POINT * (1 - sigmoid)) / std[group]  # of a feature through norm and SiLU
    offset = _OPERATING_POINT * sigmoid - gain * centre[group]
    conv_out.weight[:outputs] = 0
    conv_out.weight[:outputs, :k, 1, 1] = write / gain
    conv_out.bias[:outputs] = write_bias - write / gain @ offset


def _zero(layer: Any, bias_only: bool = False) -> None:
    if not bias_only:
        layer.weight.zero_()
    layer.bias.zero_()


@torch.no_grad()
def start_at_unit_scale(net: Any, waves: Tensor) -> None:
    """Bring an untrained AutoencoderOobleck's latents to mean 0 and standard deviation 1, per channel.

    Its residual branches start at zero: what is left, strided convolutions, is learned first and faster. Without
    either the decoder hums for hundreds of steps, whatever it is given.

    Args:
        waves: (n, channels, L), what the network takes.
    """
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckResidualUnit

    for module in net.modules():
        if isinstance(module, OobleckResidualUnit):
            torch.nn.init.zeros_(module.conv2.get_parameter("weight_g"))
            torch.nn.init.zeros_(module.conv2.get_parameter("bias"))
    k = net.config.decoder_input_channels
    layer = net.encoder.conv2  # weight-normed
    mean = net.encode(waves).latent_dist.mean  # (n, C, T_a)
    std = mean.std(dim=(0, 2)).clamp(min=1e-6)
    centre = mean.mean(dim=(0, 2))
    layer.weight_g[:k] /= std[:, None, None]
    layer.bias[:k] = (layer.bias[:k] - centre) / std
