"""Names of guided-diffusion's tensors, and the names of the same tensors in diffusers' UNet2DModel.

The published names number all blocks consecutively: input_blocks.0 is the first convolution; then,
for each resolution, come `num_res_blocks` blocks and a downsampling. diffusers nests them by
resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MULTIPLES = {  # image_size -> width of each resolution, in units of num_channels
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
Ours = str | tuple[str, str, str]  # one tensor, or query, key and value of an attention
Pairs = Iterator[tuple[str, Ours]]


@dataclass(frozen=True)
class Flags:
    """Flags of guided-diffusion's scripts for the network and the chain, with their defaults."""

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
    size: tuple[int, int] | None = None  # ours: (height, width) of images that are not square

    @property
    def multiples(self) -> tuple[float, ...]:
        """Width of each resolution in units of num_channels, from the finest."""
        if not self.channel_mult and self.image_size not in MULTIPLES:
            raise ValueError(
                f"image_size: got {self.image_size}, expected one of {tuple(MULTIPLES)} or a "
                "channel_mult"
            )
        return tuple(self.channel_mult) or MULTIPLES[self.image_size]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, from the finest."""
        return tuple(int(m * self.num_channels) for m in self.multiples)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each resolution has attention, from the finest.

        An entry r of `attention_resolutions` means the downsampling factor image_size // r. Factors
        that the network does not reach have no effect, as with the flags of BDD.
        """
        factors = {self.image_size // r for r in self.attention_resolutions}
        return tuple(2**level in factors for level in range(len(self.widths)))

    def heads(self, width: int, name: str) -> int:
        """Return the number of attention heads of the layer `name`, which has `width` channels."""
        up = self.num_heads_upsample if self.num_heads_upsample != -1 else self.num_heads
        by_part = up if name.startswith(("output_blocks", "up_blocks")) else self.num_heads
        per_head = self.num_head_channels
        heads = by_part if per_head == -1 else width // per_head
        if heads < 1 or width % heads or (per_head != -1 and width % per_head):
            raise ValueError(
                f"num_heads, num_head_channels: got {self.num_heads}, {per_head}, which do not "
                f"divide the width {width} of {name}"
            )
        return heads


def pair_names(flags: Flags) -> Pairs:
    """Yield (published name, our name) per tensor; a joint query-key-value tensor has three."""
    yield from _pair("time_embed.0", "time_embedding.linear_1")
    yield from _pair("time_embed.2", "time_embedding.linear_2")
    if flags.class_cond:
        yield "label_emb.weight", "class_embedding.weight"
    yield from _pair("input_blocks.0.0", "conv_in")
    yield from _pair_down(flags)
    yield from _pair_resnet("middle_block.0", "mid_block.resnets.0", False)
    yield from _pair_attention("middle_block.1", "mid_block.attentions.0")
    yield from _pair_resnet("middle_block.2", "mid_block.resnets.1", False)
    yield from _pair_up(flags)
    yield from _pair("out.0", "conv_norm_out")
    yield from _pair("out.2", "conv_out")


def _pair_down(flags: Flags) -> Pairs:
    last, n, width = len(flags.widths) - 1, 1, flags.widths[0]
    for level, out in enumerate(flags.widths):
        block = f"down_blocks.{level}"
        for i in range(flags.num_res_blocks):
            yield from _pair_resnet(f"input_blocks.{n}.0", f"{block}.resnets.{i}", width != out)
            if flags.attends[level]:
                yield from _pair_attention(f"input_blocks.{n}.1", f"{block}.attentions.{i}")
            n, width = n + 1, out
        if level < last:
            ours = f"{block}.downsamplers.0"
            if flags.resblock_updown:
                yield from _pair_resnet(f"input_blocks.{n}.0", ours, False)
            else:
                yield from _pair(f"input_blocks.{n}.0.op", f"{ours}.conv")
            n += 1


def _pair_up(flags: Flags) -> Pairs:
    n = 0
    for block, level in enumerate(range(len(flags.widths) - 1, -1, -1)):
        for i in range(flags.num_res_blocks + 1):
            theirs, ours = f"output_blocks.{n}", f"up_blocks.{block}"
            # a skip connection is concatenated to the input, so the width always changes
            yield from _pair_resnet(f"{theirs}.0", f"{ours}.resnets.{i}", True)
            if flags.attends[level]:
                yield from _pair_attention(f"{theirs}.1", f"{ours}.attentions.{i}")
            if level and i == flags.num_res_blocks:
                theirs, ours = f"{theirs}.{1 + flags.attends[level]}", f"{ours}.upsamplers.0"
                if flags.resblock_updown:
                    yield from _pair_resnet(theirs, ours, False)
                else:
                    yield from _pair(f"{theirs}.conv", f"{ours}.conv")
            n += 1


def _pair(theirs: str, ours: str) -> Pairs:
    for part in ("weight", "bias"):
        yield f"{theirs}.{part}", f"{ours}.{part}"


def _pair_resnet(theirs: str, ours: str, shortcut: bool) -> Pairs:
    layers = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
    }
    if shortcut:
        layers["skip_connection"] = "conv_shortcut"
    for a, b in layers.items():
        yield from _pair(f"{theirs}.{a}", f"{ours}.{b}")


def _pair_attention(theirs: str, ours: str) -> Pairs:
    yield from _pair(f"{theirs}.norm", f"{ours}.group_norm")
    for part in ("weight", "bias"):
        query, key, value = (f"{ours}.to_{letter}.{part}" for letter in "qkv")
        yield f"{theirs}.qkv.{part}", (query, key, value)
    yield from _pair(f"{theirs}.proj_out", f"{ours}.to_out.0")
