"""Tiny Hugging Face models of the popular architectures, with dropout on and weights large enough for it to matter.

The tests hold them against brute force; `benchmarks/architectures.py` makes a table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

N, LENGTH, CLASSES = 6, 7, 4
VOCABULARY = 40


@dataclass(frozen=True)
class Architecture:
    """A model with its inputs, how class scores [N, C] come of it, and the sites it has.

    Attributes:
        build: makes the model in eval mode. inputs: makes keyword arguments of its `forward`.
        sites: how many sites there are of each kind and rate. found_by_patching: how many of them module
            patching makes draw. scores: reads [N, C] from the output. layerdrop: whether chance decides what runs.
        sub_models: how many it takes to know the EPKL well.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    sites: dict[tuple[str, float | None], int]
    found_by_patching: int
    scores: Callable[[Any], Tensor] = lambda output: output.logits
    layerdrop: bool = False
    sub_models: int = 64

    def forward(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Class scores [N, C]."""
        return self.scores(model(**inputs))


def tokens(**others: Tensor) -> dict[str, Tensor]:
    """Token ids, of which some rows are padded."""
    mask = torch.ones(N, LENGTH, dtype=torch.long)
    mask[::2, -2:] = 0
    return {"input_ids": torch.randint(2, VOCABULARY, (N, LENGTH)), "attention_mask": mask, **others}


def source_and_target() -> dict[str, Tensor]:
    return tokens(decoder_input_ids=torch.randint(2, VOCABULARY, (N, 3)))


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(N, 3, 16, 16)}


def waves() -> dict[str, Tensor]:
    return {"input_values": torch.randn(N, 400)}


def last_position(output: Any) -> Tensor:
    """Scores of some tokens at the last position."""
    return output.logits[:, -1, : 2 * CLASSES]


def pretrained(config: str, model: str, settings: dict[str, Any], attention: str | None) -> Callable[[], nn.Module]:
    """What builds a Hugging Face model with random weights from its configuration."""

    def build() -> nn.Module:
        import transformers

        options = {} if attention is None else {"attn_implementation": attention}
        made = getattr(transformers, config)(num_labels=CLASSES, **settings)
        return getattr(transformers, model)._from_config(made, **options).eval()

    return build


def _both(
    name: str, config: str, model: str, settings: dict[str, Any], inputs: Callable[[], dict[str, Tensor]], **facts: Any
) -> dict[str, Architecture]:
    """The architecture with attention spelt out and with torch's function for it."""
    sites = facts.pop("sites")
    return {
        f"{name}, {attention}": Architecture(
            pretrained(config, model, settings, attention), inputs, sites, patched, **facts
        )
        for attention, patched in zip(("eager", "sdpa"), facts.pop("found_by_patching"), strict=True)
    }


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 18,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.3,
    "initializer_range": 0.4,
}
_VISION = {"image_size": 16, "initializer_range": 0.4, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}

ARCHITECTURES: dict[str, Architecture] = {
    **_both(
        *("BERT", "BertConfig", "BertForSequenceClassification", _BERT | {"classifier_dropout": 0.2}, tokens),
        sites={("dropout", 0.1): 5, ("attention dropout", 0.3): 2, ("dropout", 0.2): 1},
        found_by_patching=(6, 6),
    ),
    **_both(
        *("RoBERTa", "RobertaConfig", "RobertaForSequenceClassification", _BERT | {"pad_token_id": 1}, tokens),
        sites={("dropout", 0.1): 7, ("attention dropout", 0.3): 2},
        found_by_patching=(7, 7),
    ),
    **_both(
        *("DistilBERT", "DistilBertConfig", "DistilBertForSequenceClassification"),
        {
            "vocab_size": VOCABULARY,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 16,
            "dropout": 0.1,
            "attention_dropout": 0.3,
            "seq_classif_dropout": 0.2,
            "initializer_range": 0.4,
        },
        tokens,
        sites={("dropout", 0.1): 3, ("attention dropout", 0.3): 2, ("dropout", 0.2): 1},
        found_by_patching=(4, 4),
    ),
    **_both(
        *("ALBERT", "AlbertConfig", "AlbertForSequenceClassification"),
        _BERT | {"embedding_size": 8, "classifier_dropout_prob": 0.2},
        tokens,
        sites={("dropout", 0.1): 3, ("attention dropout", 0.3): 2, ("dropout", 0.2): 1},
        found_by_patching=(4, 4),
    ),
    **_both(
        *("GPT-2", "GPT2Config", "GPT2LMHeadModel"),
        {
            "vocab_size": VOCABULARY,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 16,
            "resid_pdrop": 0.2,
            "embd_pdrop": 0.1,
            "attn_pdrop": 0.3,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        tokens,
        sites={("dropout", 0.1): 1, ("attention dropout", 0.3): 2, ("dropout", 0.2): 4},
        found_by_patching=(5, 5),
        scores=last_position,
    ),
    **_both(
        *("T5", "T5Config", "T5ForConditionalGeneration"),
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
            "dropout_rate": 0.1,
            "decoder_start_token_id": 0,
        },
        source_and_target,
        sites={("dropout", 0.1): 18, ("attention dropout", 0.1): 6},
        found_by_patching=(18, 18),
        scores=last_position,
    ),
    **_both(
        *("ViT", "ViTConfig", "ViTForImageClassification"),
        _VISION
        | {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "patch_size": 8,
        },
        images,
        sites={("dropout", 0.1): 5, ("attention dropout", 0.3): 2},
        found_by_patching=(5, 5),
    ),
    **_both(
        *("Swin", "SwinConfig", "SwinForImageClassification"),
        _VISION
        | {
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 2,
            "drop_path_rate": 0.3,
        },
        images,
        sites={("dropout", 0.1): 9, ("attention dropout", 0.3): 4}
        | {("stochastic depth", rate): 1 for rate in (0.1, 0.2, 0.3)},
        found_by_patching=(9, 9),
    ),
    "ConvNeXt": Architecture(
        pretrained(
            *("ConvNextConfig", "ConvNextForImageClassification"),
            {
                "hidden_sizes": [8, 16],
                "depths": [2, 2],
                "num_stages": 2,
                "patch_size": 2,
                "drop_path_rate": 0.3,
                "layer_scale_init_value": 1.0,
                "initializer_range": 0.3,
            },
            None,
        ),
        images,
        {("stochastic depth", rate): 1 for rate in (0.1, 0.2, 0.3)},
        found_by_patching=0,
        sub_models=256,  # a mask is a single number
    ),
    **_both(
        *("Wav2Vec2", "Wav2Vec2Config", "Wav2Vec2ForSequenceClassification"),
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "conv_dim": [8, 8],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.3,
            "activation_dropout": 0.2,
            "feat_proj_dropout": 0.1,
            "layerdrop": 0.2,
            "mask_time_prob": 0.3,
            "mask_time_length": 2,
            "initializer_range": 0.4,
            "classifier_proj_size": 8,
        },
        waves,
        sites={
            ("dropout", 0.1): 6,
            ("dropout", 0.2): 2,
            ("attention dropout", 0.3): 2,
            ("random (rand)", None): 2,
        },
        found_by_patching=(8, 8),
        layerdrop=True,
        sub_models=256,
    ),
}
