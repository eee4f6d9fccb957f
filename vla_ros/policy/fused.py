"""The trained model in the form that runs fastest on one core: the same function, fewer operators.

A chunk of this model is 0.45 GFLOP in nine hundred small operators. For batch one, before the graph is traced:
* attention is one operator (`com.microsoft.MultiHeadAttention`) instead of nine,
* activations of the transformers are two-dimensional, so a linear layer is one Gemm without reshapes,
* scale and shift of a head block depend on the denoising step alone; they become weights of its LayerNorm,
* the gate of the raw branch is folded into the weights that make its values; the three branches are added at once.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ros.policy.model import (
    Block,
    BridgeBlock,
    CameraStem,
    Head,
    Memory,
    Policy,
    merge_heads,
    split_heads,
)

GREY = 128  # what a picture is framed with; the model pads its centred pictures with zeros, which is 127.5


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention that the exporter writes as one node of ONNX Runtime's own operators."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: int) -> Tensor:
        k, v = (t if t.dim() == 4 else split_heads(t, heads) for t in (k, v))  # (1, H, M, E)
        return merge_heads(F.scaled_dot_product_attention(split_heads(q, heads), k, v, attn_mask=bias))  # (1, N, C)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, bias: Any, heads: int) -> Any:
        absent = g.op("prim::Constant")
        absent.setType(torch._C.NoneType.get())
        inputs = (q, k, v) if bias is None else (q, k, v, absent, absent, bias)
        return g.op("com.microsoft::MultiHeadAttention", *inputs, num_heads_i=heads).setType(q.type())


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """q (1, N, C); k, v (1, M, C) or (1, H, M, E); bias (1, 1, N, M) is added to the scores -> (1, N, C)."""
    return _Attention.apply(q, k, v, bias, heads)  # type: ignore[no-any-return, no-untyped-call]


class FusedBlock(nn.Module):
    """A `Block` for batch one."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads = block.heads
        self.norm_attention, self.qkv, self.out = block.norm_attention, block.qkv, block.out
        self.norm_mlp, self.mlp = block.norm_mlp, block.mlp

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.squeeze(0)  # (N, C)
        q, k, v = self.qkv(self.norm_attention(rows))[None].chunk(3, dim=-1)  # 3 x (1, N, C)
        if bias is not None:
            bias = bias.expand(1, 1, rows.shape[0], -1)  # (1, 1, N, N)
        rows = rows + self.out(attention(q, k, v, bias, self.heads).squeeze(0))
        return (rows + self.mlp(self.norm_mlp(rows)))[None]  # (1, N, C)


class FusedBridgeBlock(nn.Module):
    """A `BridgeBlock` for batch one and one draw."""

    def __init__(self, block: BridgeBlock) -> None:
        super().__init__()
        self.heads = block.heads
        self.qkv, self.out, self.mlp, self.modulation = block.qkv, block.out, block.mlp, block.modulation
        self.norm_memory, self.kv_near, self.kv_raw = block.norm_memory, block.kv_near, block.kv_raw
        width = block.out.in_features
        with torch.no_grad():
            self.kv_raw.weight[width:] *= torch.tanh(block.gate)
            self.kv_raw.bias[width:] *= torch.tanh(block.gate)

    def read(self, layer: Tensor, raw_tokens: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """As BridgeBlock.read: every step reads these, so the heads are split here, once."""
        x = self.norm_memory(layer.squeeze(0))  # (N + 1 + Q, C)
        near = self.kv_near(x[raw_tokens:])[None].chunk(2, dim=-1)
        raw = self.kv_raw(x[:raw_tokens])[None].chunk(2, dim=-1)
        split = [split_heads(t, self.heads) for t in (*near, *raw)]
        return (split[0], split[1]), (split[2], split[3])

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        near: tuple[Tensor, Tensor],
        raw: tuple[Tensor, Tensor],
        hidden: Tensor,
    ) -> Tensor:
        """x (R, C), time (1, C), hidden (1, 1, R, N) -> (R, C)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time).squeeze(0).chunk(6)  # 6 x (C,)
        width = x.shape[-1:]
        q, k, v = self.qkv(F.layer_norm(x, width, 1 + scale1, shift1))[None].chunk(3, dim=-1)
        own, from_near = attention(q, k, v, None, self.heads), attention(q, *near, None, self.heads)
        y = own + from_near + attention(q, *raw, hidden, self.heads)  # (1, R, C)
        x = x + (1 + gate1) * self.out(y.squeeze(0))
        return x + (1 + gate2) * self.mlp(F.layer_norm(x, width, 1 + scale2, shift2))


class FusedHead(nn.Module):
    """A `Head` for batch one and one draw."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.enter, self.row, self.clean, self.time = head.enter, head.row, head.clean, head.time
        self.norm, self.leave, self.frequency = head.norm, head.leave, head.frequency
        self.blocks = nn.ModuleList(FusedBridgeBlock(block) for block in head.blocks)

    def forward(self, x: Tensor, tau: Tensor, memory: Memory, prefix: Tensor | None = None) -> Tensor:
        """As Head.forward: x (1, 1, R, A), tau (1, 1), prefix (1, 1, R, 1) -> (1, 1, R, A)."""
        angle = tau[0, :, None] * self.frequency  # (1, 32)
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))  # (1, C)
        row = self.row.squeeze(0).squeeze(0)  # (R, C)
        if prefix is not None:
            row = row + prefix.squeeze(0).squeeze(0).to(x.dtype) * self.clean
        z = self.enter(x.squeeze(0).squeeze(0)) + row
        hidden = memory.hidden.expand(1, 1, z.shape[0], -1)  # (1, 1, R, N)
        for block, near, raw in zip(self.blocks, memory.near, memory.raw, strict=True):
            z = block(z, time, near, raw, hidden)
        return self.leave(self.norm(z))[None, None]


class FusedStem(CameraStem):
    """A `CameraStem` for batch one. Its first convolution reads the picture's bytes, with scale and centre in its
    weights: so the quantized graph neither converts nor rounds them."""

    def see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, P, P, 3) uint8 -> as CameraStem.see, but the coarse map is not yet added to the fine one."""
        edge = self.stem1[0].kernel_size[0] // 2
        framed = F.pad(image, (0, 0, edge, edge, edge, edge), value=GREY).permute(0, 3, 1, 2).float()
        x = self.stem2(self.stem1(framed))  # (1, s0, P/4, P/4)
        fine = self.fine(F.relu(x + self.place(self.coordinates)))  # (1, s2, P/4, P/4)
        return fine, self.coarse(fine)

    def heat(self, asked: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        """The answers of both maps are added, not the maps: there are fewer of them."""
        side = coarse.shape[-1]
        answers = (asked @ coarse.flatten(2)).view(1, -1, side, side)  # (1, T, P/8, P/8)
        return asked @ fine.flatten(2) + F.interpolate(answers, scale_factor=2.0, mode="nearest").flatten(2)


class FusedPolicy(Policy):
    """Hands the pictures on as they come: (1, K, P, P, 3) uint8."""

    def observe(self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None) -> Memory:
        return self.understand(images, ids, state, picture)


def _take_bytes(first: nn.Conv2d) -> nn.Conv2d:
    """A convolution of a picture in -1..1 -> the same of its bytes, which the caller has framed."""
    out, colours, high, wide = first.weight.shape
    taken = nn.Conv2d(colours, out, (high, wide), stride=2)
    taken.weight = nn.Parameter(first.weight / 127.5)
    taken.bias = nn.Parameter(-first.weight.sum((1, 2, 3)))
    return taken


def fuse(model: Policy) -> Policy:
    """A copy of the model that computes the same for a batch of one, in fewer operators. The original is untouched.
    Only a frame of two pixels around the pictures differs, by half a grey level."""
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    fused.__class__ = FusedPolicy
    for stem in fused.backbone.cameras:
        stem.__class__ = FusedStem
        stem.stem1[0] = _take_bytes(stem.stem1[0])
    fused.head = FusedHead(fused.head)  # type: ignore[assignment]
    backbone = fused.backbone
    backbone.blocks = nn.ModuleList(FusedBlock(block) for block in backbone.blocks)
    backbone.text.block = FusedBlock(backbone.text.block)  # type: ignore[assignment]
    return fused.requires_grad_(False)
