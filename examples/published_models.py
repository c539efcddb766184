"""Inputs for three published models whose weights come in packages, to measure what nobody here trained.

    pip download --no-deps rxnfp==0.1.0 rxnmapper==0.4.3 antiberty==0.1.3
    for wheel in *.whl; do unzip -q $wheel -d models; done

The reactions are those in rxnmapper's tests, which its wheel holds as well. Then:

    export PUBLISHED_MODELS=models; P=examples/published_models.py
    rdrop-analyze $PUBLISHED_MODELS/rxnfp/models/transformers/bert_ft_10k_25s --data $P:rxnfp --sub-models 16
    rdrop-analyze $PUBLISHED_MODELS/rxnmapper/models/transformers/albert* --data $P:rxnmapper --sub-models 16
    rdrop-analyze $PUBLISHED_MODELS/antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin \
        --model $P:antiberty --data $P:antibodies --sub-models 16
"""

import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

COUNT = 30  # inputs for each model
MODELS = Path(os.environ.get("PUBLISHED_MODELS", "models"))
SMILES = re.compile(
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)
ANTIBODIES = (
    "DIQMTQSPSSLSASVGDRVTITCRASQSISSYLNWYQQKPGKAPKLLIYAASSLQSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQSYSTPLTFGQGTKVEIK",
    "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAKDRGYYYGMDVWGQGTTVTVSS",
)
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
CHANGES = 6


def rxnfp() -> dict[str, Tensor]:
    """Reactions for a BERT that sorts them into 50 classes."""
    return encoded(reactions(), MODELS / "rxnfp/models/transformers/bert_ft_10k_25s/vocab.txt")


def rxnmapper() -> dict[str, Tensor]:
    """The same for an ALBERT that predicts masked tokens; here none is masked."""
    return with_labels(encoded(reactions(), next(MODELS.glob("rxnmapper/models/transformers/*/vocab.txt"))))


def antibodies() -> dict[str, Tensor]:
    """Two antibody sequences in turn, each with a few random changes."""
    generator = torch.Generator().manual_seed(0)
    changed = [changed_at_random(ANTIBODIES[number % 2], generator) for number in range(COUNT)]
    return with_labels(encoded(changed, MODELS / "antiberty/trained_models/vocab.txt"))


def antiberty() -> nn.Module:
    """AntiBERTy as its authors trained it: a masked language model with three heads beside it."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    folder = MODELS / "antiberty/trained_models/AntiBERTy_md_smooth"
    model = BertForMaskedLM(BertConfig.from_pretrained(folder, architectures=None))
    model.bert = BertModel(model.config)
    width = model.config.hidden_size
    model.cls.species, model.cls.chain, model.cls.graft = nn.Linear(width, 6), nn.Linear(width, 2), nn.Linear(width, 2)
    return model


def reactions() -> list[list[str]]:
    """Tokens of the reactions in rxnmapper's tests, without the numbers of mapped atoms."""
    texts = [path.read_text() for path in sorted(MODELS.glob("tests/*.py"))]
    found = dict.fromkeys(text for source in texts for text in re.findall(r'"([^" ]*>>[^" ]*)"', source))
    bare = dict.fromkeys(re.sub(r":\d+\]", "]", reaction) for reaction in found)
    return [SMILES.findall(reaction) for reaction in bare][:COUNT]


def changed_at_random(sequence: str, generator: torch.Generator) -> list[str]:
    """Amino acids with some of them drawn anew."""
    letters = list(sequence)
    for place in torch.randperm(len(letters), generator=generator)[:CHANGES].tolist():
        letters[place] = AMINO_ACIDS[int(torch.randint(len(AMINO_ACIDS), (1,), generator=generator))]
    return letters


def encoded(sequences: list[list[str]], vocabulary: Path) -> dict[str, Tensor]:
    """Token ids, padded with 0, between [CLS] and [SEP], and which of them are no padding."""
    ids = {token: number for number, token in enumerate(vocabulary.read_text().split("\n"))}
    rows = [["[CLS]", *sequence[:510], "[SEP]"] for sequence in sequences]
    tensors = [torch.tensor([ids.get(token, ids.get("[UNK]", 0)) for token in row]) for row in rows]
    mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
    padded = (nn.utils.rnn.pad_sequence(parts, batch_first=True) for parts in (tensors, mask))
    return dict(zip(("input_ids", "attention_mask"), padded, strict=True))


def with_labels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with their own tokens for labels, -100 where there is padding."""
    return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
