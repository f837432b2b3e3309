"""Multi-head attention through scaled_dot_product_attention (flash kernels where the device has them).

B batch, N queries, M keys, E width, h heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from syncflow.models.layers import Linear, RMSNorm, Start
from syncflow.models.positions import Rotation, rotate


@dataclass
class KeyValue:
    """Keys and values of a sequence that is attended to many times."""

    key: Tensor  # (B, h, M, d)
    value: Tensor  # (B, h, M, d)


class SelfAttention(nn.Module):
    """Attention within a sequence, with optional RMS-norm of queries and keys and rotary positions."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, last: Start = "xavier") -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm: nn.Module = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = Linear(width, width, start=last)

    def forward(self, x: Tensor, rotation: Rotation | None = None, key_mask: Tensor | None = None) -> Tensor:
        """x (B, N, E); key_mask (B, N) bool, true where a token may be attended to."""
        b, n, e = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, e // self.heads)
        # Unbound before they are transposed, so that their gradients go back into one buffer by one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, h, N, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(b, n, e))


class CrossAttention(nn.Module):
    """Attention from a sequence of width E to another of width `context`."""

    def __init__(self, width: int, heads: int, context: int | None = None, *, last: Start = "xavier") -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = Linear(width, width)
        self.kv_linear = Linear(context or width, 2 * width)
        self.proj = Linear(width, width, start=last)

    def key_value(self, context: Tensor, rotation: Rotation | None = None) -> KeyValue:
        """(B, M, E_context) -> keys (turned by `rotation`) and values."""
        b, m, _ = context.shape
        kv = self.kv_linear(context).view(b, m, 2, self.heads, -1)
        key, value = (part.transpose(1, 2) for part in kv.unbind(2))  # (B, h, M, d)
        return KeyValue(key if rotation is None else rotate(key, rotation), value)

    def forward(
        self,
        x: Tensor,
        context: Tensor | KeyValue,
        key_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        key_rotation: Rotation | None = None,
    ) -> Tensor:
        """x (n·B, N, E), context (B, M, E_context) or its keys and values, key_mask (B, M) bool.

        Consecutive n examples of x share one context: their queries are attended together, so that keys and
        values are neither computed nor stored n times.
        """
        kv = context if isinstance(context, KeyValue) else self.key_value(context, key_rotation)
        nb, length, e = x.shape
        b = kv.key.shape[0]
        q = self.q_linear(x).view(nb, length, self.heads, e // self.heads).transpose(1, 2)  # (nB, h, N, d)
        if rotation is not None:
            q = rotate(q, rotation)
        if nb != b:
            q = q.unflatten(0, (b, nb // b)).transpose(1, 2).flatten(2, 3)  # (B, h, nN, d)
        mask, value = None, kv.value
        if key_mask is not None:
            # Softmax over nothing is undefined: where there is nothing to attend to, nothing is what is seen.
            present = key_mask.any(dim=1)[:, None]
            mask = (key_mask | ~present)[:, None, None, :]
            value = value * present[:, :, None, None].to(value.dtype)
        out = F.scaled_dot_product_attention(q, kv.key, value, attn_mask=mask)
        if nb != b:
            out = out.unflatten(2, (nb // b, length)).transpose(1, 2).flatten(0, 1)  # (nB, h, N, d)
        return self.proj(out.transpose(1, 2).reshape(nb, length, e))
