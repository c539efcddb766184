"""What each number means: the one place for labels, formulas, units, directions and sources."""

# ruff: noqa: RUF001 - formulas use the mathematical minus sign

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from rdrop_probes.records import Metric

Kind = Literal["divergence", "share", "plain"]
Direction = Literal["lower", "higher", "zero", "one", "none"]

R_DROP = "Liang et al. 2021, R-Drop (arXiv:2106.14448)"
MALININ = "Malinin & Gales 2021 (arXiv:2002.07650)"
BALD = "Houlsby et al. 2011, BALD (arXiv:1112.5745)"
MC_DROPOUT = "Gal & Ghahramani 2016, MC dropout (arXiv:1506.02142)"
WEI = "Wei, Kakade & Ma 2020 (arXiv:2002.12915)"
MA = "Ma et al. 2017 (arXiv:1609.08017)"
GUO = "Guo et al. 2017 (arXiv:1706.04599)"
HOFFMAN = "Hoffman, Roberts & Yaida 2019 (arXiv:1908.02729)"
NOVAK = "Novak et al. 2018 (arXiv:1802.08760)"
SOKOLIC = "Sokolić et al. 2017 (arXiv:1605.08254)"
BRIER = "Brier 1950"
KUNSTNER = "Kunstner, Hennig & Balles 2019 (arXiv:1905.12558)"
MACKAY = "MacKay 1992; Maddox et al. 2020 (arXiv:2003.02139)"


@dataclass(frozen=True)
class Definition:
    """One metric: `kind` says how it is shown (nats or bits, a percentage, or a bare number).

    `direction` is where a consistent, accurate model lies: lower, higher, at zero, at one, or nowhere in
    particular.
    """

    label: str
    formula: str
    meaning: str
    kind: Kind
    direction: Direction
    source: str


DIRECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "lower": "lower is better",
        "higher": "higher is better",
        "zero": "closer to 0 is better",
        "one": "closer to 1: dropout acts closer to what the theory says",
        "none": "no better direction",
    }
)

DISTANCES = frozenset({"expectation_linearity"})

_MODES = {
    "eval": ("eval model", "p = p₀"),
    "sub": ("sub-models", "p = pₖ, averaged over k"),
    "mean": ("MC mean", "p = p̄"),
}


def _per_mode() -> dict[str, Definition]:
    """The metrics that are taken of the eval model, of the sub-models and of the MC mean."""
    rows: dict[str, tuple[str, str, str, Kind, Direction, str]] = {
        "nll": ("NLL", "−log p(label)", "Negative log-likelihood of the label", "divergence", "lower", ""),
        "accuracy": ("Accuracy", "[argmax p = label]", "Share of right predictions", "share", "higher", ""),
        "mse": ("MSE", "mean over outputs of (f − target)²", "Mean squared error of the outputs f", "plain", "lower",
                ""),
        "brier": ("Brier score", "Σ over c of (p(c) − [c = label])²", "Squared error of the probabilities",
                  "plain", "lower", BRIER),
        "ece": ("ECE", "Σ over bins of (count/n) · |accuracy − confidence|",
                "Expected calibration error: confidence against accuracy", "share", "lower", GUO),
    }  # fmt: skip
    return {
        f"{name}_{mode}": Definition(
            f"{label}, {whose}", f"{formula}, {which}", f"{meaning}, {whose}.", kind, direction,
            source or (MC_DROPOUT if mode == "mean" else "")
        )
        for name, (label, formula, meaning, kind, direction, source) in rows.items()
        for mode, (whose, which) in _MODES.items()
    }  # fmt: skip


DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        "epkl": Definition(
            "EPKL", "E over two independent sub-models of KL(p₁ ‖ p₂)",
            "Expected pairwise KL between two sub-models: the left side of the R-Drop constraint, "
            "0 for sub-models that always agree. Unbiased over ordered pairs, so it can be slightly below 0. In "
            "regression it is that of the surrogate N(f, v): squared differences of the outputs f over 2v.",
            "divergence", "lower", f"{R_DROP}; {MALININ}",
        ),
        "mutual_information": Definition(
            "Mutual information", "H(p̄) − mean over k of H(pₖ)",
            "How much knowing the dropout mask tells about the prediction; jackknifed over sub-models.",
            "divergence", "lower", BALD,
        ),
        "reverse_mutual_information": Definition(
            "Reverse mutual information", "mean over k of KL(p̄ ‖ pₖ)",
            "Divergence of the sub-models from their mean, in the reverse order; jackknifed over sub-models, it and "
            "the mutual information add up to the EPKL.",
            "divergence", "lower", MALININ,
        ),
        "kl_sub_to_eval": Definition(
            "KL(sub ‖ eval)", "mean over k of KL(pₖ ‖ p₀)",
            "How far a sub-model is from the eval model that is deployed.", "divergence", "lower", WEI,
        ),
        "kl_eval_to_sub": Definition(
            "KL(eval ‖ sub)", "mean over k of KL(p₀ ‖ pₖ)",
            "How far the eval model is from a sub-model.", "divergence", "lower", "",
        ),
        "kl_mean_to_eval": Definition(
            "KL(MC mean ‖ eval)", "KL(p̄ ‖ p₀)",
            "What weight scaling loses against averaging endlessly many sub-models; jackknifed to that limit.",
            "divergence", "lower", MC_DROPOUT,
        ),
        **_per_mode(),
        "pairwise_mse": Definition(
            "MSE between passes", "E over two independent sub-models of mean over outputs of (f₁ − f₂)²",
            "Mean squared difference of two sub-models' outputs, what R-Drop trains with for regression; divided by "
            "twice the surrogate's variance and times the number of outputs it is the EPKL.",
            "plain", "lower", R_DROP,
        ),
        "mse_gap": Definition(
            "MSE gap", "mean over k of MSE(fₖ) − MSE(f₀)",
            "Squared error with dropout on minus squared error with dropout off.", "plain", "zero", "",
        ),
        "nll_gap": Definition(
            "NLL gap", "mean over k of NLL(pₖ) − NLL(p₀)",
            "Loss with dropout on minus loss with dropout off: the explicit regulariser of dropout.",
            "divergence", "zero", WEI,
        ),
        "accuracy_gap": Definition(
            "Accuracy gap", "accuracy(p₀) − mean over k of accuracy(pₖ)",
            "Accuracy with dropout off minus accuracy with dropout on.", "share", "zero", "",
        ),
        "flip_rate": Definition(
            "Flip rate", "P(argmax pₖ ≠ argmax p₀)",
            "Share of sub-model predictions that are not the prediction of the eval model.",
            "share", "lower", "",
        ),
        "disagreement": Definition(
            "Disagreement", "P(argmax p₁ ≠ argmax p₂)",
            "Share of pairs of sub-models that predict different classes.", "share", "lower", "",
        ),
        "expectation_linearity": Definition(
            "Expectation-linearity gap", "√ mean over x of ‖E zₖ(x) − z₀(x)‖₂² on the logits z",
            "Distance between the mean logits with dropout on and those with dropout off, the inference gap: root mean "
            "square over examples, the square estimated without bias from pairs of sub-models. A negative square is "
            "shown as 0. Differences between checkpoints are of the square.",
            "plain", "lower", MA,
        ),
        "jacobian_logits": Definition(
            "Jacobian, logits", "‖∂z/∂x‖ (Frobenius)",
            "How much the eval model's logits (outputs, in regression) move with the input; of several tokens or "
            "labels, the root mean square over them.", "plain", "lower", HOFFMAN,
        ),
        "jacobian_probs": Definition(
            "Jacobian, probabilities", "‖∂p/∂x‖ (Frobenius)",
            "How much the eval model's probabilities move with the input: sensitivity.", "plain", "lower", NOVAK,
        ),
        "jacobian_spectral": Definition(
            "Jacobian, spectral norm", "largest singular value of ∂z/∂x",
            "How much the logits move along the direction of the input that moves them most.",
            "plain", "lower", SOKOLIC,
        ),
        "jacobian_fisher": Definition(
            "Jacobian, Fisher-weighted", "tr(JᵀHJ) = E over y ~ p of ‖∂ log p(y)/∂x‖², H = diag(p) − ppᵀ",
            "The squared input sensitivity that the loss sees; a better proxy of dropout's regularisation than ‖J‖.",
            "plain", "lower", WEI,
        ),
        "predicted_epkl": Definition(
            "Predicted EPKL", "2 Σ over sites of q/(2(1−q)) · E over y ~ p₀ of Σᵢ (hᵢ ∂ log p₀(y)/∂hᵢ)²",
            "EPKL to second order in the dropout noise, from gradients of the eval model alone; "
            "h is a site's input and q its drop probability.",
            "divergence", "lower", WEI,
        ),
        "epkl_over_predicted": Definition(
            "Measured / predicted EPKL", "EPKL / predicted EPKL",
            "1 where the model answers dropout linearly; above 1, steps as large as dropping a unit do more than "
            "their gradients say, below 1 less.",
            "plain", "one", WEI,
        ),
        "constraint_epsilon": Definition(
            "Constraint, smallest ε", "smallest ε for which mean EPKL ≤ ε holds with 95% confidence",
            "The R-Drop constraint as these data can vouch for it: the one-sided upper bound of the mean EPKL over new "
            "data, put right for skewness; too low for fewer than 30 examples of which a few carry most of the EPKL. "
            "Of a group, Student's bound of the mean over its training seeds, on these examples.",
            "divergence", "lower", R_DROP,
        ),
        "epkl_sum_of_parts": Definition(
            "Sum of single sites", "Σ over sites of EPKL with only that site active",
            "What the sites would give together if none changed what another does.", "divergence", "lower", "",
        ),
        "epkl_interaction": Definition(
            "Interaction of sites", "EPKL − Σ over sites of EPKL with only that site active",
            "What all sites at once give beyond the sum of each alone; below 0 where they do each other's work.",
            "divergence", "none", "",
        ),
        "attribution_rank_correlation": Definition(
            "Rank correlation, predicted and exact", "Spearman's ρ over sites",
            "Whether the prediction from gradients ranks the sites as measuring them one by one does. A description "
            "without an interval: noise pulls it to 0 where sites are close to each other.",
            "plain", "one", WEI,
        ),
        "fisher_trace": Definition(
            "Fisher trace, parameters", "E over x, y ~ p₀ of ‖∂ log p₀(y)/∂θ‖²",
            "How sharply the eval model's answers depend on its trainable parameters θ: the sum of the eigenvalues of "
            "the Fisher information. On at most 256 examples, spread over the data.", "plain", "none",
            f"{R_DROP}; {KUNSTNER}",
        ),
        "effective_dimension": Definition(
            "Effective dimension", "Σ over eigenvalues λ of the Fisher information of λ/(λ + δ), δ = 0.01",
            "How many directions of the parameters the data hold more firmly than a weight decay of δ would. It grows "
            "with the number of examples (at most 128 here): compare it on the same ones only.", "plain", "none",
            f"{R_DROP}; {MACKAY}",
        ),
    }
)  # fmt: skip


def label(metric: str) -> str:
    """Human label of a metric; the name itself for one that is not defined here."""
    return DEFINITIONS[metric].label if metric in DEFINITIONS else metric


def is_share(metric: str) -> bool:
    """Whether the metric is a share, shown as a percentage."""
    return metric in DEFINITIONS and DEFINITIONS[metric].kind == "share"


def as_shown(metric: str, found: Metric) -> Metric:
    """What tables show of it: distances end at 0, below which the signed root of an unbiased square may lie."""
    if metric not in DISTANCES:
        return found
    estimate, low, high = (None if x is None else max(x, 0.0) for x in (found.estimate, found.low, found.high))
    return replace(found, estimate=estimate, low=low, high=high)


def unit_text(metric: str, unit: str) -> str:
    """Unit as shown beside the metric: `nats`, `bits`, `%`, or what the record says."""
    if is_share(metric):
        return "%"
    kind = DEFINITIONS[metric].kind if metric in DEFINITIONS else "plain"
    return unit if kind == "divergence" or metric not in DEFINITIONS else ""
