"""Oracles learn the zero edits of every generator of their world, and measure a null for each."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from cf_utils import worlds
from cf_utils.models import checkpoints, oracles
from cf_utils.models.cards import Card
from cf_utils.models.checkpoints import Loaded
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.generators.vae import VAE
from cf_utils.models.oracle_columns import list_columns, true_readings
from cf_utils.models.weights import channels_last
from cf_utils.training.recipes import (
    calibration,
    factor_oracles,
    fine_tune_again,
    oracle_stages,
    renders,
    session,
    zero_edits,
)
from tests.stripes import LOW, SPAN, STRIPES, TOY, Perfect, Stripe

GAN = {"channels": 3, "size": 16, "widths": (4, 6), "blocks": 2, "critic": 4, "critic_blocks": 2}
WIDTHS = {"widths": (4, 4, 6, 6, 6), "latent": 2}
CLASSES = ("dark", "bright")
TINY = oracle_stages.Tuning(n_plain=48, n_each=32, n_prior=8, epochs=2, lr=1e-2)
CLASSIFIER = Stripe(gain=12.0)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give all parameters random values, so that each input and each bin has its own output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_gan(folder, name="stripes_gan", seed=0, classes=CLASSES, **build):
    arguments = GAN | build
    card = Card(
        architecture={"class": "ConditionalGAN", "arguments": arguments},
        settings={"classifier": "stripes_left_causal", "output": 1},
        extra={"classes": classes},
    )
    checkpoints.save(name, randomise(ConditionalGAN(**arguments), seed), card, folder)


def save_vae(folder, name="stripes_vae", seed=0, size=(16, 16)):
    arguments = {"size": size, "channels": 3, **WIDTHS}
    card = Card(architecture={"class": "VAE", "arguments": arguments})
    checkpoints.save(name, randomise(VAE(**arguments), seed), card, folder)


def save_oracle(folder, **card):
    torch.manual_seed(0)
    model = oracles.FactorOracle(Perfect.names, (16, 16), (6, 8), members=2).eval()
    arguments = {"names": model.names, "size": (16, 16), "widths": (6, 8), "members": 2}
    content = {
        "recipe": "cf train stripes_oracle --seed 0",
        "architecture": {"class": "FactorOracle", "arguments": arguments},
        "seed": 0,
        "data": {"name": "stripes", "split": "train (40 renders)"},
        "settings": {"n": 20, "second_stage": {"n": 40}, "batch_size": 16},
        "quality": {"test_n": 0},
        "training": {"seconds": 5.0, "steps": 7, "epochs": 3, "losses": [[[1.0]]]},
    }
    checkpoints.save("stripes_oracle", model, Card.from_json(content | card), folder)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped checkpoints of the toy world: a GAN, its classifier, and a VAE."""
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "run"))
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    monkeypatch.setattr(worlds, "get", lambda name: TOY)
    monkeypatch.setattr(calibration, "measure_adversarial", lambda *a: {})
    load = checkpoints.load

    def load_or_stripe(name, *args, **settings):
        if name == "stripes_left_causal":
            return Loaded(CLASSIFIER, Card())
        return load(name, *args, **settings)

    monkeypatch.setattr(checkpoints, "load", load_or_stripe)
    (tmp_path / "stripes_left_causal.safetensors").write_bytes(b"classifier")
    save_gan(tmp_path)
    save_vae(tmp_path)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Calibrate on few images, and train the third stage on few."""
    calibrate = functools.partial(calibration.calibrate, n=60, n_null=30)
    monkeypatch.setattr(calibration, "calibrate", calibrate)
    monkeypatch.setattr(factor_oracles, "calibrate", calibrate)
    describe = functools.partial(oracle_stages.describe_third_stage, tuning=TINY)
    monkeypatch.setattr(factor_oracles, "describe_third_stage", describe)


# zero edits


def test_the_zero_edit_of_a_gan_is_the_own_bin_by_its_classifier(shipped):
    factors = TOY.sample(40, seed=5)
    x = renders.render_bytes(factors).float() / 255
    p = torch.sigmoid(12.0 * (LOW + SPAN * factors["left"] - 0.5))
    own = (p * 10).long().clamp(max=9)
    gan = checkpoints.load("stripes_gan").model
    with torch.no_grad():
        expected = gan.decode(gan.encode(x), own) * 255
        next_bin = gan.decode(gan.encode(x), (own + 1) % 10) * 255
    found = zero_edits.render_zero_edits(factors, 0, "stripes_gan")
    assert found.dtype == torch.uint8 and len(own.unique()) >= 5
    near = (found - expected).abs().flatten(1).amax(1) <= 0.51
    far = (found - next_bin).abs().flatten(1).amax(1) > 2
    # an output at the edge of a bin may fall to either side, since x is rounded to bytes
    assert near.double().mean() >= 0.95 and far.double().mean() >= 0.95


def test_the_zero_edit_of_a_vae_decodes_the_mean_code(shipped):
    factors = TOY.sample(20, seed=5)
    x = renders.render_bytes(factors).float() / 255
    vae = checkpoints.load("stripes_vae").model
    with torch.no_grad():
        expected = vae.decode(vae.posterior(x).mean) * 255
    found = zero_edits.render_zero_edits(factors, 3, "stripes_vae")
    assert (found - expected).abs().max() <= 0.51
    assert torch.equal(found, zero_edits.render_zero_edits(factors, 4, "stripes_vae"))  # no noise
    assert expected.flatten(1).std(0).max() > 1  # reconstructions differ between images


def test_zero_edits_are_kept_until_the_gan_or_its_classifier_changes(shipped, monkeypatch):
    factors, passed = TOY.sample(6), []

    def load_zero_edit(name):
        passed.append(name)
        return lambda x: x

    monkeypatch.setattr(zero_edits, "load_zero_edit", load_zero_edit)
    for _ in range(2):
        zero_edits.render_zero_edits(factors, 0, "stripes_gan")
    assert len(passed) == 1
    (shipped / "stripes_left_causal.safetensors").write_bytes(b"another classifier")
    zero_edits.render_zero_edits(factors, 0, "stripes_gan")
    assert len(passed) == 2
    save_gan(shipped, seed=1)
    zero_edits.render_zero_edits(factors, 0, "stripes_gan")
    assert len(passed) == 3
    zero_edits.render_zero_edits(factors, 0, "stripes_vae")
    assert passed[3:] == ["stripes_vae"]


def test_the_generators_of_a_world_are_those_that_ship_at_its_size(shipped):
    assert zero_edits.list_generators(TOY) == ["stripes_gan", "stripes_vae"]
    save_gan(shipped, "stripes_gan_32", size=32)
    save_vae(shipped, "stripes_vae_32", size=(32, 32))
    save_vae(shipped, "other_vae")
    save_gan(shipped, "stripes_again_gan")
    (shipped / "stripes_ddpm.safetensors").write_bytes(b"prior")
    expected = ["stripes_ddpm", "stripes_again_gan", "stripes_gan", "stripes_vae"]
    assert zero_edits.list_generators(TOY) == expected
    (shipped / "stripes_vae.safetensors").unlink()
    assert zero_edits.list_generators(TOY) == expected[:3]


# null per generator


class Reads(nn.Module):
    """The perfect oracle as a module with the buffers of an ensemble."""

    names = Perfect.names

    def __init__(self):
        super().__init__()
        for name in ("slope", "centre", "sd", "null"):
            self.register_buffer(name, torch.ones(3))

    def read(self, x):
        return Perfect().read(x)


def shift_stripe(name, by):
    def edit(x):
        x = x.clone()
        x[..., STRIPES[name]] += by
        return x

    return edit


EDITS = {"stripes_gan": ("left", 0.06), "stripes_vae": ("right", -0.12)}


@pytest.fixture
def shifts(shipped, monkeypatch):
    """Zero edits that shift one stripe by a known amount: 0.1 and 0.2 of a factor's scale."""
    monkeypatch.setattr(zero_edits, "load_zero_edit", lambda name: shift_stripe(*EDITS[name]))
    return shipped


def test_a_card_holds_the_null_of_each_generator(shifts):
    model = Reads()
    found = calibration.calibrate(model, TOY, seed=0, n=60, n_null=30)
    rows = found["null_per_generator"]
    assert list(rows) == ["stripes_gan", "stripes_vae"]
    for name, expected in (("stripes_gan", (0.1, 0, 0)), ("stripes_vae", (0, 0.2, 0))):
        assert rows[name]["sha256"] == checkpoints.read_card(name).sha256
        null = [rows[name]["null"][column] for column in Perfect.names]
        assert null == pytest.approx(expected, abs=3e-3)
        assert rows[name]["unread_after_zero_edit"] == 0
    # without a prior, the oracle's own null is the largest per column
    assert found["null_by"] == "camera noise, stripes_gan, stripes_vae"
    assert model.null[:2].tolist() == pytest.approx([0.1, 0.2], abs=3e-3)
    assert 0 < model.null[2] < 2e-3  # camera noise
    assert found["columns"]["right"]["null"] == model.null[1].item()


def test_the_own_null_of_an_oracle_stays_that_of_the_prior(shifts, monkeypatch):
    (shifts / "stripes_ddpm.safetensors").write_bytes(b"prior")

    def through_prior(name, factors, x, seed):
        return ((shift_stripe("shade", 0.03)(x.float() / 255)) * 255).round().byte()

    monkeypatch.setattr(zero_edits, "_pass_through_prior", through_prior)
    model = Reads()
    found = calibration.calibrate(model, TOY, seed=0, n=60, n_null=30)
    assert found["null_by"] == "stripes_ddpm"
    assert found["null_by_sha256"] == zero_edits.hash_of("stripes_ddpm")
    assert model.null.tolist() == pytest.approx([0, 0, 0.05], abs=3e-3)
    assert list(found["null_per_generator"]) == ["stripes_ddpm", "stripes_gan", "stripes_vae"]
    own = found["null_per_generator"]["stripes_ddpm"]["null"]["shade"]
    assert own == pytest.approx(0.05, abs=3e-3)


def test_the_null_is_the_largest_of_all_where_several_kinds_are_compared(shifts, monkeypatch):
    (shifts / "stripes_ddpm.safetensors").write_bytes(b"prior")
    monkeypatch.setattr(calibration, "COMPARED", (TOY.name,))

    def through_prior(name, factors, x, seed):
        return ((shift_stripe("shade", 0.03)(x.float() / 255)) * 255).round().byte()

    monkeypatch.setattr(zero_edits, "_pass_through_prior", through_prior)
    model = Reads()
    found = calibration.calibrate(model, TOY, seed=0, n=60, n_null=30)
    assert found["null_by"] == "camera noise, stripes_ddpm, stripes_gan, stripes_vae"
    assert found["null_by_sha256"] is None
    assert model.null.tolist() == pytest.approx([0.1, 0.2, 0.05], abs=3e-3)
    assert zero_edits.list_stale(Card(quality=found), TOY) == []


def test_a_card_says_which_generators_it_does_not_know(shifts):
    quality = calibration.calibrate(Reads(), TOY, seed=0, n=60, n_null=30)
    card = Card(quality=quality)
    assert zero_edits.list_stale(card, TOY) == []
    save_gan(shifts, seed=1)
    assert zero_edits.list_stale(card, TOY) == ["stripes_gan"]
    (shifts / "stripes_ddpm.safetensors").write_bytes(b"prior")
    old = {"null_by": "stripes_ddpm", "null_by_sha256": zero_edits.hash_of("stripes_ddpm")}
    stale = ["stripes_gan", "stripes_vae"]
    assert zero_edits.list_stale(Card(quality=old), TOY) == stale
    old["null_by_sha256"] = "of another prior"
    assert zero_edits.list_stale(Card(quality=old), TOY) == ["stripes_ddpm", *stale]


def test_the_list_of_checkpoints_names_stale_oracles(shipped, monkeypatch):
    save_oracle(shipped)
    monkeypatch.setattr(session, "RECIPES", {"stripes_oracle": None, "stripes_vae": None})
    monkeypatch.setattr(session, "EMBEDDED", {"stripes_oracle", "stripes_vae"})
    lines = [line.split(maxsplit=2) for line in session.list_checkpoints()]
    assert lines[0][2] == "needs --calibrate, for stripes_gan, stripes_vae"
    assert lines[1] == ["stripes_vae", "present"]


def test_attacks_are_measured_on_classifiers_only(shipped, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "FOLDER", shipped)
    monkeypatch.setenv("CF_RESULTS_ROOT", str(shipped / "run"))
    save_gan(shipped, "stripes_left_gan")
    save_vae(shipped, "stripes_left_vae")
    assert calibration.measure_adversarial(Reads(), TOY, 0, n=4) == {}


# third stage


def test_the_third_stage_needs_a_gan_or_an_autoencoder(shipped):
    third = oracle_stages.describe_third_stage(TOY)
    assert third["generators"] == {
        name: checkpoints.read_card(name).sha256 for name in ("stripes_gan", "stripes_vae")
    }
    for name in ("stripes_gan", "stripes_vae"):
        (shipped / f"{name}.safetensors").unlink()
    (shipped / "stripes_ddpm.safetensors").write_bytes(b"prior")
    assert oracle_stages.describe_third_stage(TOY) is None


def test_generators_of_one_kind_share_the_renders(shipped):
    for k in range(2):
        save_gan(shipped, f"stripes_{k}_gan")
    (shipped / "stripes_ddpm.safetensors").write_bytes(b"prior")
    dealt = oracle_stages.deal_rows(TOY, oracle_stages.describe_third_stage(TOY, TINY))
    assert dealt["stripes_ddpm"].tolist() == list(range(8))
    assert dealt["stripes_vae"].tolist() == list(range(32))
    gans = [dealt[f"stripes_{k}gan"].tolist() for k in ("0_", "1_", "")]
    assert sorted(row for rows in gans for row in rows) == list(range(32))
    assert {len(rows) for rows in gans} == {10, 11}


def test_the_third_stage_sees_fresh_renders_through_each_generator(shifts):
    settings = {"n": 20, "third_stage": oracle_stages.describe_third_stage(TOY, TINY)}
    stage = oracle_stages.prepare_third_stage(TOY, Perfect.names, settings, seed=0)
    parts = stage.data.datasets
    assert [len(part) for part in parts] == [48, 32, 32]
    fresh = TOY.sample(88, "train", seed=1000).take(slice(40, 88))  # the first 40 were seen
    value, shown = true_readings(fresh, Perfect.names)
    assert torch.equal(parts[0].x, renders.render_bytes(fresh))
    for part, by in zip(parts, (None, *EDITS.values()), strict=True):
        assert torch.equal(part.targets[0], value[: len(part)])
        read = torch.stack([Perfect().read(part[i][0][None])[0][0] for i in range(len(part))])
        expected = value[: len(part)].clone()
        if by:
            expected[:, Perfect.names.index(by[0])] += by[1] / SPAN
        assert (read - expected).abs().max() < 0.01
    # a GAN's bin would reveal the label, so the label's own column is not taught there
    hidden = [(~part.targets[1]).double().mean(0).tolist() for part in parts]
    assert hidden == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert shown.all() and (stage.epochs, stage.lr) == (2, 1e-2)


def test_a_gan_of_an_unknown_label_is_refused(shipped):
    save_gan(shipped, classes=("old", "new"))
    card = checkpoints.read_card("stripes_gan")
    with pytest.raises(ValueError, match=r"stripes_gan: got classes \('old', 'new'\)"):
        oracle_stages.label_columns(card, TOY, Perfect.names)
    assert oracle_stages.label_columns(checkpoints.read_card("stripes_vae"), TOY, ("a",)) == []


def weights(name="stripes_oracle", folder=None):
    return checkpoints.load(name, folder=folder).model.members.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_fine_tuning_starts_from_the_shipped_members_and_says_so(shipped, quick, monkeypatch):
    save_oracle(shipped)
    start = checkpoints.read_card("stripes_oracle").sha256
    seen = []
    fit = oracle_stages.loop.fit

    def watch(member, *args, **settings):
        seen.append({key: value.clone() for key, value in member.state_dict().items()})
        return fit(member, *args, **settings)

    monkeypatch.setattr(oracle_stages.loop, "fit", watch)
    before = checkpoints.load("stripes_oracle").model
    card = fine_tune_again("stripes_oracle", out=shipped / "out")
    for own, member in zip(seen, before.members, strict=True):
        assert equal(own, member.state_dict())
    assert not equal(weights(folder=shipped / "out"), before.members.state_dict())
    third = card["settings"]["third_stage"]
    assert third["start"] == {"sha256": start, "third_stage": None}
    assert set(third["generators"]) == {"stripes_gan", "stripes_vae"}
    assert card["settings"]["n"] == 20 and card["recipe"] == "cf train stripes_oracle --fine-tune"
    assert card["data"]["split"] == "train (88 renders, independent, seed 1000)"
    steps = 2 * 2 * (48 + 32 + 32) // 16
    log = card["training"]
    assert (log["steps"], log["epochs"], len(log["losses"])) == (7 + steps, 5, 3)
    assert log["seconds"] > 5 and card["quality"]["null_per_generator"].keys() == set(EDITS)
    again = fine_tune_again("stripes_oracle", out=shipped / "again")
    assert again["sha256"] == card["sha256"]  # deterministic
    for file in (shipped / "out").iterdir():
        file.replace(shipped / file.name)
    second = fine_tune_again("stripes_oracle", out=shipped / "out")["settings"]["third_stage"]
    assert second["start"]["sha256"] == card["sha256"]
    assert second["start"]["third_stage"] == third


def test_fine_tuning_resumes_after_a_kill(shipped, quick, monkeypatch, tmp_path):
    save_oracle(shipped)
    whole = fine_tune_again("stripes_oracle", out=tmp_path / "whole")
    fit, calls = oracle_stages.loop.fit, []

    def die(*args, **settings):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **settings)

    monkeypatch.setattr(oracle_stages.loop, "fit", die)
    with pytest.raises(KeyboardInterrupt):
        fine_tune_again("stripes_oracle", tmp_path / "state", tmp_path / "out")
    monkeypatch.setattr(oracle_stages.loop, "fit", fit)
    resumed = fine_tune_again("stripes_oracle", tmp_path / "state", tmp_path / "out")
    assert resumed["sha256"] == whole["sha256"]
    save_gan(shipped, seed=1)  # another generator: another training
    with pytest.raises(ValueError, match=r"settings\.third_stage\.generators\.stripes_gan"):
        fine_tune_again("stripes_oracle", tmp_path / "state", tmp_path / "out")


def test_a_training_from_nothing_ends_with_the_third_stage(shipped, quick, tmp_path):
    """It equals the first two stages, continued by hand; their states survive another GAN."""
    arguments = {"n": 20, "epochs": 1, "n_prior": 0, "hard_epochs": 1}
    state = tmp_path / "state"
    made = factor_oracles.train_oracle("stripes", 0, state, **arguments)
    settings = made.card["settings"]
    assert made.card["data"]["split"] == "train (88 renders, independent, seed 1000)"
    assert made.log["epochs"] == 4 and len(made.log["losses"]) == 9
    names = list_columns(TOY)
    model = channels_last(oracles.FactorOracle(names, (16, 16)))
    stages = factor_oracles.prepare_stages(TOY, names, settings, 0)
    factor_oracles.train_members(model, stages, settings, 0, None)
    middle = {key: value.clone() for key, value in model.members.state_dict().items()}
    factor_oracles.fine_tune_members(model, TOY, settings, 0, None)
    assert equal(model.members.state_dict(), made.model.members.state_dict())
    assert not equal(middle, made.model.members.state_dict())
    save_gan(shipped, seed=1)
    for folder in state.glob("*-generators"):
        (folder / "state.pt").unlink()
    other = factor_oracles.train_oracle("stripes", 0, state, **arguments)
    assert not equal(other.model.members.state_dict(), made.model.members.state_dict())


def test_the_third_stage_teaches_to_read_what_a_generator_distorts(shipped, monkeypatch):
    """The zero edits are negatives without red. With few of them, an oracle misreads them."""

    def distort(x):
        return (1 - x) * torch.tensor([0.0, 1.0, 1.0])[:, None, None]

    (shipped / "stripes_gan.json").unlink()
    monkeypatch.setattr(zero_edits, "load_zero_edit", lambda name: distort)
    save_oracle(shipped)
    factors = TOY.sample(40, "validation", seed=3)
    value, x = true_readings(factors, Perfect.names)[0], distort(TOY.render(factors))
    error = []
    for n_each in (64, 1):
        tuning = TINY._replace(n_plain=64, n_each=n_each, epochs=640 // (64 + n_each))
        third = oracle_stages.describe_third_stage(TOY, tuning)
        settings = {"n": 20, "batch_size": 16, "third_stage": third}
        model = checkpoints.load("stripes_oracle").model
        factor_oracles.fine_tune_members(model, TOY, settings, 0, None)
        error.append((model.read(x)[0] - value).square().mean().sqrt().item())
    print(error)
    assert error[0] < 0.2 < 0.4 < error[1]


def test_fine_tuning_refuses_what_it_cannot_do(shipped, quick):
    save_oracle(shipped)
    with pytest.raises(ValueError, match="stripes_vae: got a VAE, expected a FactorOracle"):
        fine_tune_again("stripes_vae")
    with pytest.raises(ValueError, match="--calibrate, --fine-tune: got both"):
        session.train(["all"], calibrate=True, fine_tune=True)
    for name in ("stripes_gan", "stripes_vae"):
        (shipped / f"{name}.json").unlink()
    with pytest.raises(ValueError, match="stripes_oracle: got no shipped GAN or autoencoder"):
        fine_tune_again("stripes_oracle")


# shipped checkpoints


@pytest.mark.parametrize(
    "name", ["faces_oracle", "lung_ct_oracle", "radiographs_oracle", "roads_oracle"]
)
def test_the_nulls_in_a_card_are_those_of_the_generators_that_ship(name):
    if not checkpoints.exists(name):
        pytest.skip(f"{name} is not shipped yet")
    card = checkpoints.read_card(name)
    stale = zero_edits.list_stale(card, worlds.of_checkpoint(name))
    if stale:
        pytest.skip(f"other generators ship now: {stale}; run `cf train {name} --calibrate`")
    for row in card.quality.get("null_per_generator", {}).values():
        assert row["unread_after_zero_edit"] < 0.05
        assert row["null"].keys() == card.quality["columns"].keys()
