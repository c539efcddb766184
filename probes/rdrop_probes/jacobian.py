"""Jacobian complexity of the eval model: how strongly its output answers to its input."""

from __future__ import annotations

import torch
from torch import Tensor

from rdrop_probes.columns import plain
from rdrop_probes.gradients import MAX_EXACT_CLASSES, GradientPass, Row
from rdrop_probes.probe import GradientFold, Outcome, Probe

PROJECTIONS = 16
POWER_ITERATIONS = 30


class Jacobian(Probe):
    """Norms of J = dz/dx per example, z the logits and x the input (the embedding output for token ids).

    jacobian_logits = |J|_F (Hoffman et al. 2019); jacobian_probs = |dp/dx|_F (Novak et al. 2018, sensitivity);
    jacobian_spectral = the largest singular value of J; jacobian_fisher = tr(J^T H J) =
    E_{y~p} |grad_x log p(y)|^2, H = diag(p) - p p^T (Wei et al. 2020); H = I / variance for a Gaussian, which
    has no probabilities. Exact up to 64 classes; beyond, and where an example has several rows (tokens, labels), by
    random projections, sampled y and power iteration, whose noise is part of the interval over examples. With
    several rows norms are root mean squares over them, but for the spectral norm, which is of all rows together.
    """

    name = "jacobian"
    units = dict.fromkeys(("jacobian_logits", "jacobian_probs", "jacobian_spectral", "jacobian_fisher"), "")
    needs_input_gradients = True
    families = ("categorical", "gaussian")

    def __init__(self) -> None:
        super().__init__()
        self._differentiable = True
        self._sampled = ""

    def fold(self, gradients: GradientPass) -> GradientFold | None:
        """Take the rows with respect to the input; None where the input is not differentiable."""
        self._differentiable &= gradients.leaf is not None
        if gradients.leaf is None:
            return None
        self._sampled = self._sampled or _why_sampled(gradients)
        return _ExactFold(self, gradients) if gradients.exact else _SampledFold(self, gradients)

    def merge(self, other: Jacobian) -> None:
        """Append another worker's examples."""
        super().merge(other)
        self._differentiable &= other._differentiable
        self._sampled = self._sampled or other._sampled

    def outcome(self) -> Outcome:
        """Columns, or why there are none."""
        if self._differentiable:
            text = f"{self._sampled}: Jacobian norms and predictions are estimated by sampling"
            return Outcome(self.kept, findings={"sampled_classes": text} if self._sampled else {})
        message = "the input is not floating point and no nn.Embedding takes it: no Jacobian with respect to it"
        return Outcome(self.kept, findings={"jacobian_unavailable": message})


def _why_sampled(gradients: GradientPass) -> str:
    """Why expectations over y are sampled; empty if they are exact."""
    if gradients.exact:
        return ""
    several = gradients.owners is not None
    return (
        "an example has several rows (tokens, labels)"
        if several
        else f"there are more than {MAX_EXACT_CLASSES} outputs"
    )


class _ExactFold(GradientFold):
    """All classes: every row is kept and the Gram matrix of J gives the spectral norm."""

    def __init__(self, probe: Jacobian, gradients: GradientPass) -> None:
        self._probe = probe
        self._gradients = gradients
        self._rows: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._p: list[Tensor] = []
        self._possible: list[Tensor] = []

    def add(self, row: Row) -> None:
        """Keep grad_x log p(y) [N, D]."""
        if row.inputs is None:
            raise RuntimeError("the logits do not depend on the input")
        self._rows.append(row.inputs)
        self._weights.append(row.weight)
        self._p.append(row.p)
        self._possible.append(row.possible)

    def close(self) -> None:
        """Turn the rows into norms."""
        log_p_rows = torch.stack(self._rows, 1)  # [N, C, D]
        weights, p = torch.stack(self._weights, 1).double(), torch.stack(self._p, 1).double()  # [N, C]
        squares = log_p_rows.double().square().sum(-1)  # [N, C]
        rows = self._jacobian(log_p_rows)
        gram = rows @ rows.mT  # [N, C, C]
        spectral = torch.linalg.eigvalsh(gram)[:, -1]
        kept = self._probe.kept
        kept.add("jacobian_logits", plain(gram.diagonal(dim1=1, dim2=2).sum(-1).sqrt(), floor=0.0))
        if self._gradients.family.name == "categorical":
            kept.add("jacobian_probs", plain((p.square() * squares).sum(1).sqrt(), floor=0.0))
        kept.add("jacobian_spectral", plain(spectral.clamp(min=0).sqrt(), floor=0.0))
        kept.add("jacobian_fisher", plain((weights * squares).sum(1), floor=0.0))

    def _jacobian(self, log_p_rows: Tensor) -> Tensor:
        """J [N, C, D]: dz = dlogp + dlse for class scores, the rows themselves for a Gaussian's outputs."""
        if self._gradients.family.name == "gaussian":
            return log_p_rows.double()
        normaliser = self._gradients.gradient(torch.logsumexp(self._gradients.logits, -1).sum())
        if normaliser is None:
            raise RuntimeError("the input is not differentiable")
        possible = torch.stack(self._possible, 1)[..., None]
        return torch.where(possible, log_p_rows + normaliser[:, None], 0.0).double()


class _SampledFold(GradientFold):
    """Many classes, or several rows an example: estimates whose cost does not grow with their number."""

    def __init__(self, probe: Jacobian, gradients: GradientPass) -> None:
        self._probe = probe
        self._gradients = gradients
        self._fisher = torch.zeros(gradients.n, dtype=torch.float64, device=gradients.logits.device)

    def add(self, row: Row) -> None:
        """Add the weighted squared norm."""
        if row.inputs is None:
            raise RuntimeError("the logits do not depend on the input")
        self._fisher += row.weight.double() * row.inputs.double().square().sum(1)

    def close(self) -> None:
        """Estimate the other norms by projections and power iteration."""
        g = self._gradients
        self._keep("jacobian_logits", g.by_row(squared_frobenius(g, g.logits, PROJECTIONS)).sqrt())
        if g.family.name == "categorical":
            self._keep("jacobian_probs", g.by_row(squared_frobenius(g, g.logits.softmax(-1), PROJECTIONS)).sqrt())
        spectral = torch.where(g.by_row(self._fisher).isnan(), torch.nan, spectral_norm(g, POWER_ITERATIONS))
        self._probe.kept.add("jacobian_spectral", plain(spectral, floor=0.0))
        self._keep("jacobian_fisher", g.by_row(self._fisher))

    def _keep(self, name: str, values: Tensor) -> None:
        self._probe.kept.add(name, plain(values, weights=self._gradients.weights, floor=0.0))


def squared_frobenius(gradients: GradientPass, outputs: Tensor, count: int) -> Tensor:
    """Unbiased estimate [N] of |d(outputs)/d(input)|_F^2 for outputs [P, C], from `count` projections.

    Summed over the rows of an example, whose directions v are independent of each other.

    (C / n) sum |d(v . outputs)/dx|^2 with v uniform on the unit sphere (Hoffman et al. 2019).
    """
    total = torch.zeros(gradients.n, dtype=torch.float64, device=outputs.device)
    for _ in range(count):
        v = torch.randn(outputs.shape, generator=gradients.generator, dtype=torch.float32).to(outputs)
        row = gradients.gradient((v / v.norm(dim=-1, keepdim=True) * outputs).sum())
        if row is not None:
            total += row.double().square().sum(1)
    return total * outputs.shape[-1] / count


def spectral_norm(gradients: GradientPass, iterations: int) -> Tensor:
    """Largest singular value of J [N] by power iteration on J^T J, J v from a double backward pass."""
    logits, leaf = gradients.logits, gradients.leaf
    if leaf is None:
        raise RuntimeError("the input is not differentiable")
    w = torch.zeros_like(logits, requires_grad=True)
    (pulled,) = torch.autograd.grad(logits, leaf, w, create_graph=True)  # J^T w, linear in w
    v = torch.randn(leaf.shape, generator=gradients.generator, dtype=torch.float32).to(leaf)
    norm: Tensor = logits.new_zeros(gradients.n)
    for _ in range(iterations):
        v = v / _norm(v).clamp(min=torch.finfo(v.dtype).tiny)
        (u,) = torch.autograd.grad(pulled, w, v, retain_graph=True)
        norm = _norm_by_example(u, gradients)
        (v,) = torch.autograd.grad(logits, leaf, u, retain_graph=True)
    return norm


def _norm_by_example(u: Tensor, gradients: GradientPass) -> Tensor:
    """Norm [N] of all rows [P, C] of an example together."""
    squares = u.square().sum(-1)
    if gradients.owners is not None:
        squares = u.new_zeros(gradients.n).index_add_(0, gradients.owners, squares)
    norms: Tensor = squares.sqrt()
    return norms


def _norm(v: Tensor) -> Tensor:
    """Norm of each example's part of v [N, ...], shaped to divide it."""
    norms: Tensor = v.flatten(1).norm(dim=1)
    return norms.reshape(-1, *[1] * (v.dim() - 1))
