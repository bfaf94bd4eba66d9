"""Published diffusion models: the converted network against a second implementation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import save_file

from cf_utils.models.generators import guided_diffusion
from cf_utils.models.generators.diffusion import noise_of
from cf_utils.models.generators.guided_diffusion import PUBLISHED, Flags, convert
from cf_utils.models.generators.guided_names import pair_names
from tests.published_unet import PublishedUNet

NOT_OF_THE_UNET = ("diffusion_steps", "size", "channel_mult")
FIELDS = [f.name for f in dataclasses.fields(Flags) if f.name not in NOT_OF_THE_UNET]


def second_implementation(flags: Flags) -> PublishedUNet:
    return PublishedUNet(channel_mult=flags.multiples, **{f: getattr(flags, f) for f in FIELDS})


def random_reference(flags: Flags, seed=0) -> PublishedUNet:
    """A network with random weights in which every path matters; none is zero or the identity."""
    model, gen = second_implementation(flags), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.3 if p.ndim == 1 else 1.5 / math.sqrt(p[0].numel())
            shift = 1 if p.ndim == 1 and name.endswith("weight") else 0
            p.copy_(spread * torch.randn(p.shape, generator=gen) + shift)
    return model


CASES = {  # the published settings, narrower; attention at the same resolutions of the network
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


IN_DOUBLE = [(name, torch.float64) for name in CASES]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*IN_DOUBLE, ("celeba", torch.float32), ("imagenet", torch.float32)],
)
def test_outputs_equal_the_second_implementation(name, dtype):
    flags = CASES[name]
    theirs = random_reference(flags).to(dtype).eval()
    ours = convert(theirs.state_dict(), flags)
    side = 2 ** (len(flags.widths) - 1)
    shape = (2, 3, side, 2 * side if name == "bdd" else side)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    t = torch.tensor([0, 417])
    with torch.no_grad():
        expected, got = theirs(z, t), ours(z, t).sample
    assert got.shape == expected.shape == (2, 6 if flags.learn_sigma else 3, *shape[2:])
    assert got.dtype == dtype
    assert expected.std() > 0.3 and (expected[0] - expected[1]).abs().max() > 0.1
    bound = 1e-4 if dtype == torch.float32 else 1e-9  # measured 1.6e-5, 8e-14
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
    "wrong", [{"num_heads": 4}, {"use_new_attention_order": True}, {"num_head_channels": 16}]
)
def test_flags_that_a_file_does_not_say_change_the_output(wrong):
    """Another number of heads or another order of q, k, v gives other images without an error."""
    flags = CASES["celeba"]
    theirs = random_reference(flags).double().eval()
    z, t = torch.randn(1, 3, 16, 16, dtype=torch.float64), torch.tensor([5])
    with torch.no_grad():
        got = convert(theirs.state_dict(), dataclasses.replace(flags, **wrong))(z, t).sample
        assert (got - theirs(z, t)).abs().max() > 0.01


def test_class_conditional_weights_are_converted():
    flags = dataclasses.replace(CASES["plain"], class_cond=True)
    theirs = random_reference(flags).double().eval()
    z = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    t, y = torch.tensor([5, 9]), torch.tensor([3, 999])
    with torch.no_grad():
        got = convert(theirs.state_dict(), flags)(z, t, class_labels=y).sample
        torch.testing.assert_close(got, theirs(z, t, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_complete_at_full_size(name):
    """Names are paired without a rest on either side, and with equal shapes."""
    flags = PUBLISHED[name]
    with torch.device("meta"):
        theirs = second_implementation(flags).state_dict()
        ours = guided_diffusion.build_unet(flags).state_dict()
    pairs = list(pair_names(flags))
    assert sorted(a for a, _ in pairs) == sorted(theirs)
    paired = [b for _, names in pairs for b in ([names] if isinstance(names, str) else names)]
    assert sorted(paired) == sorted(ours)
    for a, b in pairs:
        assert guided_diffusion.published_shape(a, b, ours) == tuple(theirs[a].shape), a
    total = sum(v.numel() for v in theirs.values())
    assert total == sum(v.numel() for v in ours.values())
    if name == "imagenet":
        assert total == 552_814_086  # the size of the published file: 552.8 million


SMALL = dataclasses.replace(
    CASES["celeba"],
    image_size=64,
    channel_mult=(1, 2),
    attention_resolutions=(32,),
    num_res_blocks=1,
)


def test_a_loaded_model_filters_images(tmp_path):
    theirs = random_reference(SMALL)
    torch.save({k: v.half() for k, v in theirs.state_dict().items()}, tmp_path / "ddpm.pt")
    save_file(theirs.state_dict(), tmp_path / "ddpm.safetensors")
    model = guided_diffusion.load(tmp_path / "ddpm.safetensors", SMALL)
    half = guided_diffusion.load(tmp_path / "ddpm.pt", SMALL)
    assert len(model.schedule) == 500 and not model.training
    assert next(half.parameters()).dtype == torch.float32
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = noise_of(0, torch.arange(1), x, "f")
    with torch.no_grad():
        filtered, rounded = (m.chain("50").filter(x, 2, noise) for m in (model, half))
    assert filtered.shape == x.shape and filtered.min() >= 0 and filtered.max() <= 1
    assert 0 < (filtered - rounded).abs().mean() < 0.02
    other = r"z: got shape \(1, 3, 32, 32\), this .* model was trained on \(B, 3, 64, 64\)"
    with pytest.raises(ValueError, match=other):
        model.chain("50").filter(x[..., :32, :32], 2, lambda k: torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learn_sigma": False}, r"2 names do not fit: out.2.bias: file \(6,\), model \(3,\)"),
        ({"num_res_blocks": 2}, r"input_blocks.3.*; \.\.\. \(Flags\("),
        (
            {"attention_resolutions": (64,)},
            r"input_blocks.1.1.norm.bias: file absent, model \(32,\)",
        ),
        ({"class_cond": True}, "class-conditional"),
        ({"num_heads": 3}, "do not divide the width"),
    ],
)
def test_flags_that_do_not_fit_the_file_are_refused(tmp_path, wrong, message):
    torch.save(random_reference(SMALL).state_dict(), tmp_path / "ddpm.pt")
    with pytest.raises(ValueError, match=message):
        guided_diffusion.load(tmp_path / "ddpm.pt", dataclasses.replace(SMALL, **wrong))


def test_files_of_another_model_are_refused(tmp_path):
    state = random_reference(SMALL).state_dict()
    torch.save(state | {"extra": torch.zeros(3)}, tmp_path / "ddpm.pt")
    extra = r"ddpm.pt: .*1 names do not fit: extra: file \(3,\), model absent"
    with pytest.raises(ValueError, match=extra):
        guided_diffusion.load(tmp_path / "ddpm.pt", SMALL)
    torch.save({"epoch": 3, "model_state_dict": state}, tmp_path / "other.pt")  # training state
    with pytest.raises(ValueError, match=r"other.pt: .*epoch: file a int, model absent"):
        guided_diffusion.load(tmp_path / "other.pt", SMALL)
    with pytest.raises(ValueError, match="flags: got 'faces', expected Flags or one of"):
        guided_diffusion.load(tmp_path / "ddpm.pt", "faces")
    with pytest.raises(ValueError, match="image_size: got 100"):
        guided_diffusion.load(tmp_path / "ddpm.pt", Flags(100))
