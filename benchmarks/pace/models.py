"""The models that are timed, with random weights and made-up inputs of the sizes that users have.

Every model maps one tensor to logits [N, C], or [N, L, C] with tokens as rows. `prefix` is the module whose output
is the first to be dropped: what has to run only once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

GPT2_VOCABULARY = 50257
PAD = 0


@dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        title: as tables name it. build: makes it. example: `n` made-up examples from a generator.
        prefix: path of the module whose output is the first to be dropped.
        batch_size, batches: how many examples; head_only: whether dropout is in the head alone.
        classes: C. tokens: whether each token of an example is a row.
    """

    title: str
    build: Callable[[], nn.Module]
    examples: Callable[[int, torch.Generator], Tensor]
    prefix: str
    batch_size: int
    batches: int = 1
    head_only: bool = False
    classes: int = 10
    tokens: bool = False

    def model(self) -> nn.Module:
        """The model with the same random weights every time, in eval mode."""
        torch.manual_seed(0)
        return self.build().eval()

    def inputs(self, batch: int) -> Tensor:
        """The examples of one batch, always the same."""
        return self.examples(self.batch_size, torch.Generator().manual_seed(batch))

    def smaller(self) -> Case:
        """The same with one batch."""
        return replace(self, batches=1)


class Logits(nn.Module):
    """A Hugging Face model that takes one tensor and returns its logits."""

    def __init__(self, network: nn.Module, argument: str, *, padded: bool = False) -> None:
        super().__init__()
        self.network = network
        self._argument = argument
        self._padded = padded

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of `inputs`; padding is masked out."""
        mask = {"attention_mask": (inputs != PAD).long()} if self._padded else {}
        logits: Tensor = self.network(**{self._argument: inputs}, **mask).logits
        return logits


class Recurrent(nn.Module):
    """A text classifier: embedding, dropout, LSTM of two layers with dropout between them, dropout, linear."""

    def __init__(self, vocabulary: int = 10_000, width: int = 128, hidden: int = 256, classes: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, dropout=0.3, batch_first=True)
        self.output = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [N, C] of token ids [N, L]."""
        states, _ = self.lstm(self.dropout(self.embedding(ids)))
        scores: Tensor = self.output(self.dropout(states[:, -1]))
        return scores


def _stages() -> list[nn.Module]:
    """Two convolutions with batch normalisation: [N, 1, 28, 28] to [N, 1568]."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return [*layers, nn.Flatten()]


def _cnn_last() -> nn.Module:
    features = nn.Sequential(*_stages(), nn.Linear(1568, 128), nn.ReLU())
    return nn.Sequential(OrderedDict(features=features, dropout=nn.Dropout(0.5), output=nn.Linear(128, 10)))


def _cnn_head() -> nn.Module:
    hidden = nn.Sequential(nn.Dropout(0.3), nn.Linear(1568, 128), nn.ReLU())
    parts = {"features": nn.Sequential(*_stages()), "hidden": hidden, "dropout": nn.Dropout(0.3)}
    return nn.Sequential(OrderedDict(parts, output=nn.Linear(128, 10)))


def _mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    for before in (784, 1024):
        layers += [nn.Linear(before, 1024), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), layers=nn.Sequential(*layers), output=nn.Linear(1024, 10)))


def _bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        num_labels=10,
        attn_implementation=attention,
    )
    return Logits(BertForSequenceClassification(config), "input_ids", padded=True)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=32,
        patch_size=4,
        num_labels=10,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return Logits(ViTForImageClassification(config), "pixel_values")


def _gpt2(width: int, layers: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=GPT2_VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64, use_cache=False)
    return Logits(GPT2LMHeadModel(config), "input_ids")


def _wide(classes: int) -> nn.Module:
    first = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
    return nn.Sequential(OrderedDict(first=first, dropout=nn.Dropout(0.3), output=nn.Linear(128, classes)))


def wide(classes: int) -> Case:
    """A small classifier of so many classes: what grows with them is the sums."""
    title = f"{classes} classes"
    return Case(title, lambda: _wide(classes), _normal(64), "first", 64, head_only=True, classes=classes)


def _normal(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: torch.randn((n, *shape), generator=generator)


def _tokens(length: int, vocabulary: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: torch.randint(1, vocabulary, (n, length), generator=generator)


def _padded_tokens(length: int, vocabulary: int) -> Callable[[int, torch.Generator], Tensor]:
    def examples(n: int, generator: torch.Generator) -> Tensor:
        ids = torch.randint(1, vocabulary, (n, length), generator=generator)
        lengths = torch.randint(length // 4, length + 1, (n, 1), generator=generator)
        return ids.masked_fill(torch.arange(length) >= lengths, PAD)

    return examples


_IMAGES = _normal(1, 28, 28)
_TEXTS = _padded_tokens(64, 30522)


def _bert_case(attention: str) -> Case:
    title = f"BERT 4 x 128, {attention}"
    return Case(title, lambda: _bert(attention), _TEXTS, "network.bert.embeddings", 64, 4)


def _gpt2_case(width: int, layers: int) -> Case:
    title, prefix = f"GPT-2 vocabulary, {layers} x {width}", "network.transformer.wte"
    examples = _tokens(16, GPT2_VOCABULARY)
    return Case(title, lambda: _gpt2(width, layers), examples, prefix, 4, classes=GPT2_VOCABULARY, tokens=True)


CASES: dict[str, Case] = {
    "cnn-last": Case("CNN, dropout before the last layer", _cnn_last, _IMAGES, "features", 256, 4, head_only=True),
    "cnn-head": Case("CNN, dropout in a two-layer head", _cnn_head, _IMAGES, "features", 256, 4, head_only=True),
    "mlp": Case("MLP 784-1024-1024", _mlp, _IMAGES, "flatten", 256, 4),
    "bert-eager": _bert_case("eager"),
    "bert-sdpa": _bert_case("sdpa"),
    "vit": Case("ViT 6 x 192", _vit, _normal(3, 32, 32), "network.vit.embeddings", 64, 2),
    "lstm": Case("LSTM, 2 layers", Recurrent, _tokens(50, 10_000), "embedding", 128, 4),
    "gpt2-256": _gpt2_case(256, 4),
    "gpt2-768": _gpt2_case(768, 2),
    "gpt2-small": _gpt2_case(768, 12),
}
"""Every model by the name that the command takes."""

SIDE_BY_SIDE = tuple(name for name in CASES if name != "gpt2-small")  # all pairs of it take too long


def find(name: str) -> Case:
    """A case by its name; `classes-C` is the small classifier of C classes."""
    return wide(int(name.removeprefix("classes-"))) if name.startswith("classes-") else CASES[name]
