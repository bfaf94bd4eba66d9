"""Latent models: the contract, counted passes, and searches against closed forms."""

import math

import pytest
import torch
from torch import nn

from cf_utils.core import PassCounter, files
from cf_utils.explainers.shared.latent import LatentPasses, cast_to_model, optimise_code, walk
from cf_utils.models import checkpoints
from cf_utils.models.generators.adversarial_autoencoder import AdversarialAutoencoder
from cf_utils.models.generators.autoencoder import AutoEncoder
from cf_utils.models.generators.latent import LatentModel

TAU = 0.9


class LinearModel(LatentModel):
    """decode(z) = W z + b with orthonormal columns of W; encode is its inverse on that plane."""

    def __init__(self, n_features=6, n_latent=3):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(n_features, n_latent, generator=gen).double())
        self.decoder = nn.Linear(n_latent, n_features).double()
        self.encoder = nn.Linear(n_features, n_latent).double()
        with torch.no_grad():
            self.decoder.weight.copy_(basis)
            self.decoder.bias.fill_(0.5)
            self.encoder.weight.copy_(basis.T)
            self.encoder.bias.copy_(-basis.T @ self.decoder.bias)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


class LinearClassifier(nn.Module):
    """Logits (0, w.x - 4)."""

    def __init__(self, n_features=6):
        super().__init__()
        gen = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(n_features, generator=gen).double())

    def forward(self, x):
        z = x @ self.w - 4
        return torch.stack([torch.zeros_like(z), z], 1)


def make_case(n=8):
    """Model, classifier, codes z0 (n, 3), a and m0 with margin z_1 - z_0 = a.z + m0."""
    model, classifier = LinearModel(), LinearClassifier()
    z0 = 0.5 * torch.randn(n, 3, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        a = model.decoder.weight.T @ classifier.w
        m0 = classifier(model.decode(torch.zeros(1, 3).double()))[0, 1]
    return model, classifier, z0, a, m0


def run(model, classifier, z0, target=None, **settings):
    """Optimise codes; return the result and both counters, flushed."""
    model.requires_grad_(False)
    classifier.requires_grad_(False)
    f, generator = PassCounter(classifier, len(z0)), LatentPasses(model, len(z0))
    target = torch.ones(len(z0), dtype=torch.int64) if target is None else target
    found = optimise_code(f, generator, z0, target, **settings)
    f.flush()
    return found, f, generator.total()


def negative_margin(logits, target):
    return logits[:, 0] - logits[:, 1]


# ---------------------------------------------------------------- the contract


def test_a_latent_model_needs_encode_and_decode():
    class Half(LatentModel):
        def encode(self, x):
            return x

    with pytest.raises(TypeError, match="decode"):
        Half()


def test_forward_is_the_reconstruction():
    model = LinearModel()
    x = torch.rand(4, 6).double()
    assert torch.equal(model(x), model.decode(model.encode(x)))
    on_plane = model(x)
    torch.testing.assert_close(model(on_plane), on_plane, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("make", "shape", "latent"),
    [(AutoEncoder, (1, 28, 28), 20), (AdversarialAutoencoder, (1, 28, 28), 8)],
)
def test_the_autoencoders_implement_the_contract(make, shape, latent):
    torch.manual_seed(0)
    model, x = make().eval(), torch.rand(3, *shape)
    assert isinstance(model, LatentModel)
    assert model.encode(x).shape == (3, latent)
    assert torch.equal(model.encode(x), model.encoder(x))
    assert torch.equal(model(x), model.decoder(model.encoder(x)))
    parts = {key.split(".")[0] for key in model.state_dict()}
    assert parts <= {"encoder", "decoder", "discriminator"}  # keys of the shipped weights


@pytest.mark.parametrize("name", ["mnist_autoencoder", "mnist_aae"])
def test_shipped_weights_load_into_latent_models(name):
    model, _ = checkpoints.load(name)
    assert isinstance(model, LatentModel)
    stored = files.read_tensors(checkpoints.FOLDER / f"{name}.safetensors")
    assert stored.keys() == model.state_dict().keys()


# ---------------------------------------------------------------- counted passes


def test_passes_are_counted_per_item_and_kind():
    model, _, z0, *_ = make_case(3)
    encoded, decoded = [], []
    model.encoder.register_forward_hook(lambda m, i, o: encoded.append(len(o)))
    model.decoder.register_forward_hook(lambda m, i, o: decoded.append(len(o)))
    generator, rows = LatentPasses(model, 3), torch.arange(3)
    z = z0.clone().requires_grad_(True)
    x = generator.decode(z, rows)
    generator.decode.grad(x.sum(), z)
    generator.encode(x.detach()[:2], rows[:2])
    generator.decode(torch.cat([z0[1:], z0[1:]]), torch.tensor([1, 2, 1, 2]))
    total = generator.total()
    assert generator.encode.n_forward.tolist() == [1, 1, 0]
    assert generator.decode.n_forward.tolist() == [1, 3, 3]
    assert generator.decode.n_backward.tolist() == [1, 1, 1]
    assert total.n_forward.tolist() == [2, 4, 3] and total.n_backward.tolist() == [1, 1, 1]
    assert int(total.n_forward.sum()) == sum(encoded) + sum(decoded)


def test_a_reconstruction_counts_as_one_pass():
    generator = LatentPasses(LinearModel(), 2)
    y = torch.rand(2, 6).double().requires_grad_(True)
    x = generator.reconstruct(y, torch.arange(2))
    gradient = generator.reconstruct.grad(x.square().sum(), y)
    total = generator.total()
    assert gradient.shape == (2, 6)
    assert total.n_forward.tolist() == [1, 1] and total.n_backward.tolist() == [1, 1]


def test_inputs_take_the_dtype_of_the_model():
    x = torch.rand(2, 6)
    assert cast_to_model(x, LinearModel()).dtype == torch.float64

    class Nothing(LatentModel):
        def encode(self, x):
            return x

        def decode(self, z):
            return z

    assert cast_to_model(x, Nothing()) is x


# ---------------------------------------------------------------- optimise a code


def closed_form(z0, a, m0, lam):
    """argmin of -log sigmoid(a.z + m0) + lam ||z - z0||^2: z0 + s a, s by bisection.

    The gradient is zero where s = sigmoid(-margin) / (2 lam).
    """
    low, high = torch.zeros(len(z0)).double(), torch.full((len(z0),), 1 / (2 * lam)).double()
    for _ in range(100):
        s = (low + high) / 2
        margin = z0 @ a + m0 + s * a.square().sum()
        above = s < torch.sigmoid(-margin) / (2 * lam)
        low, high = torch.where(above, s, low), torch.where(above, high, s)
    return z0 + s[:, None] * a


def test_the_optimised_code_is_the_minimiser_in_closed_form():
    model, classifier, z0, a, m0 = make_case()
    lam = 0.05

    def penalty(output, code, rows):
        return lam * (code - z0[rows]).square().sum(1)

    sizes = [0.1 * 0.995**k for k in range(2500)]
    found, *_ = run(model, classifier, z0, steps=2500, lr=sizes, penalty=penalty)
    best = closed_form(z0, a, m0, lam)
    torch.testing.assert_close(found.code, best, atol=1e-8, rtol=0)  # measured 4e-11
    assert (best - z0).norm(dim=1).min() > 0.5  # far from where it began
    torch.testing.assert_close(found.output, model.decode(found.code), atol=1e-12, rtol=0)
    score = torch.sigmoid(found.code @ a + m0)
    torch.testing.assert_close(found.score, score, atol=1e-9, rtol=0)


def test_a_penalty_on_outputs_acts_through_the_decoder():
    """W has orthonormal columns, so ||x - x0||^2 = ||z - z0||^2, and both penalties agree."""
    model, classifier, z0, *_ = make_case()
    x0 = model.decode(z0).detach()

    def on_output(output, code, rows):
        return 0.05 * (output - x0[rows]).square().sum(1)

    def on_code(output, code, rows):
        return 0.05 * (code - z0[rows]).square().sum(1)

    by_output, by_code = (
        run(model, classifier, z0, steps=50, lr=0.1, penalty=p)[0] for p in (on_output, on_code)
    )
    torch.testing.assert_close(by_output.code, by_code.code, atol=1e-6, rtol=0)


def test_an_item_stops_at_the_first_step_that_reaches_tau():
    """A linear loss has a constant gradient, so each step of Adam is lr * sign(a)."""
    model, classifier, z0, a, m0 = make_case()
    lr = 0.02
    found, *_ = run(model, classifier, z0, steps=400, lr=lr, tau=TAU, loss=negative_margin)
    gap = math.log(TAU / (1 - TAU)) - (z0 @ a + m0)
    n_steps = (gap / (lr * a.abs().sum())).ceil().clamp(min=0).long()
    assert found.n_steps.tolist() == n_steps.tolist() and len(set(n_steps.tolist())) > 3
    expected = z0 + lr * n_steps[:, None] * a.sign()
    torch.testing.assert_close(found.code, expected, atol=1e-6, rtol=0)
    assert found.reached.all() and (found.score >= TAU).all()


def test_without_tau_all_steps_are_made():
    model, classifier, z0, *_ = make_case()
    found, *_ = run(model, classifier, z0, steps=30, lr=0.5)
    assert found.n_steps.tolist() == [30] * 8 and found.reached.all()


def test_an_item_that_does_not_arrive_returns_its_last_state():
    model, classifier, z0, a, _ = make_case()
    found, *_ = run(model, classifier, z0, steps=3, lr=0.01, tau=TAU, loss=negative_margin)
    assert not found.reached.any() and found.n_steps.tolist() == [3] * 8
    torch.testing.assert_close(found.code, z0 + 0.03 * a.sign(), atol=1e-6, rtol=0)


def test_each_item_is_optimised_as_by_adam_of_torch():
    model, classifier, z0, *_ = make_case()
    lam = 0.1

    def penalty(output, code, rows):
        return lam * (code - z0[rows]).abs().sum(1)

    found, *_ = run(model, classifier, z0, steps=25, lr=0.05, penalty=penalty)
    for i in range(len(z0)):
        z = z0[i : i + 1].clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=0.05)
        for _ in range(25):
            adam.zero_grad()
            logits = classifier(model.decode(z))
            (-logits.log_softmax(1)[0, 1] + lam * (z - z0[i]).abs().sum()).backward()
            adam.step()
        torch.testing.assert_close(found.code[i], z.detach()[0], atol=1e-9, rtol=0)


def test_an_item_depends_neither_on_its_batch_nor_on_the_order():
    model, classifier, z0, *_ = make_case()
    settings = {"steps": 40, "lr": 0.2, "tau": TAU}
    whole, f, total = run(model, classifier, z0, **settings)
    assert len(set(whole.n_steps.tolist())) > 3  # items leave at different times
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    mixed, f_mixed, _ = run(model, classifier, z0[order], **settings)
    torch.testing.assert_close(mixed.code, whole.code[order], atol=1e-9, rtol=0)
    assert torch.equal(mixed.n_steps, whole.n_steps[order])
    assert torch.equal(f_mixed.n_backward, f.n_backward[order])
    for i in range(len(z0)):
        alone, f_alone, total_alone = run(model, classifier, z0[i : i + 1], **settings)
        torch.testing.assert_close(alone.code[0], whole.code[i], atol=1e-9, rtol=0)
        torch.testing.assert_close(alone.output[0], whole.output[i], atol=1e-9, rtol=0)
        torch.testing.assert_close(alone.score[0], whole.score[i], atol=1e-9, rtol=0)
        assert alone.n_steps[0] == whole.n_steps[i] and alone.reached[0] == whole.reached[i]
        assert f_alone.n_forward[0] == f.n_forward[i] and f_alone.n_backward[0] == f.n_backward[i]
        assert total_alone.n_backward[0] == total.n_backward[i]


def test_passes_equal_those_that_hooks_count():
    model, classifier, z0, *_ = make_case()
    forward = {"decoder": 0, "classifier": 0}
    backward = dict(forward)
    for name, module in (("decoder", model.decoder), ("classifier", classifier)):

        def count_forward(module, inputs, output, name=name):
            forward[name] += len(output)

        def count_backward(module, grad_input, grad_output, name=name):
            backward[name] += len(grad_output[0])

        module.register_forward_hook(count_forward)
        module.register_full_backward_hook(count_backward)
    found, f, total = run(model, classifier, z0, steps=40, lr=0.15, tau=TAU)
    assert found.reached.any() and not found.reached.all()
    assert f.n_forward.tolist() == total.n_forward.tolist() == (found.n_steps + 1).tolist()
    assert int(f.n_forward.sum()) == forward["classifier"]
    assert int(total.n_forward.sum()) == forward["decoder"]
    assert int(f.n_backward.sum()) == backward["classifier"]
    assert int(total.n_backward.sum()) == backward["decoder"]
    assert (f.n_backward <= f.n_forward).all()


class Marked(LatentModel):
    """`LinearModel` with one more latent dimension, which is copied to one more feature."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode(self, x):
        return torch.cat([self.model.encode(x[:, :-1]), x[:, -1:]], 1)

    def decode(self, z):
        return torch.cat([self.model.decode(z[:, :-1]), z[:, -1:]], 1)


class Trap(nn.Module):
    """A classifier of the first features; NaN for marked items whose margin exceeds `edge`."""

    def __init__(self, classifier, edge):
        super().__init__()
        self.classifier, self.edge = classifier, edge

    def forward(self, x):
        logits = self.classifier(x[:, :-1])
        broken = (x[:, -1] > 0.5) & (logits[:, 1] - logits[:, 0] > self.edge)
        return torch.where(broken[:, None], torch.nan, logits)


def test_an_item_with_nan_keeps_its_last_finite_state_and_changes_no_other_item():
    model, classifier, z0, a, m0 = make_case()
    lr, marked = 0.02, 3
    edge = float(z0[marked] @ a + m0 + 4.5 * lr * a.abs().sum())  # between steps 4 and 5
    z0 = torch.cat([z0, torch.zeros(8, 1).double()], 1)
    settings = {"steps": 40, "lr": lr, "loss": negative_margin}
    clean, f_clean, _ = run(Marked(model), Trap(classifier, edge), z0, **settings)
    z0[marked, -1] = 1
    caught, f, _ = run(Marked(model), Trap(classifier, edge), z0, **settings)
    others = torch.arange(8) != marked
    torch.testing.assert_close(caught.code[others], clean.code[others], atol=1e-9, rtol=0)
    assert torch.equal(caught.score[others], clean.score[others])
    expected = z0[marked, :-1] + 4 * lr * a.sign()
    torch.testing.assert_close(caught.code[marked, :-1], expected, atol=1e-6, rtol=0)
    assert caught.n_steps[marked] == 4 and not caught.reached[marked]
    assert f.n_forward[marked] < f_clean.n_forward[marked]


def test_an_item_with_nan_from_the_start_returns_its_first_code():
    model, classifier, z0, *_ = make_case(2)
    z0 = torch.cat([z0, torch.ones(2, 1).double()], 1)
    found, *_ = run(Marked(model), Trap(classifier, -torch.inf), z0, steps=5, lr=0.1)
    assert torch.equal(found.code, z0) and found.output.isfinite().all()
    assert found.score.isnan().all() and not found.reached.any()


def test_parameters_get_no_gradient_and_no_grad_mode_of_the_caller_is_ignored():
    model, classifier, z0, *_ = make_case()
    with torch.no_grad():
        found, *_ = run(model, classifier, z0, steps=5, lr=0.1)
    assert not torch.equal(found.code, z0) and not found.code.requires_grad
    parameters = [*model.parameters(), *classifier.parameters()]
    assert all(p.grad is None for p in parameters)


# ---------------------------------------------------------------- walk


def test_a_walk_decodes_points_on_a_line():
    model, _, z0, a, _ = make_case()
    sizes = torch.tensor([0.0, 0.5, -2.0])
    outputs = walk(LatentPasses(model, 8), z0, a, sizes)
    assert outputs.shape == (8, 3, 6)
    for k, size in enumerate(sizes.tolist()):
        expected = model.decoder.bias + (z0 + size * a) @ model.decoder.weight.T
        torch.testing.assert_close(outputs[:, k], expected, atol=1e-12, rtol=0)


def test_a_walk_takes_a_direction_and_step_sizes_per_item():
    model, _, z0, *_ = make_case()
    gen = torch.Generator().manual_seed(3)
    direction, sizes = torch.randn(8, 3, generator=gen).double(), torch.rand(8, 4, generator=gen)
    generator = LatentPasses(model, 8)
    outputs = walk(generator, z0, direction, sizes)
    for i in range(8):
        points = z0[i] + sizes[i, :, None].double() * direction[i]
        torch.testing.assert_close(outputs[i], model.decode(points), atol=1e-12, rtol=0)
        alone = walk(LatentPasses(model, 1), z0[i : i + 1], direction[i : i + 1], sizes[i : i + 1])
        torch.testing.assert_close(alone[0], outputs[i], atol=1e-12, rtol=0)
    assert generator.total().n_forward.tolist() == [4] * 8


def test_a_walk_counts_the_passes_of_the_given_rows():
    model, _, z0, a, _ = make_case()
    generator = LatentPasses(model, 8)
    walk(generator, z0[[2, 5]], a, torch.tensor([1.0, 2.0]), torch.tensor([2, 5]))
    assert generator.total().n_forward.tolist() == [0, 0, 2, 0, 0, 2, 0, 0]


def test_a_walk_follows_latents_of_any_shape():
    class Images(LatentModel):
        def encode(self, x):
            return x / 2

        def decode(self, z):
            return 2 * z

    z, direction = torch.rand(3, 2, 4, 4), torch.rand(2, 4, 4)
    outputs = walk(LatentPasses(Images(), 3), z, direction, torch.tensor([1.0, 3.0]))
    assert outputs.shape == (3, 2, 2, 4, 4)
    torch.testing.assert_close(outputs[:, 1], 2 * (z + 3 * direction))
