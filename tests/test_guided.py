"""Published diffusion models: the converted network against a second implementation with random weights under their names."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import save_file

from cf_utils.models.generators import guided_diffusion
from cf_utils.models.generators.diffusion import noise_of
from cf_utils.models.generators.guided_diffusion import PUBLISHED, Flags, converted
from tests.published_unet import PublishedUNet

FIELDS = [
    f.name
    for f in dataclasses.fields(Flags)
    if f.name not in ("diffusion_steps", "size", "channel_mult")
]


def reference(flags: Flags, seed=0) -> PublishedUNet:
    """All weights drawn anew, wide enough that every path shows: no zero convolution, no norm that is 1 and 0."""
    model = PublishedUNet(channel_mult=flags.multiples, **{f: getattr(flags, f) for f in FIELDS})
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.3 if p.ndim == 1 else 1.5 / math.sqrt(p[0].numel())
            p.copy_(
                spread * torch.randn(p.shape, generator=gen)
                + (1 if p.ndim == 1 and name.endswith("weight") else 0)
            )
    return model


CASES = {  # the published settings at a smaller width and size; the attention is at the same resolutions of the network
    "celeba": dataclasses.replace(PUBLISHED["celeba"], num_channels=32, num_heads=2),
    "celebahq": dataclasses.replace(PUBLISHED["celebahq"], num_channels=32, num_head_channels=16),
    "bdd": dataclasses.replace(PUBLISHED["bdd"], num_channels=32, num_head_channels=32),
    "imagenet": dataclasses.replace(
        PUBLISHED["imagenet"], num_channels=32, num_head_channels=32, num_res_blocks=1
    ),
    "imagenet 512": Flags(
        512,
        num_channels=64,
        num_res_blocks=1,
        num_head_channels=32,
        attention_resolutions=(32, 16, 8),
        resblock_updown=True,
        learn_sigma=True,
    ),
    "imagenet 64": Flags(
        64,
        num_channels=32,
        num_res_blocks=3,
        num_head_channels=16,
        attention_resolutions=(32, 16, 8),
        resblock_updown=True,
        learn_sigma=True,
        use_new_attention_order=True,
    ),
    "plain": Flags(
        64,
        num_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(64, 32),
        use_scale_shift_norm=False,
        num_heads=2,
        num_heads_upsample=4,
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in CASES),
        ("celeba", torch.float32),
        ("imagenet", torch.float32),
    ],
)
def test_outputs_equal_the_second_implementation(name, dtype):
    """Measured: 1.6e-5 in float32, 8e-14 in float64, at outputs of spread 0.8 to 1."""
    flags = CASES[name]
    theirs = reference(flags).to(dtype).eval()
    ours = converted(theirs.state_dict(), flags)
    side = 2 ** (len(flags.widths) - 1)
    shape = (2, 3, side, 2 * side if name == "bdd" else side)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    t = torch.tensor([0, 417])
    with torch.no_grad():
        expected, got = theirs(z, t), ours(z, t).sample
    assert (
        got.shape == expected.shape == (2, 6 if flags.learn_sigma else 3, *shape[2:])
        and got.dtype == dtype
    )
    assert expected.std() > 0.3 and (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(
    "wrong", [{"num_heads": 4}, {"use_new_attention_order": True}, {"num_head_channels": 16}]
)
def test_what_a_file_does_not_say_matters(wrong):
    """Other heads or another order of q, k and v give another picture without an error: the flags must be the model's."""
    flags = CASES["celeba"]
    theirs = reference(flags).double().eval()
    z, t = torch.randn(1, 3, 16, 16, dtype=torch.float64), torch.tensor([5])
    with torch.no_grad():
        got = converted(theirs.state_dict(), dataclasses.replace(flags, **wrong))(z, t).sample
        assert (got - theirs(z, t)).abs().max() > 0.01


def test_class_conditional_weights_come_over():
    flags = dataclasses.replace(CASES["plain"], class_cond=True)
    theirs = reference(flags).double().eval()
    z, t, y = (
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
        torch.tensor([5, 9]),
        torch.tensor([3, 999]),
    )
    with torch.no_grad():
        got = converted(theirs.state_dict(), flags)(z, t, class_labels=y).sample
        torch.testing.assert_close(got, theirs(z, t, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_complete_at_full_size(name):
    """On the meta device: every published name has its place, of the same number of weights; none is left on either side."""
    flags = PUBLISHED[name]
    with torch.device("meta"):
        theirs = PublishedUNet(
            channel_mult=flags.multiples, **{f: getattr(flags, f) for f in FIELDS}
        ).state_dict()
        ours = guided_diffusion.network(flags).state_dict()
    pairs = list(guided_diffusion.names(flags))
    assert sorted(a for a, _ in pairs) == sorted(theirs)
    assert sorted(b for _, bs in pairs for b in ([bs] if isinstance(bs, str) else bs)) == sorted(
        ours
    )
    for a, b in pairs:
        assert guided_diffusion._shape(a, b, ours) == tuple(theirs[a].shape), a
    total = sum(v.numel() for v in theirs.values())
    assert total == sum(v.numel() for v in ours.values())
    if name == "imagenet":
        assert total == 552_814_086  # the size of the published file: 552.8 million


def test_load_gives_a_chain_that_filters(tmp_path):
    flags = dataclasses.replace(
        CASES["celeba"],
        image_size=64,
        channel_mult=(1, 2),
        attention_resolutions=(32,),
        num_res_blocks=1,
    )
    theirs = reference(flags)
    torch.save({k: v.half() for k, v in theirs.state_dict().items()}, tmp_path / "ddpm.pt")
    save_file(theirs.state_dict(), tmp_path / "ddpm.safetensors")
    model, half = (
        guided_diffusion.load(tmp_path / "ddpm.safetensors", flags),
        guided_diffusion.load(tmp_path / "ddpm.pt", flags),
    )
    assert (
        len(model.schedule) == 500
        and not model.training
        and next(half.parameters()).dtype == torch.float32
    )
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = noise_of(0, torch.arange(1), x, "f")
    with torch.no_grad():
        kept, nearly = (m.chain("50").filter(x, 2, noise) for m in (model, half))
    assert kept.shape == x.shape and kept.min() >= 0 and kept.max() <= 1
    assert 0 < (kept - nearly).abs().mean() < 0.02
    with pytest.raises(
        ValueError,
        match=r"z: got shape \(1, 3, 32, 32\), this diffusion model was trained on \(B, 3, 64, 64\)",
    ):
        model.chain("50").filter(x[..., :32, :32], 2, lambda k: torch.zeros(1, 3, 32, 32))
    for wrong, says in (
        ({"learn_sigma": False}, r"2 names do not fit: out.2.bias: file \(6,\), model \(3,\)"),
        ({"num_res_blocks": 2}, r"input_blocks.3.*; \.\.\. \(Flags\("),
        (
            {"attention_resolutions": (64,)},
            r"input_blocks.1.1.norm.bias: file absent, model \(32,\)",
        ),
        ({"class_cond": True}, "class-conditional"),
        ({"num_heads": 3}, "do not divide the width"),
    ):
        with pytest.raises(ValueError, match=says):
            guided_diffusion.load(tmp_path / "ddpm.pt", dataclasses.replace(flags, **wrong))
    torch.save(theirs.state_dict() | {"extra": torch.zeros(3)}, tmp_path / "ddpm.pt")
    with pytest.raises(
        ValueError, match=r"ddpm.pt: .*1 names do not fit: extra: file \(3,\), model absent"
    ):
        guided_diffusion.load(tmp_path / "ddpm.pt", flags)
    torch.save(
        {"epoch": 3, "model_state_dict": theirs.state_dict()}, tmp_path / "other.pt"
    )  # somebody's training state
    with pytest.raises(ValueError, match=r"other.pt: .*epoch: file a int, model absent"):
        guided_diffusion.load(tmp_path / "other.pt", flags)
    with pytest.raises(ValueError, match="flags: got 'faces', expected Flags or one of"):
        guided_diffusion.load(tmp_path / "ddpm.pt", "faces")
    with pytest.raises(ValueError, match="image_size: got 100"):
        guided_diffusion.load(tmp_path / "ddpm.pt", Flags(100))
