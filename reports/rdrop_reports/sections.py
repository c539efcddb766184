"""What the page's sections hold: a question, the figures that answer it, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rdrop_probes.records import RunRecord
from rdrop_reports.advice import advice, averaging_summary, averaging_table, temperature_table
from rdrop_reports.cause_tables import attribution_table, groups_table
from rdrop_reports.claims import claims, ranks
from rdrop_reports.comparison_tables import candidates_table, comparison_tables
from rdrop_reports.group_tables import arm_comparison_tables, arms_table
from rdrop_reports.html_tables import (
    Table,
    checkpoints_table,
    metric_table,
    other_metrics,
    scores_table,
    sites_table,
)
from rdrop_reports.text import elide
from rdrop_reports.theory_tables import noise_table, rankings_table, sweep_table

_SCORES = {"accuracy": "Accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE", "mse": "MSE"}
_MODES = {"eval": "Eval model", "sub": "Sub-models", "mean": "MC mean"}
_GAPS = [
    "nll_gap", "accuracy_gap", "mse_gap", "flip_rate", "disagreement", "kl_sub_to_eval", "kl_eval_to_sub",
    "kl_mean_to_eval", "expectation_linearity",
]  # fmt: skip
_EPKL = ["epkl", "mutual_information", "reverse_mutual_information", "pairwise_mse"]
_PARTS = ["epkl_sum_of_parts", "epkl_interaction", "attribution_rank_correlation"]
_JACOBIAN = ["jacobian_fisher", "jacobian_logits", "jacobian_probs", "jacobian_spectral"]
_PREDICTED = ["predicted_epkl", "epkl_over_predicted"]
_CLAIMS = ["constraint_epsilon", "fisher_trace", "effective_dimension"]
_SHOWN = [
    *_EPKL, *(f"{s}_{mode}" for s in _SCORES for mode in _MODES), *_GAPS, *_PARTS, *_JACOBIAN, *_PREDICTED, *_CLAIMS,
]  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One question: names of its figures, its tables, and what to say where there is neither.

    `chapter` is the part of the story it belongs to, `notes` are sentences computed from the numbers. Without any
    figure, table or note a section with nothing `missing` to say is left out.
    """

    key: str
    chapter: str
    title: str
    lead: str = ""
    figures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    missing: str = ""
    notes: Sequence[str] = field(default_factory=list)


def sections(record: RunRecord) -> dict[str, Section]:
    """Every section with figures and tables, by key, in the page's order: verdict, evidence, cause, advice."""
    found = [_verdict(record), *_evidence(record), _sites(record), *_theory(record), _advice(record), *_rest(record)]
    return {section.key: section for section in found}


def _verdict(record: RunRecord) -> Section:
    compared = record.comparisons or record.group_comparisons
    return Section(
        "verdict", "Verdict", "Is it more consistent?" if compared else "How consistent is it?",
        figures=["epkl"],
        tables=_tables(metric_table(record, _EPKL, "Divergence between sub-models"), candidates_table(record, "epkl")),
        folded=comparison_tables(record), missing="The divergence between sub-models was not measured.",
    )  # fmt: skip


def _evidence(record: RunRecord) -> list[Section]:
    """What the verdict rests on, and how sure it is."""
    return [
        Section(
            "groups", "Evidence", "Does it hold across training seeds?", figures=["groups"],
            tables=_tables(arms_table(record)), folded=arm_comparison_tables(record),
        ),
        Section(
            "over", "Evidence", f"How does it change over {elide(record.axis.name) if record.axis else ''}?",
            figures=["over", "over_scores"],
        ),
        Section(
            "gap", "Evidence", "Where do dropout on and dropout off differ?",
            "The eval model (dropout off) is what is deployed; the sub-models (dropout on) are what was trained; "
            "the MC mean averages their predictions.",
            ["gap", "divergences", "reliability"],
            _tables(
                metric_table(record, _GAPS, "Gap between the modes"),
                scores_table(record, _SCORES, _MODES),
            ), missing="The gap between eval model and sub-models was not measured.",
        ),
        Section(
            "spread", "Evidence", "How is it spread over the examples?",
            figures=["epkl_per_example", "epkl_distribution"],
            missing="There are no per-example values of EPKL to show.",
        ),
        Section(
            "noise_floor", "Evidence", "Is it more than numerical noise?",
            "Other precision, kernels and batch sizes move the eval model's answers too. What dropout does is read "
            "against that.",
            ["noise_floor"], _tables(noise_table(record)),
        ),
        Section(
            "convergence", "Evidence", "Were enough sub-models sampled?", figures=["convergence"],
            missing="The convergence in the number of sub-models was not recorded.",
        ),
    ]  # fmt: skip


def _sites(record: RunRecord) -> Section:
    exact = any(c.attribution for c in record.checkpoints)
    how = "Each site is measured with every other switched off, and switched off alone among the others. "
    return Section(
        "sites", "Cause", "Which site causes it?",
        f"{how if exact else ''}Module patching is the usual recipe for MC dropout: the eval model with nn.Dropout "
        "modules switched on. A site that it misses reads as perfectly consistent there.",
        ["attribution", "attribution_groups"] if exact else ["sites"],
        _tables(metric_table(record, _PARTS, "Sites together"), groups_table(record)),
        _tables(attribution_table(record), sites_table(record)),
        _no_cause(record),
    )  # fmt: skip


def _no_cause(record: RunRecord) -> str:
    """Why no figure and no number of any site is shown."""
    if any(c.sites for c in record.checkpoints):
        return "What each site adds to the EPKL was neither measured nor predicted; below are the sites themselves."
    return "No site was found that draws dropout."


def _theory(record: RunRecord) -> list[Section]:
    """What theory says the numbers should be."""
    return [
        Section(
            "theory", "Theory", "Does the theory explain it?",
            "Jacobian complexity is how sharply the eval model answers its input. The predicted EPKL follows to "
            "second order from gradients alone: at 1, measured over predicted, the response to dropout is linear.",
            ["jacobian", "predicted", "sweep"],
            _tables(
                metric_table(record, [*_JACOBIAN, *_PREDICTED], "Complexity and prediction"), rankings_table(record),
            ),
            _tables(sweep_table(record)), "Neither Jacobians nor a prediction were computed.", ranks(record),
        ),
        Section(
            "claims", "Theory", "Do the claims of R-Drop hold here?",
            "R-Drop bounds the mean EPKL by ε, and says that this leaves the parameters less freedom.",
            tables=_tables(metric_table(record, _CLAIMS, "Constraint and freedom of the parameters")),
            notes=claims(record),
        ),
    ]  # fmt: skip


def _advice(record: RunRecord) -> Section:
    return Section(
        "advice", "Advice", "What can be done about it?", figures=["averaging"],
        tables=_tables(averaging_summary(record), temperature_table(record)),
        folded=_tables(averaging_table(record)), notes=advice(record),
    )  # fmt: skip


def _rest(record: RunRecord) -> list[Section]:
    return [
        Section(
            "other", "Method", "Other measurements",
            tables=_tables(metric_table(record, other_metrics(record, _SHOWN), "Other measurements")),
        ),
        Section(
            "checkpoints", "Method", "Checkpoints", tables=_tables(checkpoints_table(record)),
            missing="No checkpoint could be measured.",
        ),
    ]  # fmt: skip


def _tables(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]
