"""The normalisations of the R-Drop loss in published code, by name.

Papers quote an alpha without saying what is averaged and what is summed; with the convention named beside it, a
log line can be compared with a paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "sum", "batchmean"]


@dataclass(frozen=True)
class Convention:
    """How one published form of R-Drop weights and reduces its two terms.

    For a pair of passes the loss is `fit_weight` times the mean of their losses, reduced by `fit_reduction`,
    plus alpha times `consistency_weight` times ½[KL(P1‖P2) + KL(P2‖P1)], reduced by `consistency_reduction`.
    """

    fit_weight: float
    fit_reduction: Reduction
    consistency_weight: float
    consistency_reduction: Reduction


CONVENTIONS: Mapping[str, Convention] = {
    "paper": Convention(2.0, "mean", 1.0, "mean"),
    "article": Convention(1.0, "mean", 1.0, "sum"),
    "vit": Convention(2.0, "mean", 2.0, "sum"),
    "fairseq": Convention(2.0, "sum", 1.0, "sum"),
    "glue": Convention(2.0, "mean", 1.0, "sum"),
}
"""The published forms, with CE the cross-entropy and KL12 = KL(P1‖P2), summed over classes:

- `paper`: mean over positions of CE1 + CE2 + alpha ½(KL12 + KL21), as the paper has it.
- `article`: ½(mean CE1 + mean CE2) + alpha ½ Σ(KL12 + KL21), the snippet in the authors' README and in articles.
- `vit`: mean CE1 + mean CE2 + alpha Σ(KL12 + KL21), the authors' vision transformer: no ½ before the divergences.
- `fairseq`: Σ(CE1 + CE2) + alpha ½ Σ(KL12 + KL21), the authors' translation and summarisation code, where label
  smoothing is torch's; their trainer divides by the number of target tokens afterwards.
- `glue`: mean CE1 + mean CE2 + alpha ½ Σ(KL12 + KL21), the authors' BERT (alpha 0.5) and RoBERTa (0.7) for GLUE.

Means and sums are over the positions that count. Where KL is summed, one alpha is another for every batch size.
"""
