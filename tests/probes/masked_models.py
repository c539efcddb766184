"""Models with several sites in double precision, beside each the same model written out with masks as arguments.

`by_hand(x, masks)` multiplies every site's input by its mask, scaled as dropout scales it; a site without one is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from torch import Tensor, nn

from rdrop_probes.interception import DrawInterceptor, ModulePaths
from rdrop_probes.masks import Sampler
from rdrop_probes.sites import SitePlan
from rdrop_probes.state import flags, preserved

N, C = 6, 4
Masks = Mapping[tuple[str, int], Any]


class Functional(nn.Module):
    """Two sites in one module, after a layer that is the same for all sub-models, and a third in a child."""

    rates = 0.2, 0.3

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, C)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(torch.tanh(self.a(x)), self.rates[0], self.training)
        h = self.drop(torch.tanh(self.b(h)))
        return 2 * self.c(F.dropout(h, self.rates[1], self.training))

    def by_hand(self, x: Tensor, masks: Masks) -> Tensor:
        h = torch.tanh(self.a(x)) * masks.get(("", 0), 1)
        h = torch.tanh(self.b(h)) * masks.get(("drop", 0), 1)
        return 2 * self.c(h * masks.get(("", 1), 1))


class Maps(nn.Module):
    """Feature maps dropped whole, before and behind a batch normalisation, then units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.drop, self.again, self.last = nn.Dropout2d(0.25), nn.Dropout2d(0.2), nn.Dropout(0.4)
        self.head = nn.Linear(16, C)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.drop(F.relu(self.one(x))))
        return 2 * self.head(self.last(self.again(F.relu(self.two(h))).flatten(1)))

    def by_hand(self, x: Tensor, masks: Masks) -> Tensor:
        h, norm = F.relu(self.one(x)) * masks.get(("drop", 0), 1), self.norm
        h = (h - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
        h = h * norm.weight[:, None, None] + norm.bias[:, None, None]
        h = F.relu(self.two(h)) * masks.get(("again", 0), 1)
        return 2 * self.head(h.flatten(1) * masks.get(("last", 0), 1))


class Recurrent(nn.Module):
    """Two sites between the layers of one LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, 3, dropout=0.4, batch_first=True), nn.Linear(6, C)
        with torch.no_grad():
            for name, parameter in self.rnn.named_parameters():
                parameter.mul_(1 if "bias" in name else 3)  # of the default little comes through three layers

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.head(self.rnn(x)[0][:, -1])

    def by_hand(self, x: Tensor, masks: Masks) -> Tensor:
        for layer in range(3):
            one = nn.LSTM(x.shape[-1], 6, batch_first=True, dtype=x.dtype)
            own = {name: getattr(self.rnn, name.replace("l0", f"l{layer}")) for name, _ in one.named_parameters()}
            one.load_state_dict(own)
            x = one(x)[0]
            if ("rnn", layer) in masks:  # masks are [time, examples, features] where the model takes examples first
                mask = masks["rnn", layer]
                x = x * (mask.transpose(0, 1) if mask.shape[:2] != x.shape[:2] else mask)
        return 8 * self.head(x[:, -1])


class Depth(nn.Module):
    """A branch that is left out whole by uniform numbers, as Hugging Face has it, with dropout in the same module."""

    def __init__(self, keep: float = 0.7) -> None:
        super().__init__()
        self.a, self.b, self.c, self.keep = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, C), keep

    def forward(self, x: Tensor) -> Tensor:
        h, branch = self.a(x), torch.tanh(self.b(self.a(x)))
        if self.training:
            mask = (self.keep + torch.rand((len(x), 1), dtype=x.dtype)).floor_()
            branch = branch.div(self.keep) * mask
        return 2 * self.c(F.dropout(h + branch, 0.3, self.training))

    def by_hand(self, x: Tensor, masks: Masks) -> Tensor:
        h = self.a(x)
        h = h + torch.tanh(self.b(h)) * masks.get(("", 0), 1)
        return 2 * self.c(h * masks.get(("", 1), 1))


class Fused(nn.Module):
    """The operator that other devices have, of two sites in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.native_dropout(torch.tanh(self.a(x)), 0.2, self.training)[0]
        return 2 * self.c(torch.native_dropout(torch.tanh(self.b(h)), 0.3, self.training)[0])

    def by_hand(self, x: Tensor, masks: Masks) -> Tensor:
        h = torch.tanh(self.a(x)) * masks.get(("", 0), 1)
        return 2 * self.c(torch.tanh(self.b(h)) * masks.get(("", 1), 1))


@dataclass(frozen=True)
class Model:
    """A model, its inputs, and how its sub-models can be run."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor] = field(default=lambda: torch.randn(N, 5, dtype=torch.float64))
    strategies: tuple[str, ...] = ("loop", "vmap", "fold")


MODELS = {
    "functional": Model(Functional),
    "feature maps": Model(Maps, lambda: torch.randn(N, 1, 5, 5, dtype=torch.float64)),
    "lstm": Model(Recurrent, lambda: torch.randn(N, 3, 3, dtype=torch.float64), ("loop", "fold")),
    "stochastic depth": Model(Depth),
    "fused": Model(Fused, strategies=("loop", "fold")),
}
WAYS = [(name, strategy) for name, model in MODELS.items() for strategy in model.strategies]


def sub_models_by_hand(
    model: Any, plan: SitePlan, x: Tensor, active: set[tuple[str, int]], k: int, seed: int = 0
) -> Tensor:
    """Logits [k, N, C] with only some sites on, under the masks of the whole."""
    with torch.no_grad():
        return torch.stack([model.by_hand(x, _masks(model, plan, x, active, seed, number)) for number in range(k)])


def _masks(model: nn.Module, plan: SitePlan, x: Tensor, active: set[tuple[str, int]], seed: int, number: int) -> Masks:
    """What the sites draw in a whole pass, scaled."""
    found = {}
    sampler = Sampler(plan.sites, seed=seed, sub_models=[number], start=0, n=len(x))

    def note(draw: Any, out: Tensor) -> None:
        sampler(draw, out)
        key = (draw.path, draw.ordinal)
        keep = 1 - plan.sites[key].rate
        drawn = (out + keep).floor() if draw.keep is None else out
        found[key] = (drawn.double() / keep).clone()

    paths = ModulePaths(model)
    with preserved(model), torch.no_grad(), flags(model, plan.modules), paths.tracked(), DrawInterceptor(paths, note):
        model(x)
    found |= {key: torch.zeros(()) for key, site in plan.sites.items() if site.rate == 1}  # it draws nothing
    return {key: mask for key, mask in found.items() if key in active}


def mean_pairwise_kl(logits: Tensor) -> Tensor:
    """KL between all ordered pairs of different sub-models, averaged over them, by example [N]: one by one."""
    log_p, k = logits.double().log_softmax(-1), len(logits)
    total = torch.zeros(logits.shape[1], dtype=torch.float64)
    for i in range(k):
        for j in range(k):
            total += (log_p[i].exp() * (log_p[i] - log_p[j])).sum(-1)
    return total / (k * (k - 1))
