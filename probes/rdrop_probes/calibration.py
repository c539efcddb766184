"""Calibration of the eval model, the sub-models and their MC mean: Brier score, ECE, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.columns import Column, Floats, State, as_floats
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.divergences import brier
from rdrop_probes.probe import Outcome, SubModelProbe
from rdrop_probes.records import ReliabilityBin
from rdrop_probes.terms import brier_term, confidence, probability, vote

BINS = 15
KINDS = ("eval", "sub", "mean")


def bin_statistics(confidence: Tensor, prediction: Tensor, labels: Tensor | None) -> Tensor:
    """Sums over predictions [k, N] of count, confidence and hits in each confidence bin [N, BINS, 3]."""
    if labels is None:
        raise ValueError("calibration needs labels")
    known = (labels >= 0).double().expand_as(confidence)
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    values = torch.stack([known, known * confidence, known * (prediction == labels)], -1)  # [k, N, 3]
    bins = values.new_zeros(len(labels), BINS, 3)
    return bins.scatter_add_(1, index.T.unsqueeze(-1).expand(-1, -1, 3), values.transpose(0, 1))


@dataclass(frozen=True)
class Gaps:
    """Confidence less hits of each example, in those of the bins where there is any: few of the 15.

    Bins of several models may stand side by side, numbered through.

    Attributes:
        sizes: [N], in how many bins each example is. bins: their numbers, example by example. gaps: what is there.
    """

    sizes: NDArray[np.uint8]
    bins: NDArray[np.uint8]
    gaps: Floats

    @classmethod
    def of(cls, gaps: Floats) -> Self:
        """From what each example adds to the gap of each bin [N, bins]."""
        examples, places = np.nonzero(gaps)
        sizes = np.bincount(examples, minlength=len(gaps))
        return cls(sizes.astype(np.uint8), places.astype(np.uint8), gaps[examples, places])

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(*(np.concatenate([getattr(piece, name.name) for piece in pieces]) for name in fields(cls)))

    def signed(self) -> Floats:
        """Sum over bins of sign_b gap_nb [N], the sign being that of the bin's total."""
        signs = np.sign(np.bincount(self.bins, self.gaps, minlength=BINS))
        examples = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.bincount(examples, self.gaps * signs[self.bins], minlength=len(self.sizes)).astype(float)

    def state(self) -> list[NDArray[Any]]:
        """As plain data."""
        return [self.sizes, self.bins, self.gaps]


class Calibration(SubModelProbe):
    """Brier score, and the expected calibration error over 15 equal-width bins (Guo et al. 2017).

    ECE = sum_b |sum_{n in b} (confidence_n - hit_n)| / N, predictions of all sub-models pooled for `ece_sub`.
    Its column holds sign_b (confidence_n - hit_n), whose mean is the ECE, so that its interval is the delta
    method's. Binned ECE is biased upwards when bins hold few examples; the interval does not show that.
    """

    name = "calibration"
    units: ClassVar = {f"{metric}_{kind}": "" for metric in ("brier", "ece") for kind in KINDS}
    terms = (probability, brier_term, vote, confidence)
    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self._gaps: dict[str, list[Gaps]] = {kind: [] for kind in KINDS}
        self._counts: list[NDArray[np.int32]] = []
        self._totals: dict[str, Floats] = {kind: np.zeros((BINS, 3)) for kind in KINDS}
        self._leave_out: dict[str, Floats | float] = dict.fromkeys(("sub", "mean"), 0.0)
        self._by_row = True

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """Brier score [N] of the sub-models (mean) and of their MC mean."""
        return {"brier_sub": totals.mean(brier_term), "brier_mean": totals.of_mean(_brier, probability, batch)}

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep Brier scores, and what each example adds to the gaps of the bins."""
        super().update(batch, sums)
        self.keep_plain(batch, "brier_eval", brier(batch.p, batch.labels))
        confident, votes = sums.kept(confidence), sums.kept(vote)
        sub = bin_statistics(confident, votes, batch.labels)
        self._bin(batch, "eval", _bins_of(batch.p[None], batch))
        self._bin(batch, "sub", sub / len(votes))
        self._bin(batch, "mean", _bins_of(sums.total().mean(probability)[None], batch))
        if self.shared_masks:
            self._leave_blocks_out(batch, sums, sub)

    def _leave_blocks_out(self, batch: EvalBatch, sums: BlockSums, sub: Tensor) -> None:
        """Keep the bins of all rows with each block of sub-models left out [G, BINS, 3]."""
        votes, confident = sums.kept(vote).split(sums.sizes.tolist()), sums.kept(confidence).split(sums.sizes.tolist())
        for_block = [bin_statistics(c, v, batch.labels).sum(0) for c, v in zip(confident, votes, strict=True)]
        left = (int(sums.sizes.sum()) - sums.sizes)[:, None, None]
        self._leave_out["sub"] += as_floats((sub.sum(0).cpu() - torch.stack(for_block).cpu()) / left)
        means = [_bins_of(mean[None], batch).sum(0) for mean in sums.leave_one_out().mean(probability)]
        self._leave_out["mean"] += as_floats(torch.stack(means))

    def _bin(self, batch: EvalBatch, kind: str, bins: Tensor) -> None:
        """Keep the bins [P, BINS, 3] by example, and how many rows each example has."""
        by_example = self.examples.total(batch, f"bins/{kind}", bins.movedim(0, -1))
        if by_example is None:
            return
        found = as_floats(by_example.movedim(-1, 0))
        self._gaps[kind].append(Gaps.of(found[..., 1] - found[..., 2]))
        self._totals[kind] += found.sum(0)
        if kind == "eval":  # all kinds count the same rows
            self._counts.append(found[..., 0].sum(1).astype(np.int32))
        self._by_row = self._by_row and batch.owners is None

    def merge(self, other: Self) -> None:
        """Append another worker's examples."""
        super().merge(other)
        for kind in KINDS:
            self._gaps[kind] += other._gaps[kind]
            self._totals[kind] = self._totals[kind] + other._totals[kind]
        self._counts += other._counts
        self._by_row = self._by_row and other._by_row
        for kind, totals in other._leave_out.items():
            self._leave_out[kind] += totals

    def state(self) -> State:
        """With what the examples add to the bins."""
        gaps = {kind: [piece.state() for piece in pieces] for kind, pieces in self._gaps.items()}
        own = {"gaps": gaps, "counts": self._counts, "totals": self._totals}
        return super().state() | own | {"leave_out": self._leave_out, "by_row": self._by_row}

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave."""
        super().restore(state)
        self._gaps = {kind: [Gaps(*piece) for piece in state["gaps"][kind]] for kind in KINDS}
        self._counts, self._totals = state["counts"], state["totals"]
        self._leave_out, self._by_row = state["leave_out"], state["by_row"]

    def outcome(self) -> Outcome:
        """Columns with the ECEs, and the reliability diagrams."""
        tables = {}
        if self._counts:
            counts = np.concatenate(self._counts).astype(float)
            for kind, pieces in self._gaps.items():
                column = ece_column(Gaps.joined(pieces), counts, self._leave_out.get(kind), by_row=self._by_row)
                self.kept.columns[f"ece_{kind}"] = column
                tables[kind] = reliability(self._totals[kind])
        return Outcome(self.kept, {"reliability": tables})


def _brier(batch: EvalBatch, p: Tensor) -> Tensor:
    return brier(p, batch.labels)


def _bins_of(p: Tensor, batch: EvalBatch) -> Tensor:
    """:func:`bin_statistics` of probabilities [k, N, C]."""
    highest = p.max(-1)
    return bin_statistics(highest.values, highest.indices, batch.labels)


def ece_column(gaps: Gaps, counts: Floats, leave_out: Floats | float | None = None, *, by_row: bool = True) -> Column:
    """Column whose mean is the ECE, from each example's gaps in the bins and how many rows count of it [N].

    `leave_out` has the bins' totals with each block of sub-models left out [G, BINS, 3], where masks are shared.
    `by_row` says that each example is one row.
    """
    values = gaps.signed() / np.where(counts == 0, np.nan, counts)
    column = Column(values, tabulated=False, floor=0.0, weights=None if by_row else counts)
    if isinstance(leave_out, np.ndarray):
        column.leave_out = np.abs(leave_out[..., 1] - leave_out[..., 2]).sum(-1)
        column.leave_out_n = float(counts[column.finite].sum())
        column.mask_variance = np.zeros(len(values))  # by example it is not known, and counts as none
    return column


def reliability(totals: Floats) -> list[ReliabilityBin]:
    """Reliability diagram from bin totals [BINS, 3]."""
    return [
        ReliabilityBin(
            low=b / BINS,
            high=(b + 1) / BINS,
            count=float(count),
            confidence=float(confidence / count) if count else None,
            accuracy=float(hit / count) if count else None,
        )
        for b, (count, confidence, hit) in enumerate(totals)
    ]
