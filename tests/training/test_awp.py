"""Adversarial weight perturbation: uphill, as far as asked, and back."""

import torch
from torch import nn

from patchguard.training.awp import WeightPerturbation


def test_weights_move_uphill_by_their_share_and_come_back_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    inputs = torch.randn(16, 4)

    def loss() -> torch.Tensor:
        return model(inputs).square().mean()

    calm = loss().item()
    perturbation = WeightPerturbation(model)
    perturbation.push(loss(), 0.1)
    assert loss().item() > calm
    for old, new in zip(before, model.parameters(), strict=True):
        moved = (new - old).norm() / old.norm()
        torch.testing.assert_close(moved, torch.tensor(0.1 if old.ndim > 1 else 0.0))
    perturbation.pop()
    assert all(map(torch.equal, before, model.parameters()))


def test_weights_that_do_not_learn_stay_where_they_are() -> None:
    fixed = nn.Linear(4, 4).requires_grad_(False)
    model = nn.Sequential(fixed, nn.Linear(4, 1))
    before = fixed.weight.clone()
    perturbation = WeightPerturbation(model)
    perturbation.push(model(torch.ones(1, 4)).sum(), 0.5)
    assert torch.equal(fixed.weight, before)
