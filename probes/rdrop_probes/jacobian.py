"""Jacobian complexity of the eval model: how strongly its output answers to its input."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rdrop_probes.columns import ColumnSet, State, plain
from rdrop_probes.directions import sampled_scores, sphere
from rdrop_probes.gradients import GradientPass, Row, squares
from rdrop_probes.lanczos import spectral_norm
from rdrop_probes.probe import GradientFold, Outcome, Probe
from rdrop_probes.sampling import RunningMean, Sampled, sampling_findings

PROJECTIONS = 8
LANCZOS_STEPS = 10
NUMBERS_AT_A_TIME = 2**22  # in a temporary tensor


class Jacobian(Probe):
    """Norms of J = dz/dx per example, z the logits and x the input (the embedding output for token ids).

    jacobian_logits = |J|_F (Hoffman et al. 2019); jacobian_probs = |dp/dx|_F (Novak et al. 2018, sensitivity);
    jacobian_spectral = the largest singular value of J; jacobian_fisher = tr(J^T H J) =
    E_{y~p} |grad_x log p(y)|^2, H = diag(p) - p p^T (Wei et al. 2020); H = I / variance for a Gaussian, which
    has no probabilities. Exact up to 64 classes; beyond, and where an example has several rows (tokens, labels), by
    random projections, sampled y and Lanczos steps: that noise is part of the interval over examples, and a finding
    says how much of it there is. With several rows norms are root mean squares over them, but for the spectral norm,
    which is of all rows together.
    """

    name = "jacobian"
    units = dict.fromkeys(("jacobian_logits", "jacobian_probs", "jacobian_spectral", "jacobian_fisher"), "")
    needs_input_gradients = True
    families = ("categorical", "gaussian")

    def __init__(self) -> None:
        super().__init__()
        self.sampling = ColumnSet()
        self._differentiable = True
        self._sampled = ""

    def fold(self, gradients: GradientPass) -> GradientFold | None:
        """Take the rows with respect to the input; None where the input is not differentiable."""
        self._differentiable &= gradients.leaf is not None
        if gradients.leaf is None:
            return None
        self._sampled = self._sampled or gradients.sampled
        return _SampledFold(self, gradients) if gradients.sampled else _ExactFold(self, gradients)

    def merge(self, other: Jacobian) -> None:
        """Append another worker's examples."""
        super().merge(other)
        self.sampling.merge(other.sampling)
        self._differentiable &= other._differentiable
        self._sampled = self._sampled or other._sampled

    def state(self) -> State:
        """What is kept, as plain data."""
        own = {"sampling": self.sampling.state(), "differentiable": self._differentiable, "sampled": self._sampled}
        return super().state() | own

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave."""
        super().restore(state)
        self.sampling = ColumnSet.restored(state["sampling"])
        self._differentiable, self._sampled = state["differentiable"], state["sampled"]

    def outcome(self) -> Outcome:
        """Columns, or why there are none."""
        if not self._differentiable:
            message = "the input is not floating point and no nn.Embedding takes it: no Jacobian with respect to it"
            return Outcome(self.kept, findings={"jacobian_unavailable": message})
        findings = sampling_findings(self._sampled, "sampled_jacobian", self.sampling, self.kept)
        return Outcome(self.kept, findings=findings)


class _ExactFold(GradientFold):
    """All classes: every row is kept and the Gram matrix of J gives the spectral norm."""

    def __init__(self, probe: Jacobian, gradients: GradientPass) -> None:
        self._probe = probe
        self._gradients = gradients
        self._rows: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._possible: list[Tensor] = []

    def add(self, row: Row) -> None:
        """Keep grad_x log p(y) [k, N, D]."""
        self._rows.append(_inputs(row.inputs))
        self._weights.append(row.weight)
        self._possible.append(row.possible)

    def close(self) -> None:
        """Turn the rows into norms."""
        rows = _joined(self._rows)  # [C, N, D], gradients of log p
        self._rows.clear()
        weights = torch.cat(self._weights)  # [C, N]
        by_class = squares(rows)
        self._keep("jacobian_fisher", (weights * by_class).sum(0))
        if self._gradients.family.name == "categorical":
            self._keep("jacobian_probs", (weights.square() * by_class).sum(0).sqrt())
        gram = self._gram(rows)
        self._keep("jacobian_logits", gram.diagonal(dim1=1, dim2=2).sum(-1).sqrt())
        self._keep("jacobian_spectral", torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt())

    def _keep(self, name: str, values: Tensor) -> None:
        self._probe.kept.add(name, plain(values, floor=0.0))

    def _gram(self, rows: Tensor) -> Tensor:
        """J J^T [N, C, C] in float64, a few examples at a time."""
        normaliser = self._normaliser()
        possible = torch.cat(self._possible)[..., None]
        step = max(1, NUMBERS_AT_A_TIME // max(rows.shape[0] * rows.shape[2], 1))
        parts = []
        for first in range(0, rows.shape[1], step):
            some = slice(first, first + step)
            j = rows[:, some] if normaliser is None else rows[:, some] + normaliser[some]
            j = torch.where(possible[:, some], j, 0.0).movedim(1, 0)
            j = j if j.dtype == torch.float64 else j.float()
            parts.append((j @ j.mT).double())
        return torch.cat(parts)

    def _normaliser(self) -> Tensor | None:
        """d lse / dx [N, D], by which dz = dlogp + dlse; None for a Gaussian, whose rows are those of J."""
        if self._gradients.family.name == "gaussian":
            return None
        return _inputs(self._gradients.pull(self._gradients.p.to(self._gradients.logits.dtype)[None]))[0]


class _SampledFold(GradientFold):
    """Many classes, or several rows an example: estimates whose cost does not grow with their number."""

    def __init__(self, probe: Jacobian, gradients: GradientPass) -> None:
        self._probe = probe
        self._gradients = gradients
        self._fisher = RunningMean()

    def add(self, row: Row) -> None:
        """Add the weighted squared norms."""
        self._fisher.add(row.weight * squares(_inputs(row.inputs)))

    def close(self) -> None:
        """Estimate the other norms by projections and Lanczos steps."""
        g, like = self._gradients, self._gradients.logits.detach()
        fisher = self._fisher.total().over(g.weights)
        self._keep("jacobian_fisher", fisher)
        if g.family.name == "categorical":
            along = sampled_scores(g.p, like, g.numbers("probabilities"), PROJECTIONS, g.directions, power=2)
            self._keep("jacobian_probs", self._frobenius(along).over(g.weights).root)
        along = sphere(like, g.numbers("projections"), PROJECTIONS, g.directions)
        self._keep("jacobian_logits", self._frobenius(along).over(g.weights).root)
        spectral = torch.where(fisher.values.isnan(), torch.nan, spectral_norm(g, LANCZOS_STEPS))
        self._probe.kept.add("jacobian_spectral", plain(spectral, floor=0.0))

    def _frobenius(self, directions: Iterable[Tensor]) -> Sampled:
        """Mean [N] of |J^T w|^2, summed over the rows of an example, whose directions are independent."""
        found = RunningMean()
        for w in directions:
            found.add(squares(_inputs(self._gradients.pull(w))))
        return found.mean()

    def _keep(self, name: str, found: Sampled) -> None:
        weights = self._gradients.weights
        self._probe.kept.add(name, plain(found.values, weights=weights, floor=0.0))
        self._probe.sampling.add(name, plain(found.variance, weights=weights))


def _inputs(found: Tensor | None) -> Tensor:
    if found is None:
        raise RuntimeError("the logits do not depend on the input")
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
