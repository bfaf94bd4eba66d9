"""The search toolkit: Adam per item against torch.optim.Adam, state bookkeeping, logit margins."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from cf_utils.explainers.shared.search import (
    Adam,
    FoldedAdam,
    SearchState,
    log_odds,
    logit_margin,
    per_item,
    target_score,
)

CLASSES = [Adam, FoldedAdam]
N_STEPS = 40


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradient_of(z: Tensor) -> Tensor:
    """The gradient of a function of each item alone, with values from 1e-3 to 1e3."""
    size = torch.logspace(-3, 3, z[0].numel(), dtype=z.dtype).view_as(z[0])
    return size * (z - 0.3) + torch.sin(5 * z)


def run_torch(z: Tensor, lr: list[float]) -> Tensor:
    """Return one item after len(lr) steps of torch's Adam."""
    z = z.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=lr[0])
    for rate in lr:
        adam.param_groups[0]["lr"] = rate
        z.grad = gradient_of(z.detach()[None])[0]
        adam.step()
    return z.detach()


# ---------------------------------------------------------------- Adam


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_adam_equals_torch_for_each_item(kind, shape):
    """Measured 1e-15; a wrong bias correction differs by 1e-2."""
    z = draw(4, *shape)
    expected = torch.stack([run_torch(item, [0.05] * N_STEPS) for item in z])
    adam, ours = kind(z, 0.05, N_STEPS), z.clone()
    for _ in range(N_STEPS):
        out = adam.step_(ours, gradient_of(ours))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert out is ours  # in place
    assert adam.count.tolist() == [N_STEPS] * 4


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_adam_takes_one_step_size_per_step(kind, as_tensor):
    z, lr = draw(3, 6), [0.1 * (1 - k / N_STEPS) for k in range(N_STEPS)]
    expected = torch.stack([run_torch(item, lr) for item in z])
    adam = kind(z, torch.tensor(lr, dtype=torch.float64) if as_tensor else lr, N_STEPS)
    for _ in range(N_STEPS):
        adam.step_(z, gradient_of(z))
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
def test_both_classes_agree_in_float32(kind):
    z = draw(3, 6, dtype=torch.float32)
    exact, ours = z.double(), z.clone()
    reference, adam = Adam(exact, 0.05, N_STEPS), kind(z, 0.05, N_STEPS)
    for _ in range(N_STEPS):
        reference.step_(exact, gradient_of(exact))
        adam.step_(ours, gradient_of(ours))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)  # measured 2e-6


@pytest.mark.parametrize("kind", CLASSES)
def test_restart_forgets_the_past_of_the_chosen_items_alone(kind):
    """Items 0 and 2 begin again after 7 steps; item 1 goes on."""
    z, chosen = draw(3, 4), torch.tensor([0, 2])
    expected = torch.stack([run_torch(item, [0.05] * 12) for item in z])
    adam, first = kind(z, 0.05, 12), z.clone()
    for _ in range(7):
        adam.step_(z, gradient_of(z))
    adam.restart(chosen)
    assert adam.count.tolist() == [0, 7, 0]
    begin = z.clone()
    for _ in range(5):
        adam.step_(z, gradient_of(z))
    torch.testing.assert_close(z[1], expected[1], rtol=0, atol=1e-12)
    for i in (0, 2):
        again = run_torch(begin[i], [0.05] * 5)
        torch.testing.assert_close(z[i], again, rtol=0, atol=1e-12)
    assert not torch.equal(first, z)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_delayed_restart_leaves_the_item_in_place_for_that_many_steps(kind):
    z = draw(2, 4)
    adam = kind(z, 0.05, 10)
    for _ in range(3):
        adam.step_(z, gradient_of(z))
    adam.restart(torch.tensor([1]), delay=1)
    before, gradient = z.clone(), gradient_of(z)
    gradient[1] = 0
    adam.step_(z, gradient)
    assert torch.equal(z[1], before[1])
    assert not torch.equal(z[0], before[0])
    assert adam.count.tolist() == [4, 0]
    for _ in range(6):
        adam.step_(z, gradient_of(z))
    torch.testing.assert_close(z[1], run_torch(before[1], [0.05] * 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
def test_adam_keeps_the_moments_of_the_items_that_stay(kind):
    z, stay = draw(4, 5), torch.tensor([True, False, True, True])
    adam, whole = kind(z, 0.05, N_STEPS), z.clone()
    reference = kind(z, 0.05, N_STEPS)
    for k in range(10):
        reference.step_(whole, gradient_of(whole))
        if k == 4:
            z = z[stay]
            adam.keep(stay)
        adam.step_(z, gradient_of(z))
    assert torch.equal(z, whole[stay])
    assert len(adam.count) == len(adam.first) == len(adam.second) == 3


def test_zero_gradients_move_nothing():
    for kind in CLASSES:
        z = draw(2, 3)
        adam, before = kind(z, 0.5, 5), z.clone()
        for _ in range(5):
            adam.step_(z, torch.zeros_like(z))
        assert torch.equal(z, before)


def test_folded_adam_works_in_the_memory_of_the_gradient():
    z = draw(2, 3)
    adam, gradient = FoldedAdam(z, 0.05, 5), gradient_of(z)
    before = gradient.clone()
    adam.step_(z, gradient)
    assert not torch.equal(gradient, before)
    plain, gradient = Adam(z, 0.05, 5), before.clone()
    plain.step_(z, gradient)
    assert torch.equal(gradient, before)


def test_more_steps_than_announced_are_refused():
    z = draw(2, 3)
    adam = Adam(z, 0.05, 1)
    adam.step_(z, gradient_of(z))
    with pytest.raises(IndexError):
        adam.step_(z, gradient_of(z))


# ---------------------------------------------------------------- state


@dataclasses.dataclass(eq=False)
class State(SearchState):
    z: Tensor
    label: Tensor
    adam: Adam
    blocks: tuple[Tensor, int]
    name: str


def make_state() -> State:
    z = draw(4, 2, 3)
    index = torch.arange(6)
    return State(torch.arange(4), z, torch.tensor([7, 8, 9, 6]), Adam(z, 0.1, 5), (index, 6), "a")


def test_keep_shortens_every_field_and_leaves_shared_ones_alone():
    state, z = make_state(), draw(4, 2, 3)
    assert len(state) == 4
    state.keep(torch.tensor([False, True, False, True]))
    assert state.rows.tolist() == [1, 3]
    assert torch.equal(state.z, z[[1, 3]])
    assert state.label.tolist() == [8, 6]
    assert [len(v) for v in (state.adam.first, state.adam.second, state.adam.count)] == [2, 2, 2]
    assert len(state.blocks[0]) == 6
    assert state.name == "a"
    state.keep(torch.tensor([False, True]))  # again: positions are those among the kept items
    assert state.rows.tolist() == [3]
    assert torch.equal(state.z, z[[3]])
    state.keep(torch.tensor([False]))
    assert len(state) == 0


def test_write_puts_values_back_at_the_items_own_rows():
    state, out = make_state(), torch.zeros(4, 2, 3, dtype=torch.float64)
    state.keep(torch.tensor([True, False, True, True]))
    state.write(out, state.z)
    assert torch.equal(out[[0, 2, 3]], state.z)
    assert not out[1].any()
    numbers = torch.zeros(4, dtype=torch.int64)
    state.write(numbers, torch.tensor([5, 6]), torch.tensor([2, 0]))  # positions: rows 3 and 0
    assert numbers.tolist() == [6, 0, 0, 5]
    state.write(numbers, torch.tensor([1]), torch.tensor([False, True, False]))  # a choice: row 2
    assert numbers.tolist() == [6, 0, 1, 5]


def test_per_item_broadcasts_against_items_of_any_shape():
    values = torch.tensor([1.0, 2.0])
    for shape in ((2,), (2, 3), (2, 1, 4, 4)):
        assert torch.equal(
            (per_item(values, torch.zeros(shape)) * torch.ones(shape))[1].unique(),
            torch.tensor([2.0]),
        )


# ---------------------------------------------------------------- scores and margins


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 2])


def test_margin_by_hand():
    assert logit_margin(LOGITS, TARGET).tolist() == [1.5, -2.0]


def test_score_and_log_odds_by_hand():
    score, odds = target_score(LOGITS, TARGET), log_odds(LOGITS, TARGET)
    for i, t in enumerate(TARGET.tolist()):
        weights = [math.exp(v) for v in LOGITS[i].tolist()]
        p = weights[t] / sum(weights)
        assert score[i].item() == pytest.approx(p, rel=1e-14)
        assert odds[i].item() == pytest.approx(math.log(p / (1 - p)), rel=1e-12)


def test_log_odds_do_not_saturate():
    logits = torch.tensor([[60.0, 0.0], [-60.0, 0.0]])
    target = torch.tensor([0, 0])
    assert log_odds(logits, target).tolist() == [60.0, -60.0]
    leaf = logits.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_odds(leaf, target).sum(), leaf)
    assert gradient.tolist() == [[1.0, -1.0], [1.0, -1.0]]
    (vanishing,) = torch.autograd.grad(target_score(leaf, target).sum(), leaf)
    assert vanishing.abs().max() < 1e-25
