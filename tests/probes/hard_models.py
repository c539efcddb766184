"""Rarer ways of writing dropout: recurrent and attention variants, stochastic depth by hand, wrappers."""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
import torch.utils.checkpoint
from model_zoo import C, Case, Written, dropped
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

WIDTH = 8


def sequence(m, x) -> Tensor:
    """[N, 3, WIDTH] from [N, 5]."""
    return torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1)


def recurrent(m, x):
    return m.head(m.rnn(sequence(m, x))[0][..., -WIDTH:].mean(1))


def packed(m, x):
    lengths = torch.tensor([3, 2, 1] * (len(x) // 3) + [3] * (len(x) % 3))
    pack = pack_padded_sequence(sequence(m, x), lengths, batch_first=True, enforce_sorted=False)
    return m.head(m.rnn(pack)[1][0][-1])


def attended(m, x, **options):
    h = sequence(m, x)
    return m.head(m.attention(h, h, h, **options)[0].mean(1))


def attended_by_function(m, x):
    h, a = sequence(m, x).transpose(0, 1), m.attention
    out, _ = F.multi_head_attention_forward(
        *(h, h, h, WIDTH, 2, a.in_proj_weight, a.in_proj_bias, None, None, False, m.rate),
        *(a.out_proj.weight, a.out_proj.bias, m.training),
    )
    return m.head(out.mean(0))


def causal_and_grouped(m, x, rate=0.3):
    q = sequence(m, x).unflatten(2, (4, 2)).transpose(1, 2)
    k = q[:, ::2]
    out = F.scaled_dot_product_attention(q, k, k, None, rate if m.training else 0.0, is_causal=True, enable_gqa=True)
    return m.head(out.transpose(1, 2).flatten(2).mean(1))


def padded(m, x):
    mask = torch.zeros(len(x), 3, dtype=torch.bool)
    mask[::2, -1] = True
    return m.head(m.encoder(sequence(m, x), src_key_padding_mask=mask)[:, 0])


def translated(m, x):
    h = sequence(m, x)
    return m.head(m.transformer(h, h[:, :2]).mean(1))


def shaped(m, x, *shape):
    h = m.body(x)
    h = h.reshape(len(h), *shape) if shape else h
    return m.head(m.drop(h).flatten(1))


def depth(m, x, mask):
    h = torch.tanh(m.body(x))
    return m.head((h * mask(h) if m.training else h) + 0.1)


def floored(h):
    return (0.7 + torch.rand((len(h), 1), dtype=h.dtype)).floor_() / 0.7


def compared(h):
    return (torch.rand(len(h), 1) >= 0.3).to(h) / 0.7


def inverted(h):
    return torch.ones_like(h).masked_fill(torch.rand(len(h), 1) < 0.3, 0.0) / 0.7


def whole_batch(h):
    return h.new_empty(1, 1).bernoulli_(0.7).div_(0.7)


def per_row(h):
    return h.new_empty(len(h)).bernoulli_(0.7)[:, None] / 0.7


def branch(choose):
    def forward(m, x):
        h = m.body(x)
        return m.head(h) if m.training and choose() < 0.3 else m.head(torch.tanh(h) + 0.1)

    return forward


def noisy(m, x):
    h = m.body(x)
    return m.head(h + 0.3 * torch.randn_like(h)) if m.training else m.head(h)


def gumbel(m, x):
    z = m.body(x)
    return m.head(F.gumbel_softmax(z) if m.training else z.softmax(-1))


class Adapter(nn.Module):
    """A linear layer with a low-rank adapter beside it, whose input is dropped."""

    def __init__(self):
        super().__init__()
        self.base, self.a, self.b = nn.Linear(5, WIDTH), nn.Linear(5, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.3)})

    def forward(self, x):
        return self.base(x) + self.b(self.a(self.lora_dropout["default"](x)))


class DropWeight(nn.Module):
    def forward(self, weight):
        return F.dropout(weight, 0.3, self.training)


def with_dropped_weight():
    model = Written(lambda m, x: m.head(F.relu(m.body(x))))
    parametrize.register_parametrization(model.body, "weight", DropWeight())
    return model


class WeightDrop(nn.Module):
    """Recurrent weights dropped in front of every pass, as AWD-LSTM has it."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.raw = nn.Parameter(rnn.weight_hh_l0.detach().clone())
        del rnn._parameters["weight_hh_l0"]
        rnn.weight_hh_l0 = self.raw.detach()

    def forward(self, x):
        self.rnn.weight_hh_l0 = F.dropout(self.raw.clone(), 0.3, self.training)  # no parameter, in eval either
        return self.rnn(x)


def checkpointed(m, x, reentrant):
    part = lambda h: m.drop(F.relu(m.body(h)))  # noqa: E731 - what users pass to checkpoint
    return m.head(torch.utils.checkpoint.checkpoint(part, x, use_reentrant=reentrant))


class OwnFunction(torch.autograd.Function):
    """Dropout with a derivative of its own."""

    @staticmethod
    def forward(ctx, x, rate):
        mask = torch.bernoulli(torch.full_like(x, 1 - rate)) / (1 - rate)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


def by_own_function(m, x):
    h = F.relu(m.body(x))
    return m.head(OwnFunction.apply(h, 0.3) if m.training else h)


def mapped(m, x):
    return torch.vmap(lambda row: m.head(m.drop(F.relu(m.body(row)))), randomness="different")(x)


def scripted():
    model = Written(dropped, drop=nn.Sequential(nn.Dropout(0.3), nn.Identity()))
    model.drop = torch.jit.script(model.drop)
    return model


def lstm(**options):
    model = Written(recurrent, rnn=nn.LSTM(WIDTH, WIDTH, batch_first=True, **options))
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            parameter.mul_(1 if "bias" in name else 3)  # of the default little comes through three layers
        model.head.weight.mul_(5)
    return model


def attention(rate=0.3):
    return nn.MultiheadAttention(WIDTH, 2, rate, batch_first=True)


def by_function(rate):
    model = Written(attended_by_function, attention=attention())
    model.rate = rate
    return model


HALF_RECURRENT = {("rnn", 0): 0.4, ("rnn", 1): 0.4}
_LAYER = ("dropout1", "dropout2", "dropout3")
TRANSFORMER_SITES = {
    **{(f"transformer.encoder.layers.0.{n}", 0): 0.2 for n in ("self_attn", "dropout", "dropout1", "dropout2")},
    **{(f"transformer.decoder.layers.0.{n}", 0): 0.2 for n in ("self_attn", "multihead_attn", "dropout", *_LAYER)},
}
PADDED_SITES = {(f"encoder.layers.0.{n}", 0): 0.2 for n in ("self_attn", "dropout", "dropout1", "dropout2")}


def depth_case(mask, *, shared=False):
    finding = "masks_shared" if shared else None
    return Case(lambda: Written(partial(depth, mask=mask)), {("", 0): 0.3}, kind="stochastic depth", finding=finding)


HARD_CASES = {
    "bidirectional lstm with projection": Case(
        lambda: lstm(num_layers=3, dropout=0.4, bidirectional=True, proj_size=4), HALF_RECURRENT, kind="recurrent"
    ),
    "rnn": Case(
        lambda: Written(recurrent, rnn=nn.RNN(WIDTH, WIDTH, 3, dropout=0.4, batch_first=True)),
        HALF_RECURRENT,
        kind="recurrent",
    ),
    "packed lstm": Case(
        lambda: Written(packed, rnn=nn.LSTM(WIDTH, WIDTH, 2, dropout=0.4, batch_first=True)),
        {("rnn", 0): 0.4},
        kind="recurrent",
        finding="masks_shared",  # time comes first in the mask, and rows of it are not whole examples
    ),
    "multi-head attention with weights": Case(
        lambda: Written(attended, attention=attention()), {("attention", 0): 0.3}, kind="attention dropout"
    ),
    "multi-head attention by function": Case(lambda: by_function(0.3), {("", 0): 0.3}, kind="attention dropout"),
    "causal, grouped attention": Case(lambda: Written(causal_and_grouped), {("", 0): 0.3}, kind="attention dropout"),
    "padded encoder": Case(
        lambda: Written(
            padded,
            encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.2, batch_first=True), 1, enable_nested_tensor=True
            ),
        ),
        PADDED_SITES,
        kind="",
    ),
    "transformer": Case(
        lambda: Written(translated, transformer=nn.Transformer(WIDTH, 2, 1, 1, 16, 0.2, batch_first=True)),
        TRANSFORMER_SITES,
        kind="",
    ),
    "dropout 1d": Case(
        lambda: Written(partial(shaped), drop=nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Dropout1d(0.3))),
        {("drop.1", 0): 0.3},
        kind="feature dropout",
    ),
    "dropout 3d": Case(
        lambda: Written(lambda m, x: shaped(m, x, 4, 2, 1, 1), drop=nn.Dropout3d(0.3)),
        {("drop", 0): 0.3},
        kind="feature dropout",
    ),
    "feature alpha dropout": Case(
        lambda: Written(lambda m, x: shaped(m, x, 4, 2), drop=nn.FeatureAlphaDropout(0.3)),
        {("drop", 0): 0.3},
        kind="alpha dropout",
    ),
    "depth by floor": depth_case(floored),
    "depth by comparison": depth_case(compared),
    "depth by masked_fill": depth_case(inverted),
    "depth of a whole batch": depth_case(whole_batch, shared=True),
    "depth by row": depth_case(per_row),
    "branch by torch": Case(
        lambda: Written(branch(lambda: torch.rand(1))), {("", 0): None}, kind="random (rand)", finding="masks_shared"
    ),
    "branch by item": Case(
        lambda: Written(branch(lambda: torch.rand(()).item())),
        {("", 0): None},
        kind="random (rand)",
        finding="masks_shared",
    ),
    "branch by python": Case(lambda: Written(branch(random.random)), {}, finding="masks_shared"),
    "gaussian noise": Case(lambda: Written(noisy), {("", 0): None}, kind="random (randn_like)"),
    "gumbel softmax": Case(lambda: Written(gumbel), {("", 0): None}, kind="random (exponential_)"),
    "rate 1 in an lstm": Case(
        lambda: lstm(num_layers=3, dropout=1.0), {("rnn", 0): 1.0, ("rnn", 1): 1.0}, kind="recurrent"
    ),
    "rate 1 in attention": Case(
        lambda: Written(partial(causal_and_grouped, rate=1.0)), {("", 0): 1.0}, kind="attention dropout"
    ),
    "rate 1 in multi-head attention": Case(
        lambda: Written(attended, attention=attention(1.0)), {("attention", 0): 1.0}, kind="attention dropout"
    ),
    "rate 1 in multi-head attention without weights": Case(
        lambda: Written(partial(attended, need_weights=False), attention=attention(1.0)),
        {("attention", 0): 1.0},
        kind="attention dropout",
    ),
    "rate 1 in multi-head attention by function": Case(
        lambda: by_function(1.0), {("", 0): 1.0}, kind="attention dropout"
    ),
    "adapter": Case(
        lambda: Written(lambda m, x: m.head(F.relu(m.adapter(x))), adapter=Adapter()),
        {("adapter.lora_dropout.default", 0): 0.3},
    ),
    "parametrized weight": Case(
        with_dropped_weight, {("body.parametrizations.weight.0", 0): 0.3}, finding="masks_shared"
    ),
    "weight-dropped lstm": Case(
        lambda: Written(recurrent, rnn=WeightDrop(nn.LSTM(WIDTH, WIDTH, batch_first=True))),
        {("rnn", 0): 0.3},
        finding="masks_shared",
    ),
    "checkpointed": Case(
        lambda: Written(partial(checkpointed, reentrant=False), drop=nn.Dropout(0.3)), {("drop", 0): 0.3}
    ),
    "checkpointed, reentrant": Case(
        lambda: Written(partial(checkpointed, reentrant=True), drop=nn.Dropout(0.3)), {("drop", 0): 0.3}
    ),
    "autograd function": Case(lambda: Written(by_own_function), {("", 0): 0.3}),
    "vmap in the model": Case(lambda: Written(mapped, drop=nn.Dropout(0.3)), {("drop", 0): 0.3}),
    "scripted part": Case(scripted, {("drop", 0): 0.3}),
    "data parallel": Case(
        lambda: nn.DataParallel(nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.Linear(WIDTH, C))),
        {("module.2", 0): 0.3},
    ),
}
