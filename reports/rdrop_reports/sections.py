"""What the page's sections hold: a question, the figures that answer it, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rdrop_probes.records import RunRecord
from rdrop_reports.html_tables import (
    Table,
    checkpoints_table,
    comparison_table,
    metric_table,
    other_metrics,
    scores_table,
    sites_table,
)
from rdrop_reports.select import in_order

_SCORES = {"accuracy": "Accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE", "mse": "MSE"}
_MODES = {"eval": "Eval model", "sub": "Sub-models", "mean": "MC mean"}
_GAPS = [
    "nll_gap", "accuracy_gap", "mse_gap", "flip_rate", "disagreement", "kl_sub_to_eval", "kl_eval_to_sub",
    "kl_mean_to_eval", "expectation_linearity",
]  # fmt: skip
_EPKL = ["epkl", "mutual_information", "reverse_mutual_information", "pairwise_mse"]
_JACOBIAN = ["jacobian_fisher", "jacobian_logits", "jacobian_probs", "jacobian_spectral"]
_PREDICTED = ["predicted_epkl", "epkl_over_predicted"]
_SHOWN = [*_EPKL, *(f"{s}_{mode}" for s in _SCORES for mode in _MODES), *_GAPS, *_JACOBIAN, *_PREDICTED]


@dataclass(frozen=True)
class Section:
    """One question: names of its figures, its tables, and what to say where there is neither."""

    key: str
    title: str
    lead: str
    figures: Sequence[str]
    tables: Sequence[Table]
    folded: Sequence[Table]
    missing: str


def sections(record: RunRecord) -> dict[str, Section]:
    """Every section with figures and tables, by key, in the page's order."""
    found = [
        Section(
            "verdict", "Is it more consistent?" if record.comparisons else "How consistent is it?", "", ["epkl"],
            _tables(metric_table(record, _EPKL, "Divergence between sub-models")),
            _tables(*(comparison_table(record, c.name) for c in in_order(record))),
            "The divergence between sub-models was not measured.",
        ),
        Section(
            "gap", "Where do dropout on and dropout off differ?",
            "The eval model (dropout off) is what is deployed; the sub-models (dropout on) are what was trained; "
            "the MC mean averages their predictions.",
            ["gap", "divergences", "reliability"],
            _tables(
                metric_table(record, _GAPS, "Gap between the modes"),
                scores_table(record, _SCORES, _MODES),
            ), [], "The gap between eval model and sub-models was not measured.",
        ),
        Section(
            "spread", "How is it spread over the examples?", "", ["epkl_per_example", "epkl_distribution"], [], [],
            "There are no per-example values of EPKL to show.",
        ),
        Section(
            "theory", "Does the theory explain it?",
            "Jacobian complexity is how sharply the eval model answers its input. The predicted EPKL follows to "
            "second order from gradients alone: at 1, measured over predicted, the response to dropout is linear.",
            ["jacobian", "predicted"],
            _tables(metric_table(record, [*_JACOBIAN, *_PREDICTED], "Complexity and prediction")), [],
            "Neither Jacobians nor a prediction were computed.",
        ),
        Section(
            "sites", "Which site causes it?",
            "Module patching is the usual recipe for MC dropout: the eval model with nn.Dropout modules switched on. "
            "A site that it misses reads as perfectly consistent there.",
            ["sites"], _tables(sites_table(record)), [],
            "No site was found that draws dropout.",
        ),
        Section(
            "convergence", "Were enough sub-models sampled?", "", ["convergence"], [], [],
            "The convergence in the number of sub-models was not recorded.",
        ),
        Section("other", "Other measurements", "", [],
                _tables(metric_table(record, other_metrics(record, _SHOWN), "Other measurements")), [], ""),
        Section("checkpoints", "Checkpoints", "", [], _tables(checkpoints_table(record)), [],
                "No checkpoint could be measured."),
    ]  # fmt: skip
    return {section.key: section for section in found}


def _tables(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]
