"""A linear autoencoder of slices with noise, a linear black box and its agent, in float64."""

from __future__ import annotations

import torch
from torch import nn

from cf_utils.models.agent import Agent

SIDE, D, S, F = 4, 3, 4, 5


class LinearSlices(nn.Module):
    """decode(q, x_T) = W q + c + x_T; encode reads the plane of W, x_T is the rest."""

    def __init__(self):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(SIDE * SIDE, D, generator=gen).double())
        self.basis = nn.Parameter(basis)

    def encode(self, x):
        return (x.flatten(1) - 0.5) @ self.basis

    def invert(self, x, q, steps):
        return x - self.decode(q, torch.zeros_like(x), steps)

    def decode(self, q, noise, steps):
        return (q @ self.basis.T + 0.5).unflatten(1, (1, SIDE, SIDE)) + noise


class LinearBlackBox(nn.Module):
    """Logits (0, w.x + b) of patients x (B, S, SIDE, SIDE)."""

    def __init__(self, scale=3.0):
        super().__init__()
        gen = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(scale * torch.randn(S, SIDE, SIDE, generator=gen).double())
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def forward(self, x):
        z = (x * self.w).flatten(1).sum(1) + self.b
        return torch.stack([torch.zeros_like(z), z], 1)


class CurvedBlackBox(LinearBlackBox):
    """Logits (0, z + sin(3 z) / 2), rising but curved."""

    def forward(self, x):
        z = super().forward(x)[:, 1]
        return torch.stack([torch.zeros_like(z), z + (1.5 * z).sin() / 2], 1)


def make_agent(seed=24, join="concat"):
    """An agent with random weights."""
    gen = torch.Generator().manual_seed(seed)
    agent = Agent(D, F, S, join=join).double()
    with torch.no_grad():
        for p in agent.parameters():
            p.copy_(torch.randn(p.shape, generator=gen, dtype=torch.float64))
    return agent


def make_patients(n=9, seed=3):
    """Patients (n, S, SIDE, SIDE) around 0.5."""
    gen = torch.Generator().manual_seed(seed)
    return 0.5 + 0.2 * torch.randn(n, S, SIDE, SIDE, generator=gen).double()
