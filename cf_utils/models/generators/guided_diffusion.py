"""Published diffusion models: state dicts of openai/guided-diffusion in diffusers' UNet2DModel.

Source: Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021. The weights file
does not contain all flags of its model. With a wrong number of heads, or a wrong order of queries,
keys and values, the weights load without an error but give wrong outputs. Copy the script's flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.models.generators.diffusion import DDPM
from cf_utils.models.generators.guided_names import Flags, Ours, pair_names
from cf_utils.models.weights import mismatches

PUBLISHED = {  # the flags of the scripts beside the published weights
    "celeba": Flags(  # DiME's, which ACE uses, too
        128,
        num_heads=4,
        diffusion_steps=500,
        resblock_updown=True,
        learn_sigma=True,
        attention_resolutions=(32, 16, 8),
    ),
    "celebahq": Flags(
        256,
        num_head_channels=64,
        diffusion_steps=500,
        resblock_updown=True,
        learn_sigma=True,
        attention_resolutions=(32, 16, 8),
    ),
    "bdd": Flags(
        256,
        channel_mult=(1, 2, 3, 4),
        num_head_channels=64,
        size=(256, 512),
        resblock_updown=True,
        learn_sigma=True,
    ),
    "imagenet": Flags(  # 256 px, unconditional
        256,
        num_channels=256,
        num_head_channels=64,
        resblock_updown=True,
        learn_sigma=True,
        attention_resolutions=(32, 16, 8),
    ),
}


def load(path: str | Path, flags: Flags | str, device: torch.device | str = "cpu") -> DDPM:
    """Load the published model in `path` (.pt or .safetensors) as a `DDPM` in eval mode.

    `flags`: those of its script, or a name in `PUBLISHED`. Nothing in the file is run. Raises
    FileNotFoundError. Raises ValueError that lists the names and shapes that do not fit.
    """
    if isinstance(flags, str):
        if flags not in PUBLISHED:
            raise ValueError(f"flags: got {flags!r}, expected Flags or one of {tuple(PUBLISHED)}")
        flags = PUBLISHED[flags]
    if flags.class_cond:
        raise ValueError(
            "flags: got a class-conditional model, which is no prior of images alone; expected "
            "class_cond=False"
        )
    try:
        unet = convert(files.read_published(path), flags)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    size = flags.size or (flags.image_size, flags.image_size)
    return DDPM(unet, size, flags.diffusion_steps).eval().to(device)


def convert(state: dict[str, Tensor], flags: Flags) -> nn.Module:
    """Return diffusers' UNet2DModel with the weights of a guided-diffusion state dict.

    Half-precision weights become float32. Raises ValueError unless all weights of the file are used
    and all weights of the network are filled.
    """
    with torch.device("meta"):
        unet = build_unet(flags)
    own = unet.state_dict()
    pairs = list(pair_names(flags))
    shapes = {theirs: published_shape(theirs, ours, own) for theirs, ours in pairs}
    expected = {theirs: torch.empty(shape, device="meta") for theirs, shape in shapes.items()}
    if wrong := mismatches(state, expected):
        listed = "; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else "")
        raise ValueError(
            f"no guided-diffusion model of these flags, {len(wrong)} names do not fit: {listed} "
            f"({flags})"
        )
    renamed: dict[str, Tensor] = {}
    for theirs, ours in pairs:
        value = state[theirs]
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        if isinstance(ours, str):  # attention's 1 x 1 convolutions become linear maps
            renamed[ours] = value.reshape(own[ours].shape)
        else:
            heads = flags.heads(value.shape[0] // 3, theirs)
            renamed |= zip(ours, _split(value, heads, flags), strict=True)
    unet.load_state_dict(renamed, assign=True)
    return unet.eval()


def build_unet(flags: Flags) -> nn.Module:
    """Build the untrained UNet2DModel of these flags."""
    from diffusers import UNet2DModel  # imported here: it takes seconds
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    down, up, resample = "DownBlock2D", "UpBlock2D", "conv"
    if flags.resblock_updown:
        down, up, resample = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D", "resnet"
    unet: Any = UNet2DModel(
        sample_size=flags.size or flags.image_size,
        in_channels=3,
        out_channels=6 if flags.learn_sigma else 3,
        block_out_channels=flags.widths,
        layers_per_block=flags.num_res_blocks,
        time_embedding_dim=4 * flags.num_channels,
        down_block_types=["AttnDownBlock2D" if a else down for a in flags.attends],
        up_block_types=["AttnUpBlock2D" if a else up for a in reversed(flags.attends)],
        downsample_type=resample,
        upsample_type=resample,
        attention_head_dim=1,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift" if flags.use_scale_shift_norm else "default",
        num_class_embeds=1000 if flags.class_cond else None,
    )
    if flags.widths[0] != flags.num_channels:  # 512 px: half width, but not in the time embedding
        unet.time_proj = Timesteps(flags.num_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding = TimestepEmbedding(flags.num_channels, 4 * flags.num_channels)
    for name, module in unet.named_modules():  # diffusers has one head width for all layers
        if hasattr(module, "to_q"):
            module.heads = module.sliceable_head_dim = flags.heads(module.query_dim, name)
            module.scale = (module.query_dim // module.heads) ** -0.5
    return unet


def published_shape(theirs: str, ours: Ours, own: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the shape of a published tensor from those of our network, `own`.

    The published joint tensor of query, key and value has three times the rows. Published attention
    uses 1-d convolutions where ours uses linear maps.
    """
    first = own[ours if isinstance(ours, str) else ours[0]].shape
    rows = first[0] * (1 if isinstance(ours, str) else 3)
    kernel = (1,) if theirs.endswith(("qkv.weight", "proj_out.weight")) else ()
    return (rows, *first[1:], *kernel)


def _split(qkv: Tensor, heads: int, flags: Flags) -> tuple[Tensor, ...]:
    """Split (3 C, ...) into query, key and value, each (C, C) or (C,), in our order of heads.

    The rows are ordered by head (q, k, v of head 0, then of head 1, ...). With the new attention
    order they hold all q, all k, all v.
    """
    width = qkv.shape[0] // 3
    if flags.use_new_attention_order:
        parts = qkv.reshape(3, width, -1)
    else:
        by_head = qkv.reshape(heads, 3, width // heads, -1)
        parts = by_head.transpose(0, 1).reshape(3, width, -1)
    return tuple(part.reshape(width, *qkv.shape[1:2]) for part in parts)
