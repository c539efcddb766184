"""EPKL of a Hugging Face classifier or tagger by brute force, to hold `rdrop-analyze --limit N` against.

The model in plain train mode with torch's own randomness, one example at a time without padding, every ordered pair of
passes: slow, and with none of this package's code.

    python examples/brute_force.py news/alpha0-seed0 news/test.csv
    python examples/brute_force.py tagger/alpha0-seed0 tagger/test.jsonl
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer


def main() -> None:
    """Print the mean over texts, or over the words of all sentences."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="the Hugging Face directory")
    parser.add_argument("data", type=Path, help=".csv with text, or .jsonl with tokens")
    parser.add_argument("--limit", type=int, default=50, help="examples")
    parser.add_argument("--passes", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tagger = options.data.suffix == ".jsonl"
    kind = AutoModelForTokenClassification if tagger else AutoModelForSequenceClassification
    model, tokenizer = kind.from_pretrained(options.model).train(), AutoTokenizer.from_pretrained(options.model)
    examples = (sentences if tagger else texts)(tokenizer, options.data)
    values = [epkl(passes(model, *example, options.passes)) for example in itertools.islice(examples, options.limit)]
    rows = torch.cat(values)
    print(f"{options.model}: EPKL {rows.mean():.4f} nats over {len(rows)} {'words' if tagger else 'texts'}")


def texts(tokenizer: AutoTokenizer, path: Path) -> Iterator[tuple[dict[str, Tensor], slice]]:
    """Inputs of each text; its one row of class scores counts."""
    for text in pd.read_csv(path)["text"]:
        yield dict(tokenizer(text, truncation=True, return_tensors="pt")), slice(None)


def sentences(tokenizer: AutoTokenizer, path: Path) -> Iterator[tuple[dict[str, Tensor], list[int]]]:
    """Inputs of each sentence; the first piece of each word counts."""
    for line in path.open(encoding="utf-8"):
        words = json.loads(line)["tokens"]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
        owners = encoded.word_ids()
        yield dict(encoded), [i for i, owner in enumerate(owners) if i == 0 or owners[i - 1] != owner]


@torch.no_grad()
def passes(model: nn.Module, inputs: dict[str, Tensor], counted: slice | list[int], count: int) -> Tensor:
    """Log-probabilities [passes, rows, classes] of the rows that count."""
    logits = torch.stack([model(**inputs).logits for _ in range(count)]).double()
    return logits.reshape(count, -1, logits.shape[-1])[:, counted].log_softmax(-1)


def epkl(log_p: Tensor) -> Tensor:
    """Mean over ordered pairs of passes of KL(i || j), [rows]."""
    pairs = itertools.permutations(range(len(log_p)), 2)
    return torch.stack([(log_p[i].exp() * (log_p[i] - log_p[j])).sum(-1) for i, j in pairs]).mean(0)


if __name__ == "__main__":
    main()
