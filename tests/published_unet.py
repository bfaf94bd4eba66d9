"""Second implementation of the U-Net of "Diffusion Models Beat GANs" (Dhariwal & Nichol, 2021).

It is written from the paper and the names in the published files, without diffusers or the project,
and tests `cf_utils.models.generators.guided_diffusion`. Module names are those of the published
state dicts. Attention is a plain einsum. Timestep features are float32, as in the published code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def numbered(**parts):
    """Name modules by their places in a published Sequential; other places have no weights."""
    return nn.ModuleDict({k.lstrip("_"): v for k, v in parts.items()})


class Res(nn.Module):
    def __init__(self, into, out, emb, scale_shift, way=0):
        super().__init__()
        self.way, self.scale_shift = way, scale_shift
        self.in_layers = numbered(_0=nn.GroupNorm(32, into), _2=nn.Conv2d(into, out, 3, padding=1))
        self.emb_layers = numbered(_1=nn.Linear(emb, 2 * out if scale_shift else out))
        self.out_layers = numbered(_0=nn.GroupNorm(32, out), _3=nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def resize(self, x):
        if self.way > 0:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return F.avg_pool2d(x, 2) if self.way < 0 else x

    def forward(self, x, emb):
        h = self.in_layers["2"](self.resize(F.silu(self.in_layers["0"](x))))
        e = self.emb_layers["1"](F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, 1)
            h = self.out_layers["0"](h) * (1 + scale) + shift
        else:
            h = self.out_layers["0"](h + e)
        return self.skip_connection(self.resize(x)) + self.out_layers["3"](F.silu(h))


class Attention(nn.Module):
    def __init__(self, width, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x, emb):
        b, c, height, width = x.shape
        flat = x.view(b, c, -1)
        qkv, d = self.qkv(self.norm(flat)), c // self.heads
        if self.new_order:
            q, k, v = (p.reshape(b, self.heads, d, -1) for p in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(b, self.heads, 3 * d, -1).split(d, 2)
        weight = torch.einsum("bhdi,bhdj->bhij", q, k).div(math.sqrt(d)).softmax(-1)
        mixed = torch.einsum("bhij,bhdj->bhdi", weight, v).reshape(b, c, -1)
        return (flat + self.proj_out(mixed)).view(b, c, height, width)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, 2, 1)

    def forward(self, x, emb):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class PublishedUNet(nn.Module):
    def __init__(
        self,
        image_size,
        num_channels,
        channel_mult,
        attention_resolutions,
        num_res_blocks=2,
        num_heads=4,
        num_head_channels=-1,
        num_heads_upsample=-1,
        use_scale_shift_norm=True,
        resblock_updown=False,
        learn_sigma=False,
        use_new_attention_order=False,
        class_cond=False,
    ):
        super().__init__()
        self.width, emb = num_channels, 4 * num_channels
        widths = [int(m * num_channels) for m in channel_mult]
        factors = [image_size // r for r in attention_resolutions]

        def attention(width, heads):
            heads = heads if num_head_channels == -1 else width // num_head_channels
            return Attention(width, heads, use_new_attention_order)

        def res(into, out, way=0):
            return Res(into, out, emb, use_scale_shift_norm, way)

        self.time_embed = numbered(_0=nn.Linear(num_channels, emb), _2=nn.Linear(emb, emb))
        if class_cond:
            self.label_emb = nn.Embedding(1000, emb)
        ch, kept, factor = widths[0], [widths[0]], 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, ch, 3, padding=1)])])
        for level, out in enumerate(widths):
            for _ in range(num_res_blocks):
                layers = [res(ch, out), *([attention(out, num_heads)] if factor in factors else [])]
                self.input_blocks.append(nn.ModuleList(layers))
                ch = out
                kept.append(ch)
            if level + 1 < len(widths):
                down = res(ch, ch, -1) if resblock_updown else Down(ch)
                self.input_blocks.append(nn.ModuleList([down]))
                kept.append(ch)
                factor *= 2
        self.middle_block = nn.ModuleList([res(ch, ch), attention(ch, num_heads), res(ch, ch)])
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                layers = [res(ch + kept.pop(), out)]
                ch = out
                if factor in factors:
                    heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
                    layers.append(attention(ch, heads))
                if level and i == num_res_blocks:
                    layers.append(res(ch, ch, 1) if resblock_updown else Up(ch))
                    factor //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        last = nn.Conv2d(ch, 6 if learn_sigma else 3, 3, padding=1)
        self.out = numbered(_0=nn.GroupNorm(32, ch), _2=last)

    def forward(self, z, t, y=None):
        half = self.width // 2
        place = torch.arange(half, dtype=torch.float32)
        angle = t[:, None].float() * torch.exp(-math.log(10000) * place / half)
        emb = torch.cat([angle.cos(), angle.sin()], 1).to(z)
        emb = self.time_embed["2"](F.silu(self.time_embed["0"](emb)))
        if y is not None:
            emb = emb + self.label_emb(y)
        h, skips = self.input_blocks[0][0](z), []
        skips.append(h)
        for block in self.input_blocks[1:]:
            for layer in block:
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], 1)
            for layer in block:
                h = layer(h, emb)
        return self.out["2"](F.silu(self.out["0"](h)))
