"""Which part of a network a site is said to be in, by the paths that models really have."""

import pytest

from rdrop_probes.site_groups import kinds_of, layer_of
from rdrop_probes.sites import Site


def sites(*paths: str, kind: str = "dropout") -> dict:
    """Sites in the order in which they draw; a path may come twice."""
    keys = [(path, paths[:place].count(path)) for place, path in enumerate(paths)]
    return {key: Site(key, "attention dropout" if key[0].endswith("!") else kind, 0.1, (2, 3), 0) for key in keys}


BERT = {
    "bert.embeddings.dropout": "embedding",
    "bert.encoder.layer.0.attention.self.dropout": "attention",
    "bert.encoder.layer.0.attention.output.dropout": "attention",
    "bert.encoder.layer.0.output.dropout": "mlp",
    "dropout": "head",
}
GPT = {
    "transformer.drop": "embedding",
    "transformer.h.0.attn.attn_dropout": "attention",
    "transformer.h.0.attn.resid_dropout": "attention",
    "transformer.h.0.mlp.dropout": "mlp",
}
TORCH = {
    "transformer.encoder.layers.0.self_attn": "attention",
    "transformer.encoder.layers.0.dropout1": "attention",
    "transformer.encoder.layers.0.dropout": "mlp",
    "transformer.encoder.layers.0.dropout2": "mlp",
    "transformer.decoder.layers.0.self_attn": "attention",
    "transformer.decoder.layers.0.dropout1": "attention",
    "transformer.decoder.layers.0.multihead_attn": "attention",
    "transformer.decoder.layers.0.dropout2": "attention",
    "transformer.decoder.layers.0.dropout": "mlp",
    "transformer.decoder.layers.0.dropout3": "mlp",
}
TIMM = {
    "pos_drop": "embedding",
    "blocks.0.attn.proj_drop": "attention",
    "blocks.0.drop_path1": "other",
    "blocks.0.mlp.drop1": "mlp",
    "head_drop": "head",
}
T5 = {
    "encoder.dropout": "embedding",
    "encoder.block.0.layer.0.SelfAttention": "attention",
    "encoder.block.0.layer.0.dropout": "other",
    "encoder.block.0.layer.1.DenseReluDense.dropout": "mlp",
}
BART = {
    "model.encoder": "embedding",
    "model.encoder.layers.0.self_attn": "attention",
    "model.encoder.layers.0": "other",
    "model.decoder": "embedding",
    "model.decoder.layers.0.self_attn": "attention",
    "classification_head.dropout": "head",
}
PLAIN = {"features.3": "other", "classifier.1": "head", "drop": "other", "rnn": "other", "": "other"}
FUNCTIONAL = {"layers.0!": "attention", "layers.0": "other", "pooler.dropout": "head", "multihead": "other"}


@pytest.mark.parametrize("model", [BERT, GPT, TORCH, TIMM, T5, BART, PLAIN, FUNCTIONAL])
def test_kinds_of_modules(model):
    found = kinds_of(sites(*model))
    assert {path: kind for (path, _), kind in found.items()} == model


def test_outside_of_layers_only_what_draws_before_or_behind_all_of_them_is_told():
    found = kinds_of(sites("a", "layers.0.attn", "between", "layers.1.attn", "z", "z"))
    assert list(found.values()) == ["embedding", "attention", "other", "attention", "head", "head"]
    assert set(kinds_of(sites("a", "layers.0.conv", "z")).values()) == {"other"}


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("encoder.layers.3.dropout", ("encoder.layers.3", 3)),
        ("0.layers.11.self_attn", ("0.layers.11", 11)),
        ("block.2.layer.1.dropout", ("block.2", 2)),
        ("5", ("5", 5)),
        ("0.2", ("0", 0)),
        ("classifier.1", None),
        ("model.head.0", None),
        ("features.1", ("features.1", 1)),
        ("drop1", None),
        ("", None),
    ],
)
def test_layers_are_the_first_number_behind_a_name(path, layer):
    assert layer_of((path, 1)) == layer
