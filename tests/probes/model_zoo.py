"""Small models with dropout of every kind, their sites, and brute force to hold the measurements against."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
import torch.utils.checkpoint
from torch import Tensor, nn

from rdrop_probes.discovery import keeps_statistics

N, C = 12, 3


class Written(nn.Module):
    """A model written as a function of itself and its input."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self._written = forward
        for name, module in modules.items():
            self.add_module(name, module)
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._written(self, *args, **kwargs)


def functional(m, x):
    x = F.dropout(x, 0.2, training=m.training)
    return m.head(F.dropout(F.relu(m.body(x)), p=0.3, training=m.training))


def attention(m, x):
    h = torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1)
    return m.head(m.attention(h, h, h, need_weights=False)[0].mean(1))


def encoder(m, x):
    return m.head(m.encoder(torch.stack([m.body(x), m.body(-x)], 1)).mean(1))


def recurrent(m, x):
    return m.head(m.rnn(torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1))[0][:, -1])


def scaled_attention(m, x):
    h = torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1)
    return m.head(F.scaled_dot_product_attention(h, h, h, dropout_p=0.3 if m.training else 0.0).mean(1))


def drop_path(m, x):
    h = torch.tanh(m.body(x))
    if m.training:
        h = h * x.new_empty(len(x), 1).bernoulli_(0.7).div_(0.7)
    return m.head(h + 0.1)


def random_depth(m, x):
    h = torch.tanh(m.body(x))
    if m.training:
        h = torch.where(torch.rand(len(x), 1) < 0.7, h / 0.7, 0.0)
    return m.head(h + 0.1)


class TakesFlag(nn.Module):
    def forward(self, x, training):
        return F.dropout(x, 0.3, training)


def flag_of_parent(m, x):
    return m.head(m.child(F.relu(m.body(x)), m.training))


def unguarded(m, x):
    return m.head(m.noisy(F.relu(m.body(x))))


class Unguarded(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3)


def weight_dropout(m, x):
    return m.head(F.relu(F.linear(x, F.dropout(m.body.weight, 0.3, m.training))))


def dropped(m, x):
    return m.head(m.drop(F.relu(m.body(x))))


def dropped_first(m, x):
    return m.head(F.relu(m.drop(m.body(x))))


def dropped_whole(m, x):
    return m.head(F.dropout(F.relu(m.body(x)), 1.0, m.training))


def by_keyword(m, x, scale):
    return dropped(m, x * scale)


def two_inputs(m, x, y):
    return dropped(m, x + y)


def legacy_names(m, x):
    return m.head(torch.dropout(F.relu(m.body(x)), p=0.3, train=m.training))


def from_numpy(m, x):
    h = F.relu(m.body(x))
    mask = torch.from_numpy(np.random.random(h.shape) > 0.3).to(h) if m.training else 0.7  # noqa: NPY002 - as users do
    return m.head(h * mask / 0.7)


def gaussian(m, x):
    h = F.relu(m.body(x))
    return m.head(h * torch.normal(1.0, 0.4, h.shape)) if m.training else m.head(h)


class Inference(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def called_directly(m, x):
    return m.head(m.drop.forward(F.relu(m.body(x))))


def needs_its_brothers_flag(m, x):
    return m.child(m.head(m.body(x)), m.brother.training)


class BatchNormByHand(nn.Module):
    """Functional batch norm and functional dropout in one module, under one flag."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, x):
        h = F.batch_norm(self.body(x), self.running_mean, self.running_var, training=self.training)
        return self.head(F.dropout(F.relu(h), 0.3, self.training))


class Counting(nn.Module):
    """Dropout beside a buffer that train mode updates and eval mode computes with."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(5))
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.centre.add_(x.mean(0))
        return self.head(F.dropout(F.relu(self.body(x - self.centre)), 0.3, self.training))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(24, C)
    )


@dataclass(frozen=True)
class Case:
    """A model with its sites: rate by path and ordinal."""

    build: Callable[[], nn.Module]
    sites: dict[tuple[str, int], float | None]
    inputs: Callable[[], Any] = field(default=lambda: torch.randn(N, 5))
    kind: str = "dropout"
    finding: str | None = None


ENCODER_SITES = {
    (f"encoder.layers.{i}.{name}", 0): 0.2 for i in (0, 1) for name in ("self_attn", "dropout", "dropout1", "dropout2")
}


CASES = {
    "modules": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C)), {("2", 0): 0.3}
    ),
    "input dropout": Case(
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, C)),
        {("0", 0): 0.2, ("3", 0): 0.4},
    ),
    "functional": Case(lambda: Written(functional), {("", 0): 0.2, ("", 1): 0.3}),
    "keyword arguments of torch.dropout": Case(lambda: Written(legacy_names), {("", 0): 0.3}),
    "transformer encoder": Case(
        lambda: Written(
            encoder, encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True), 2)
        ),
        ENCODER_SITES,
        kind="",
    ),
    "multi-head attention": Case(
        lambda: Written(attention, attention=nn.MultiheadAttention(8, 2, 0.3, batch_first=True)),
        {("attention", 0): 0.3},
        kind="attention dropout",
    ),
    "lstm": Case(
        lambda: Written(recurrent, rnn=nn.LSTM(8, 8, 2, dropout=0.4, batch_first=True)),
        {("rnn", 0): 0.4},
        kind="recurrent dropout",
    ),
    "gru": Case(
        lambda: Written(recurrent, rnn=nn.GRU(8, 8, 3, dropout=0.4, batch_first=True)),
        {("rnn", 0): 0.4, ("rnn", 1): 0.4},
        kind="recurrent dropout",
    ),
    "feature maps beside batch norm": Case(
        cnn, {("3", 0): 0.3}, lambda: torch.randn(N, 1, 4, 4), kind="feature dropout"
    ),
    "scaled dot product attention": Case(lambda: Written(scaled_attention), {("", 0): 0.3}, kind="attention dropout"),
    "stochastic depth": Case(lambda: Written(drop_path), {("", 0): 0.3}, kind="stochastic depth"),
    "stochastic depth from torch.rand": Case(lambda: Written(random_depth), {("", 0): 0.3}, kind="stochastic depth"),
    "the parent's flag": Case(lambda: Written(flag_of_parent, child=TakesFlag()), {("child", 0): 0.3}),
    "in place": Case(lambda: Written(dropped_first, drop=nn.Dropout(0.3, inplace=True)), {("drop", 0): 0.3}),
    "alpha dropout": Case(
        lambda: Written(dropped, drop=nn.AlphaDropout(0.3)), {("drop", 0): 0.3}, kind="alpha dropout"
    ),
    "rate 0": Case(lambda: Written(dropped, drop=nn.Dropout(0.0)), {}, finding="no_dropout"),
    "no dropout": Case(lambda: Written(dropped, drop=nn.Identity()), {}, finding="no_dropout"),
    "rate 1": Case(lambda: Written(dropped, drop=nn.Dropout(1.0)), {("drop", 0): 1.0}),
    "rate 1, functional": Case(lambda: Written(dropped_whole), {("", 0): 1.0}),
    "unguarded": Case(lambda: Written(unguarded, noisy=Unguarded()), {("noisy", 0): 0.3}, finding="dirty_eval"),
    "the child's forward, past its hooks": Case(lambda: Written(called_directly, drop=nn.Dropout(0.3)), {("", 0): 0.3}),
    "a brother's flag": Case(
        lambda: Written(needs_its_brothers_flag, child=TakesFlag(), brother=nn.Identity()), {("child", 0): 0.3}
    ),
    "a rare operator": Case(lambda: Written(gaussian), {("", 0): None}, kind="random (normal)"),
    "inference mode": Case(
        lambda: Inference(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C)), {("2", 0): 0.3}
    ),
    "weights": Case(lambda: Written(weight_dropout), {("", 0): 0.3}, finding="masks_shared"),
    "keyword inputs": Case(
        lambda: Written(by_keyword, drop=nn.Dropout(0.3)),
        {("drop", 0): 0.3},
        lambda: {"x": torch.randn(N, 5), "scale": torch.rand(N, 1)},
    ),
    "tuple of inputs": Case(
        lambda: Written(two_inputs, drop=nn.Dropout(0.3)),
        {("drop", 0): 0.3},
        lambda: (torch.randn(N, 5), torch.randn(N, 5)),
    ),
}


def run(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def brute_force(
    model: nn.Module, inputs: Any, passes: int = 300, forward: Callable[[nn.Module, Any], Tensor] = run
) -> Tensor:
    """Log-probabilities [passes, N, C] of plain train mode, batch norm in eval, with torch's own randomness."""
    model.train()
    for module in model.modules():
        if keeps_statistics(module):
            module.eval()
    with torch.no_grad():
        log_p = torch.stack([forward(model, inputs).double().log_softmax(-1) for _ in range(passes)])
    model.eval()
    return log_p


def mean_pairwise_kl(log_p: Tensor) -> float:
    """Mean over all ordered pairs, then over examples."""
    p, k = log_p.exp(), len(log_p)
    cross = torch.einsum("inc,jnc->ijn", p, log_p)  # [K, K, N]
    kl = cross.diagonal().T[:, None] - cross
    return float(kl.sum((0, 1)).mean() / (k * (k - 1)))


def with_standard_error(statistic: Callable[[Tensor], float], log_p: Tensor, blocks: int = 20) -> tuple[float, float]:
    """A statistic of independent passes, with its delete-a-block jackknife standard error."""
    parts = log_p.chunk(blocks)
    without = np.array([statistic(torch.cat(parts[:i] + parts[i + 1 :])) for i in range(blocks)])
    return statistic(log_p), float(np.sqrt((blocks - 1) / blocks * ((without - without.mean()) ** 2).sum()))


MLP = CASES["modules"]


def columns_of(found) -> dict[str, list[float]]:
    return {name: column.values.tolist() for name, column in found.columns.items()}
