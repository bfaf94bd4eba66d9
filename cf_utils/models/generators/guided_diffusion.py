"""Published diffusion models: openai/guided-diffusion state dicts (ACE's, DiME's, ImageNet's) in diffusers' UNet2DModel.

Architecture: Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021; `Flags` have the names and defaults of
their scripts, so the flags that a model was trained with can be copied. What one has to know to bring the weights over:
* blocks are numbered through in the published names (input_blocks.0 is the first convolution, then `num_res_blocks` blocks and a
  downsampling a resolution), nested by resolution in diffusers;
* queries, keys and values are one convolution; its rows are ordered head by head (q, k, v of head 0, then of head 1, ...), or
  with `use_new_attention_order` all q, all k, all v: the file does not say which;
* the number of heads is the same at every width with `num_heads`, or grows with it under `num_head_channels`: nor this;
* attention in the middle is normalised; a resolution attends where image_size / resolution is a downsampling factor that the
  network reaches (BDD's flags name 16 and 8 of 256, which its four resolutions never reach: only the middle attends).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.models.generators.diffusion import DDPM
from cf_utils.models.weights import mismatches

MULTIPLES = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}  # by image_size


@dataclass(frozen=True)
class Flags:
    """The flags of guided-diffusion's scripts that shape the network or the chain."""

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = ()  # empty: by image_size
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    num_head_channels: int = -1  # -1: num_heads heads at every width
    num_heads_upsample: int = -1  # -1: as num_heads
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    class_cond: bool = False
    diffusion_steps: int = 1000
    size: tuple[int, int] | None = (
        None  # not a flag: (height, width) where the images are not square
    )

    @property
    def multiples(self) -> tuple[float, ...]:
        if not self.channel_mult and self.image_size not in MULTIPLES:
            raise ValueError(
                f"image_size: got {self.image_size}, expected one of {tuple(MULTIPLES)} or a channel_mult"
            )
        return tuple(self.channel_mult) or MULTIPLES[self.image_size]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(m * self.num_channels) for m in self.multiples)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each resolution, from the finest, has attention."""
        factors = {self.image_size // r for r in self.attention_resolutions}
        return tuple(2**level in factors for level in range(len(self.widths)))


_SHARED = {"resblock_updown": True, "learn_sigma": True, "attention_resolutions": (32, 16, 8)}
PUBLISHED = {  # as the scripts beside the published weights have them
    "celeba": Flags(128, num_heads=4, diffusion_steps=500, **_SHARED),  # DiME's and ACE's
    "celebahq": Flags(256, num_head_channels=64, diffusion_steps=500, **_SHARED),
    "bdd": Flags(
        256,
        channel_mult=(1, 2, 3, 4),
        num_head_channels=64,
        size=(256, 512),
        resblock_updown=True,
        learn_sigma=True,
    ),
    "imagenet": Flags(256, num_channels=256, num_head_channels=64, **_SHARED),
}  # 256 px, unconditional


def load(path: str | Path, flags: Flags | str, device: torch.device | str = "cpu") -> DDPM:
    """The published model in `path` (.pt or .safetensors) as a `DDPM` in eval mode; flags, or a name in `PUBLISHED`.

    Raises FileNotFoundError, or ValueError that lists the names and shapes that do not fit. Nothing in the file is run.
    """
    if isinstance(flags, str):
        if flags not in PUBLISHED:
            raise ValueError(f"flags: got {flags!r}, expected Flags or one of {tuple(PUBLISHED)}")
        flags = PUBLISHED[flags]
    if flags.class_cond:
        raise ValueError(
            "flags: a class-conditional model is no prior of images alone; expected class_cond=False"
        )
    try:
        unet = converted(files.read_published(path), flags)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    size = flags.size or (flags.image_size, flags.image_size)
    return DDPM(unet, size, flags.diffusion_steps).eval().to(device)


def converted(state: dict[str, Tensor], flags: Flags) -> nn.Module:
    """UNet2DModel with the weights of a guided-diffusion state dict (half ones as float32): all used, and all of ours filled."""
    with torch.device("meta"):
        unet = network(flags)
    own, renamed = unet.state_dict(), {}
    expected = {theirs: _shape(theirs, ours, own) for theirs, ours in names(flags)}
    if wrong := mismatches(
        state, {k: torch.empty(s, device="meta") for k, s in expected.items()}
    ):
        raise ValueError(
            f"no guided-diffusion model of these flags, {len(wrong)} names do not fit: "
            + "; ".join(wrong[:8])
            + ("; ..." if len(wrong) > 8 else "")
            + f" ({flags})"
        )
    for theirs, ours in names(flags):
        value = (
            state[theirs].float()
            if state[theirs].dtype in (torch.float16, torch.bfloat16)
            else state[theirs]
        )
        if isinstance(ours, str):
            renamed[ours] = value.reshape(
                own[ours].shape
            )  # attention's 1 x 1 convolutions become linear maps
        else:
            renamed |= zip(
                ours, _split(value, _heads(flags, value.shape[0] // 3, theirs), flags), strict=True
            )
    unet.load_state_dict(renamed, assign=True)
    return unet.eval()


def network(flags: Flags) -> nn.Module:
    """The empty UNet2DModel of these flags."""
    from diffusers import UNet2DModel  # here: it takes seconds to import
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    widths, norm = flags.widths, "scale_shift" if flags.use_scale_shift_norm else "default"
    plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if flags.resblock_updown
        else ("DownBlock2D", "UpBlock2D")
    )
    way = "resnet" if flags.resblock_updown else "conv"
    unet = UNet2DModel(
        sample_size=flags.size or flags.image_size,
        in_channels=3,
        out_channels=6 if flags.learn_sigma else 3,
        block_out_channels=widths,
        layers_per_block=flags.num_res_blocks,
        time_embedding_dim=4 * flags.num_channels,
        down_block_types=["AttnDownBlock2D" if a else plain[0] for a in flags.attends],
        up_block_types=["AttnUpBlock2D" if a else plain[1] for a in reversed(flags.attends)],
        downsample_type=way,
        upsample_type=way,
        attention_head_dim=1,
        attn_norm_num_groups=32,
        resnet_time_scale_shift=norm,
        num_class_embeds=1000 if flags.class_cond else None,
    )
    if (
        widths[0] != flags.num_channels
    ):  # the 512 px models begin at half width, their time embedding does not
        unet.time_proj = Timesteps(flags.num_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding = TimestepEmbedding(flags.num_channels, 4 * flags.num_channels)
    for (
        name,
        module,
    ) in unet.named_modules():  # diffusers has one head width for all; set what the flags say
        if hasattr(module, "to_q"):
            module.heads = module.sliceable_head_dim = _heads(flags, module.query_dim, name)
            module.scale = (module.query_dim // module.heads) ** -0.5
    return unet


def names(flags: Flags) -> Iterator[tuple[str, str | tuple[str, str, str]]]:
    """(published name, ours) of every tensor; the joint query, key, value of an attention has three of ours."""
    yield from _pair("time_embed.0", "time_embedding.linear_1")
    yield from _pair("time_embed.2", "time_embedding.linear_2")
    if flags.class_cond:
        yield "label_emb.weight", "class_embedding.weight"
    yield from _pair("input_blocks.0.0", "conv_in")
    last, n, width = len(flags.widths) - 1, 1, flags.widths[0]
    for level, out in enumerate(flags.widths):
        for i in range(flags.num_res_blocks):
            yield from _resnet(
                f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{i}", width != out
            )
            if flags.attends[level]:
                yield from _attention(f"input_blocks.{n}.1", f"down_blocks.{level}.attentions.{i}")
            n, width = n + 1, out
        if level < last:
            there = f"down_blocks.{level}.downsamplers.0"
            yield from (
                _resnet(f"input_blocks.{n}.0", there, False)
                if flags.resblock_updown
                else _pair(f"input_blocks.{n}.0.op", f"{there}.conv")
            )
            n += 1
    yield from _resnet("middle_block.0", "mid_block.resnets.0", False)
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.2", "mid_block.resnets.1", False)
    n = 0
    for block, level in enumerate(range(last, -1, -1)):
        for i in range(flags.num_res_blocks + 1):
            yield from _resnet(
                f"output_blocks.{n}.0", f"up_blocks.{block}.resnets.{i}", True
            )  # joined with a skip: wider
            if flags.attends[level]:
                yield from _attention(f"output_blocks.{n}.1", f"up_blocks.{block}.attentions.{i}")
            if level and i == flags.num_res_blocks:
                here, there = (
                    f"output_blocks.{n}.{1 + flags.attends[level]}",
                    f"up_blocks.{block}.upsamplers.0",
                )
                yield from (
                    _resnet(here, there, False)
                    if flags.resblock_updown
                    else _pair(f"{here}.conv", f"{there}.conv")
                )
            n += 1
    yield from _pair("out.0", "conv_norm_out")
    yield from _pair("out.2", "conv_out")


def _pair(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{theirs}.{p}", f"{ours}.{p}") for p in ("weight", "bias"))


def _resnet(theirs: str, ours: str, shortcut: bool) -> Iterator[tuple[str, str]]:
    for a, b in (
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        *([("skip_connection", "conv_shortcut")] if shortcut else []),
    ):
        yield from _pair(f"{theirs}.{a}", f"{ours}.{b}")


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str | tuple[str, str, str]]]:
    yield from _pair(f"{theirs}.norm", f"{ours}.group_norm")
    for p in ("weight", "bias"):
        yield f"{theirs}.qkv.{p}", tuple(f"{ours}.to_{x}.{p}" for x in "qkv")
    yield from _pair(f"{theirs}.proj_out", f"{ours}.to_out.0")


def _shape(
    theirs: str, ours: str | tuple[str, str, str], own: dict[str, Tensor]
) -> tuple[int, ...]:
    """The published tensor's shape: three times the rows for q, k and v together; attention's maps are convolutions over 1-D."""
    first = own[ours if isinstance(ours, str) else ours[0]].shape
    rows = first[0] * (1 if isinstance(ours, str) else 3)
    tail = (1,) if theirs.endswith(("qkv.weight", "proj_out.weight")) else ()
    return (rows, *first[1:], *tail)


def _heads(flags: Flags, width: int, name: str) -> int:
    up = flags.num_heads_upsample if flags.num_heads_upsample != -1 else flags.num_heads
    of_level = up if name.startswith(("output_blocks", "up_blocks")) else flags.num_heads
    heads = of_level if flags.num_head_channels == -1 else width // flags.num_head_channels
    if (
        heads < 1
        or width % heads
        or (flags.num_head_channels != -1 and width % flags.num_head_channels)
    ):
        raise ValueError(
            f"num_heads, num_head_channels: got {flags.num_heads}, {flags.num_head_channels}, which do not divide "
            f"the width {width} of {name}"
        )
    return heads


def _split(qkv: Tensor, heads: int, flags: Flags) -> tuple[Tensor, ...]:
    """(3 C, ...) -> q, k, v, each (C, C) or (C,), head by head."""
    width = qkv.shape[0] // 3
    parts = (
        qkv.reshape(3, width, -1)
        if flags.use_new_attention_order
        else (qkv.reshape(heads, 3, width // heads, -1).transpose(0, 1).reshape(3, width, -1))
    )
    return tuple(p.reshape(width, *qkv.shape[1:2]) for p in parts)
