"""Each loss term of progressive exaggeration alone, and the balanced training images."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, kl_divergence

from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.training import exaggeration as ex
from cf_utils.training import loop
from cf_utils.training.balanced import BalancedImages, classifier_outputs
from cf_utils.training.exaggeration_rounds import Round, describe_rounds, fit_rounds
from cf_utils.training.recipes.renders import StoredImages
from cf_utils.training.running_statistics import update_statistics


def make_gan():
    torch.manual_seed(0)
    return ConditionalGAN(channels=1, size=16, widths=(4, 4), blocks=2, critic=4)


def make_classifier():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))


def batch(n=6):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, 1, 16, 16, generator=generator), torch.linspace(0.05, 0.95, n)


def make_objective(**weights):
    return ex.Objective(make_gan(), make_classifier(), ex.Weights(**weights), low_precision=False)


def has_gradient(parameters):
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_wanted_output_moves_by_a_tenth_per_bin_and_is_clipped():
    p, own = torch.tensor([0.42, 0.95, 0.04]), torch.tensor([4, 9, 0])
    found = ex.wanted_output(p, own, torch.tensor([7, 9, 9]), 10)
    torch.testing.assert_close(found, torch.tensor([0.72, 0.95, 0.94]))
    found = ex.wanted_output(
        torch.tensor([0.999, 0.001]), torch.tensor([9, 0]), torch.tensor([9, 0]), 10
    )
    torch.testing.assert_close(found, torch.tensor([0.99, 0.01]))


def test_kl_is_that_of_bernoulli_distributions_in_the_papers_order():
    p, logit = torch.linspace(0.01, 0.99, 9), torch.linspace(-6, 6, 9)
    expected = kl_divergence(Bernoulli(p), Bernoulli(logits=logit))
    torch.testing.assert_close(ex.bernoulli_kl(p, logit), expected, rtol=1e-4, atol=1e-5)
    assert ex.bernoulli_kl(p, p.logit()).abs().max() < 1e-6  # zero at equality
    assert ex.bernoulli_kl(torch.tensor(0.5), torch.tensor(80.0)).isfinite()  # no saturation


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.5])
    assert ex.discriminator_loss(real, fake).item() == pytest.approx((0.5 + 2) / 3 + (1 + 2.5) / 3)
    assert ex.generator_loss(fake).item() == pytest.approx(0.5 / 3)


def test_weights_of_zero_switch_a_term_off_and_scale_it_otherwise():
    found = {}
    for name in ("cgan", "f", "rec"):
        for value in (0.0, 1.0, 3.0):
            torch.manual_seed(5)
            objective = make_objective(**{"cgan": 1.0, "f": 1.0, "rec": 1.0} | {name: value})
            found[name, value] = objective.terms(*batch(), own=objective.gan.bin_of(batch()[1]))
    for name, terms in (("cgan", ("cgan",)), ("f", ("f",)), ("rec", ("rec", "cyc"))):
        for term in terms:
            assert found[name, 0.0][term] == 0
            torch.testing.assert_close(found[name, 3.0][term], 3 * found[name, 1.0][term])
    torch.manual_seed(5)
    total = make_objective(cgan=1.0, f=1.0, rec=1.0)("explain", *batch())
    torch.testing.assert_close(total, sum(found["f", 1.0].values()))


@pytest.mark.parametrize("term", ["cgan", "f", "rec", "cyc"])
def test_each_term_reaches_generator_and_encoder_but_not_the_classifier(term):
    objective = make_objective()
    x, p = batch()
    objective.terms(x, p, objective.gan.bin_of(p))[term].backward()
    assert has_gradient(objective.gan.generator.parameters())
    assert has_gradient(objective.gan.encoder.parameters())
    assert not has_gradient(objective.classifier.parameters())


def test_the_classifiers_term_follows_the_classifiers_gradient():
    """The official code stops this gradient. A finite difference in x_delta agrees with ours."""
    objective = make_objective()
    x = batch()[0].double().requires_grad_()
    objective.classifier.double()
    p = torch.full((6,), 0.7).double()
    (gradient,) = torch.autograd.grad(objective.classifier_loss(x, p), x)
    step = torch.zeros_like(x)
    step[2, 0, 3, 4] = 1e-5
    with torch.no_grad():
        up, down = (objective.classifier_loss(x + s, p) for s in (step, -step))
    assert gradient[2, 0, 3, 4].item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-4)


def test_the_classifier_sees_images_that_moved_by_their_own_shift():
    objective = make_objective()
    objective.disturb, seen = ex.Disturbance(shift=2), []
    objective.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    x, p = torch.zeros(3, 1, 16, 16), torch.full((3,), 0.5)
    x[..., 8, 8] = 1
    for _ in range(60):
        objective.classifier_loss(x, p)
    places = [[tuple(y[k, 0].nonzero()[0].tolist()) for k in range(3)] for y in seen]
    assert any(len(set(place)) == 3 for place in places)
    rows, columns = ({at[i] for place in places for at in place} for i in (0, 1))
    assert rows == columns == {6, 7, 8, 9, 10}


def test_the_classifier_sees_noise_of_up_to_the_given_deviation():
    x = torch.full((400, 1, 16, 16), 0.5)
    torch.manual_seed(0)
    sd = (ex.Disturbance(noise=0.1)(x) - x).flatten(1).std(1)
    assert sd.max() < 0.12 and sd.min() < 0.01 and sd.mean() == pytest.approx(0.05, rel=0.1)
    torch.testing.assert_close(ex.Disturbance()(x), x, rtol=0, atol=0)


def test_the_discriminator_sees_real_and_generated_images_disturbed_alike():
    """In its own step and in the generator's. The other terms see them undisturbed."""
    blank = Round(1, disturb_critic=ex.Disturbance(shift=5)).objective(
        make_gan(), make_classifier()
    )
    blank.disturb_critic = torch.zeros_like  # every image is black
    blank.low_precision = False
    plain = make_objective()
    x, p = batch()
    own, black = plain.gan.bin_of(p), torch.zeros_like(x)
    found = []
    for objective in (blank, plain):
        objective.eval()
        torch.manual_seed(4)
        found.append(objective.terms(x, p, own))
    for term in ("f", "rec", "cyc"):
        torch.testing.assert_close(found[0][term], found[1][term])
    fake, wanted = blank._fake
    assert fake.std() > 0.01
    score = blank.gan.criticise(black, wanted)
    torch.testing.assert_close(found[0]["cgan"], ex.generator_loss(score))
    assert (found[0]["cgan"] - found[1]["cgan"]).abs() > 1e-4
    real = blank.gan.criticise(black, own)
    torch.testing.assert_close(blank.criticise(x, p, own), ex.discriminator_loss(real, score))


def test_a_card_states_the_disturbance_of_the_discriminator_only_where_there_is_one():
    disturbed = Round(2, disturb_critic=ex.Disturbance(shift=3, noise=0.2))
    plain, coarse = describe_rounds([Round(1, None), disturbed])["rounds"]
    assert "disturb_critic" not in plain and plain["weights"] == "reconstruction"
    assert coarse["disturb_critic"] == {"shift": 3, "noise": 0.2}
    assert disturbed.objective(make_gan(), make_classifier()).disturb_critic.noise == 0.2


def test_reconstruction_uses_the_own_bin_and_the_cycle_returns_to_it():
    """Eqs. 5 and 6: both decode with c_f(x, 0); the cycle starts from x_delta."""
    objective = make_objective()
    gan, calls = objective.gan, []
    encode, decode = gan.encode, gan.decode

    def record_encode(x):
        calls.append(("encode", x))
        return encode(x)

    def record_decode(z, bins=None):
        y = decode(z, bins)
        calls.append(("decode", bins, y))
        return y

    gan.encode, gan.decode = record_encode, record_decode
    x, p = batch()
    own = gan.bin_of(p)
    objective.terms(x, p, own)
    (_, first), (_, bins, images), (_, second), (_, last, _) = calls
    assert torch.equal(first, x) and torch.equal(second, images[:6])
    assert torch.equal(bins[6:], own) and torch.equal(last, own)


def test_wanted_bins_are_uniform():
    objective = make_objective()
    drawn = []
    for _ in range(60):
        objective("explain", *batch())
        drawn.append(objective._fake[1])
    counts = torch.cat(drawn).bincount(minlength=10)
    assert counts.min() > 15 and counts.max() < 60  # 36 expected of each


def test_the_discriminator_judges_real_images_by_their_own_bin_and_trains_alone():
    objective = make_objective()
    with pytest.raises(RuntimeError, match="call the step 'explain' first"):
        objective("criticise", *batch())
    x, p = batch()
    objective("explain", x, p)
    fake, wanted = objective._fake
    objective.eval()
    loss = objective("criticise", x, p)
    real = objective.gan.criticise(x, objective.gan.bin_of(p))
    expected = ex.discriminator_loss(real, objective.gan.criticise(fake, wanted))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert has_gradient(objective.gan.discriminator.parameters())
    assert not has_gradient(ex.explainer_parameters(objective))


def test_parts_use_the_papers_optimiser_and_share_no_parameter():
    explain, criticise = ex.joint_parts()
    for part in (explain, criticise):
        assert (part.lr, part.betas, part.weight_decay, part.schedule) == (
            2e-4,
            (0.0, 0.9),
            0.0,
            False,
        )
    objective = make_objective()
    a, b = ({id(p) for p in part.parameters(objective)} for part in (explain, criticise))
    assert not a & b
    assert len(a | b) == len(list(objective.gan.parameters()))


def test_the_classifier_stays_in_eval_mode():
    classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(256, 2))
    objective = ex.Objective(make_gan(), classifier).train()
    assert objective.gan.training and not classifier.training


def test_the_discriminator_keeps_its_own_weights_and_spectral_norms():
    """Averaged singular vectors would blow up its outputs; encoder and generator are averaged."""
    x = (torch.rand(64, 1, 16, 16) * 255).byte()
    data = BalancedImages(StoredImages(x), torch.rand(64), 10, 64, empty="skip")
    gan, before = make_gan(), make_gan()
    fit_rounds(gan, make_classifier(), data, [Round(1, lr=1e-2)], batch_size=16, ema=0.999)
    for layer in gan.discriminator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) < 2
    moved = [
        (a - b).abs().max() > 0.02
        for a, b in zip(
            gan.discriminator.parameters(), before.discriminator.parameters(), strict=True
        )
    ]
    assert any(moved)  # four steps of 0.01; averages would lag behind


def images(counts):
    p = torch.cat([torch.full((n,), (k + 0.5) / 10) for k, n in enumerate(counts)])
    return (torch.arange(len(p)) % 256).to(torch.uint8)[:, None, None, None].expand(
        -1, 1, 16, 16
    ), p


def test_batches_are_balanced_over_the_bins():
    x, p = images([500, 3, 1, 1, 1, 1, 1, 1, 3, 500])
    data = BalancedImages(StoredImages(x), p, 10, 400)
    torch.manual_seed(0)
    drawn = torch.stack([data[i][1] for i in range(len(data))])
    assert (drawn * 10).long().bincount(minlength=10).tolist() == [40] * 10
    assert len(set(data[0][0].flatten().tolist())) == 1


def test_an_empty_bin_is_named_and_can_be_skipped():
    x, p = images([5, 5, 5, 0, 5, 5, 5, 5, 0, 5])
    with pytest.raises(ValueError, match=r"no image in bin 3 \(of 10\), 8 \(of 10\)"):
        BalancedImages(StoredImages(x), p, 10, 100)
    data = BalancedImages(StoredImages(x), p, 10, 80, empty="skip")
    drawn = torch.stack([data[i][1] for i in range(80)])
    assert (drawn * 10).long().unique().tolist() == [0, 1, 2, 4, 5, 6, 7, 9]
    with pytest.raises(ValueError, match="empty: got 'stop'"):
        BalancedImages(StoredImages(x), p, 10, 80, empty="stop")


def test_a_training_follows_the_condition_and_resumes_only_its_own_settings(tmp_path):
    """A bright-or-dark classifier: after a short training, f(x_delta) rises with the bin."""
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(200, 1, 1, 1, generator=generator)
    x = (255 * (level + 0.1 * torch.rand(200, 1, 16, 16, generator=generator)).clamp(0, 1)).byte()
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with torch.no_grad():
        classifier[1].weight.copy_(torch.stack([torch.zeros(256), torch.full((256,), 8 / 256)]))
        classifier[1].bias.copy_(torch.tensor([0.0, -4.4]))
    p = classifier_outputs(classifier, x)
    gan = make_gan()
    data = BalancedImages(StoredImages(x), p, gan.bins, 640, empty="skip")

    def fit(weights, epochs):
        objective = ex.Objective(gan, classifier, weights)
        parts = ex.joint_parts(lr=2e-3)
        settings = {"weights": vars(weights)}
        return loop.fit(
            objective,
            data,
            parts,
            epochs=epochs,
            batch_size=16,
            folder=tmp_path,
            device="cpu",
            settings=settings,
        )

    log = fit(ex.Weights(rec=1.0, f=3.0), epochs=6)
    assert all(math.isfinite(v) for losses in log["losses"] for v in losses)
    query = x[:40].float() / 255
    response = [
        classifier(gan(query, torch.full((40,), k))).softmax(1)[:, 1].mean() for k in (0, 5, 9)
    ]
    assert response[0] + 0.1 < response[1] < response[2] - 0.1
    with pytest.raises(ValueError, match=r"settings.weights.f: saved 3.0, current 1.0"):
        fit(ex.Weights(rec=1.0, f=1.0), epochs=6)


def test_running_statistics_are_those_of_the_passes_that_explain():
    """A training spoils them by the passes of the cycle; they are measured anew on real images."""
    torch.manual_seed(0)
    gan = make_objective().gan
    x = torch.rand(320, 1, 16, 16)
    data = [(image, torch.tensor(0.5)) for image in x]
    first = gan.encoder.blocks[0].norm1
    first.running_mean.fill_(7.0)
    kept = {k: v.clone() for k, v in gan.named_parameters()}
    update_statistics(gan, data, seed=3, n=320)
    with torch.no_grad():
        h = gan.encoder.stem(2 * x - 1)
    torch.testing.assert_close(first.running_mean, h.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    var = torch.stack([part.var((0, 2, 3)) for part in h.split(32)]).mean(0)
    torch.testing.assert_close(first.running_var, var, rtol=1e-4, atol=1e-5)
    assert not gan.training and first.momentum == 0.1
    assert all(torch.equal(v, kept[k]) for k, v in gan.named_parameters())
    # the generator's last norm: explanations for random bins of the same images, batch by batch
    torch.manual_seed(3)
    seen = []
    gan.generator.norm.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    gan.train()
    with torch.no_grad():
        for part in x.split(32):
            gan(part, torch.randint(gan.bins, (len(part),)))
    expected = torch.stack([h.mean((0, 2, 3)) for h in seen]).mean(0)
    gan.eval()
    update_statistics(gan, data, seed=3, n=320)
    torch.testing.assert_close(gan.generator.norm.running_mean, expected, rtol=1e-3, atol=1e-4)


def test_a_training_ends_with_fresh_running_statistics():
    x = (torch.rand(64, 1, 16, 16) * 255).byte()
    data = BalancedImages(StoredImages(x), torch.rand(64), 10, 64, empty="skip")
    gan = make_gan()
    fit_rounds(gan, make_classifier(), data, [Round(1, lr=1e-3)], batch_size=16, seed=2)
    ended = {k: v.clone() for k, v in gan.named_buffers()}
    update_statistics(gan, data, seed=2)
    for name, value in gan.named_buffers():
        torch.testing.assert_close(value, ended[name])
