"""Rates and kinds told from what becomes of a draw; where it cannot be told, nothing is claimed."""

from functools import partial

import pytest
import torch
from torch import nn

from rdrop_probes.discovery import find_sites
from rdrop_probes.state import preserved

TOLD = {  # drop probability, how often the mask is 0 in many draws
    "floor": lambda x: x * (0.8 + torch.rand(len(x), 1)).floor(),
    "floor, in place, scaled": lambda x: x.div(0.8) * torch.rand(len(x), 1).add_(0.8).floor_(),
    "less": lambda x: x * (torch.rand(len(x), 1) < 0.8),
    "greater": lambda x: x * (torch.rand(len(x), 1) > 0.2).float(),
    "shifted": lambda x: x * ((torch.rand(len(x), 1) - 0.5) < 0.3),
    "not": lambda x: x * ~(torch.rand(len(x), 1) < 0.2),
    "where": lambda x: torch.where(torch.rand(len(x), 1) < 0.2, torch.zeros_like(x), x),
    "where, the other way": lambda x: torch.where(torch.rand(len(x), 1) < 0.8, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(torch.rand(len(x), 1) < 0.2, 0.0),
    "masked_fill by bernoulli": lambda x: x.masked_fill(torch.full((len(x), 1), 0.2).bernoulli().bool(), 0.0),
    "reshaped": lambda x: x * (torch.rand(len(x)) < 0.8)[:, None].expand_as(x),
    "rand_like": lambda x: x * (torch.rand_like(x[:, :1]) >= 0.2).to(x),
}
UNTOLD = {
    "noise": lambda x: x * torch.rand(len(x), 1),
    "changed in place": lambda x: x * (torch.rand(len(x), 1).add_(0.8).floor_().clamp_(min=0.5)),
    "against a tensor": lambda x: x * (torch.rand(len(x), 1) < x.abs()),
    "normal": lambda x: x * (torch.randn(len(x), 1) < 0.8),
    "branch": lambda x: x if torch.rand(()) < 0.8 else -x,
    "no zero": lambda x: torch.where(torch.rand(len(x), 1) < 0.2, x, -x),
    "scaled, then compared": lambda x: x * (torch.rand(len(x), 1) * 2 < 1),
    "scaled and shifted": lambda x: x * ((torch.rand(len(x), 1) * 2 - 1) > 0),
    "halved": lambda x: x * (torch.rand(len(x), 1) / 2 < 0.4),
    "scaled in place": lambda x: x * torch.rand(len(x), 1).mul_(100).ge(30),
    "signs": lambda x: x * (torch.rand(len(x), 1).lt(0.5).to(x) * 2 - 1),
    "beyond one": lambda x: x * (1.5 + torch.rand(len(x), 1)).floor(),
}


class Drops(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def forward(self, x):
        return self.drop(x) if self.training else x


def only_site(drop, x):
    model = Drops(drop)
    with preserved(model):
        (site,) = find_sites(model, lambda n: model(x[:n]), len(x)).sites.values()
    return site


@pytest.mark.parametrize("name", TOLD)
def test_rates_of_masks_made_from_uniform_numbers(name):
    site = only_site(TOLD[name], torch.randn(8, 5))
    assert site.rate == pytest.approx(0.2)
    assert site.kind == "stochastic depth"
    n = 20_000
    dropped = (TOLD[name](torch.ones(n, 5)) == 0).all(1).double().mean()
    assert abs(float(dropped) - 0.2) < 4 * (0.2 * 0.8 / n) ** 0.5


@pytest.mark.parametrize("name", UNTOLD)
def test_what_is_no_mask_of_a_known_rate_is_given_none(name):
    site = only_site(UNTOLD[name], torch.randn(8, 5))
    assert site.rate is None
    assert site.kind.startswith("random (")


def attention(x, dim=-1, *, cast=False):
    p = (x @ x.mT).softmax(dim)
    p = p.double().to(x) if cast else p
    return nn.functional.dropout(p, 0.2) @ x


@pytest.mark.parametrize(
    ("drop", "kind"),
    [
        (attention, "attention dropout"),
        (partial(attention, cast=True), "attention dropout"),
        (partial(attention, dim=1), "dropout"),  # softmax over queries
        (lambda x: nn.functional.dropout(x.softmax(-1)[:, 0], 0.2), "dropout"),  # of two dimensions: probabilities
        (lambda x: nn.functional.dropout(x @ x.mT, 0.2) @ x, "dropout"),
    ],
)
def test_dropout_of_a_softmax_over_the_last_dimension_is_of_attention(drop, kind):
    site = only_site(drop, torch.randn(8, 3, 4))
    assert (site.kind, site.rate) == (kind, 0.2)
