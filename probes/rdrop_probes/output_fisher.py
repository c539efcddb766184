"""Effective dimension of the Fisher information in the parameters, by products with the Jacobian alone.

F = J^T H J / R over R rows of the output, with H = L L^T, has the same non-zero eigenvalues as K = L^T J J^T L / R,
whose vectors are as long as the outputs and not as the parameters: they can be kept, and orthogonalised. The sum of
f(lambda) is the trace of f(K), and the diagonal of f(K) says what every row of every example has in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.families import Gaussian
from rdrop_probes.selection import Case

PART = 32  # examples of a pass
SMALL = 256  # numbers in all outputs up to which K is made whole, and nothing is random
VECTORS = 6
STEPS = 64
LOOK = 4  # steps between looks at what has been reached
ENOUGH = 1e-3  # relative change of every quadrature at which no further step is taken
LEAST = 1e-3  # of what an output leaves to others in its own direction, below which random vectors err
AT_A_TIME = 2**25  # numbers in the vectors of parameters that are held together

Product = Callable[[Tensor], Tensor]
Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Leverages:
    """Diagonals of functions of K, [V, D] each by random vector; [1, D] where they are exact.

    Attributes:
        counted: of lambda / (lambda + delta), whose sum is the effective dimension.
        slope: of delta lambda / (lambda + delta)^2, its change where the eigenvalues grow in proportion.
        matrices: the two functions themselves [D, D]; None where random vectors are behind the diagonals.
    """

    counted: Tensor
    slope: Tensor
    matrices: tuple[Tensor, Tensor] | None = None

    @property
    def exact(self) -> bool:
        """Whether no random vectors are behind them."""
        return self.matrices is not None

    def without(self, owners: Tensor, n: int) -> Tensor:
        """By how much the dimension falls [V, n] without the numbers that belong to each of n examples.

        tr[(I - A)^-1 S] with the examples' own parts A and S of the two matrices (Woodbury); of diagonals alone
        it is sum s / (1 - a), which leaves out what the numbers of one example have in common.
        """
        if self.matrices is None:
            each = self.slope / (1 - self.counted.mean(0)).clamp(min=LEAST)
            return each.new_zeros(len(each), n).index_add_(1, owners, each)
        parts = [[m[own][:, own] for m in self.matrices] for own in (owners == example for example in range(n))]
        falls = [torch.linalg.solve(torch.eye(len(a), dtype=a.dtype) - a, s).trace() for a, s in parts]
        return torch.stack(falls)[None]


def leverages(
    product: Product, size: int, delta: float, *, seed: int, at_a_time: int = VECTORS, step: Step = lambda *_: None
) -> Leverages:
    """Diagonals for the matrix K [size, size] whose products with [size, V] are given.

    With random signs e, e * f(K) e has the expectation diag f(K) (Hutchinson 1989), and f(K) e comes from Lanczos steps
    that start with e (stochastic Lanczos quadrature, Ubaru, Chen and Saad 2017). `step` is told how many steps are
    done, and of how many at most.
    """
    if size <= SMALL:
        return exact(product(torch.eye(size, dtype=torch.float64)), delta)
    numbers = torch.randint(0, 2, (size, VECTORS), generator=torch.Generator().manual_seed(seed % 2**63))
    parts = numbers.split(at_a_time, dim=1)
    counter = count(1)

    def counted_product(vectors: Tensor) -> Tensor:
        made = product(vectors)
        step(next(counter), STEPS * len(parts))
        return made

    found = [_lanczos(counted_product, signs.double() * 2 - 1, delta) for signs in parts]
    step(STEPS * len(parts), STEPS * len(parts))
    counted, slope = (torch.cat(parts, dim=1).T for parts in zip(*found, strict=True))
    return Leverages(counted, slope)


def exact(whole: Tensor, delta: float) -> Leverages:
    """Diagonals for the matrix K [D, D] itself."""
    values, vectors = torch.linalg.eigh((whole + whole.T) / 2)
    counted, slope = ((vectors * f) @ vectors.T for f in _functions(values, delta))
    return Leverages(counted.diagonal()[None], slope.diagonal()[None], (counted, slope))


def _lanczos(product: Product, signs: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Estimates [D, V] of both diagonals, by as many steps as they need, reorthogonalised, for each vector alone."""
    length = signs.norm(dim=0)
    basis, diagonal, beside = [signs / length], list[Tensor](), list[Tensor]()
    reached = torch.zeros_like(length)
    while True:
        new = product(basis[-1])
        diagonal.append((new * basis[-1]).sum(0))
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        steps = len(basis)
        if steps % LOOK == 0 or steps == min(STEPS, len(signs)):
            before, reached = reached, (vectors[:, 0].square() * _functions(values, delta)[0]).sum(-1)
            if steps >= min(STEPS, len(signs)) or bool(((reached - before).abs() <= ENOUGH * reached).all()):
                break
        known = torch.stack(basis)  # [m, D, V]
        for _ in range(2):
            new = new - torch.einsum("mdv,mv->dv", known, torch.einsum("mdv,dv->mv", known, new))
        beside.append(new.norm(dim=0))
        alive = beside[-1] > torch.finfo(torch.float32).eps * diagonal[0]  # else all of K that the vector sees is known
        beside[-1] = torch.where(alive, beside[-1], 0.0)
        basis.append(torch.where(alive, new / beside[-1].clamp(min=torch.finfo(new.dtype).tiny), 0.0))
    first, second = (
        torch.einsum("mdv,vm->dv", torch.stack(basis), (vectors @ (vectors[:, 0] * f)[..., None])[..., 0])
        for f in _functions(values, delta)
    )
    return signs * length * first, signs * length * second


def _tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """[V, m, m]."""
    found = torch.diag_embed(torch.stack(diagonal, -1))
    if beside:
        off = torch.stack(beside, -1)
        found = found + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return found


def _functions(values: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """What each eigenvalue counts for, and how that grows with it."""
    values = values.clamp(min=0)  # below 0 by rounding
    return values / (values + delta), delta * values / (values + delta).square()


class OutputFisher:
    """K = L^T J J^T L / R as products, J with respect to all trainable parameters, by curvlinops.

    For classes H = diag(p) - p p^T and L = diag(sqrt p) - p sqrt(p)^T; for a Gaussian H = I / variance.
    """

    def __init__(self, case: Case) -> None:
        from curvlinops import JacobianLinearOperator

        self.parameters = trainable(case.model)
        self._family = case.family
        parts = [part for part in case.selection.parts(PART) if part.places is None or part.places.any()]
        rows = [part.n if part.owners is None else len(part.owners) for part in parts]
        batches = [{"batch": part, "rows": count} for part, count in zip(parts, rows, strict=True)]
        network = _Rows(case)
        with torch.no_grad():
            outputs = torch.cat([network(batch) for batch in batches])
        self.shape = outputs.shape
        self._p = outputs.double().softmax(-1)
        self._dtype = outputs.dtype
        self._jacobian: Any = JacobianLinearOperator(
            network,
            self.parameters,
            [(batch, torch.zeros(count)) for batch, count in zip(batches, rows, strict=True)],
            check_deterministic=False,  # the pass is checked before, as everything else's
            num_data=len(outputs),
            batch_size_fn=lambda batch: batch["rows"],
        )
        self._transposed = self._jacobian.adjoint()

    @property
    def at_a_time(self) -> int:
        """How many vectors to multiply with together."""
        return max(1, min(VECTORS, AT_A_TIME // sum(parameter.numel() for parameter in self.parameters)))

    def __call__(self, vectors: Tensor) -> Tensor:
        """K v [D, V] for v [D, V], float64; the model computes as it does."""
        return torch.cat([self._product(some) for some in vectors.split(self.at_a_time, dim=1)], dim=1)

    def _product(self, vectors: Tensor) -> Tensor:
        v = vectors.to(self._p.device).reshape(*self.shape, -1)
        pulled = self._transposed @ self._scaled(v).flatten(0, 1).to(self._dtype)
        pushed = (self._jacobian @ pulled).double().reshape(v.shape)
        found: Tensor = self._scaled(pushed, transposed=True).flatten(0, 1) / self.shape[0]
        return found.to(vectors.device)

    def _scaled(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        """L v, or L^T v, for v [R, C, V]."""
        if isinstance(self._family, Gaussian):
            return v / sqrt(self._family.variance)
        p = self._p[..., None]
        one, other = (p.sqrt(), p) if transposed else (p, p.sqrt())
        found: Tensor = p.sqrt() * v - one * (other * v).sum(1, keepdim=True)
        return found


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class _Rows(nn.Module):
    """The rows of a batch as a module's output, which is what curvlinops takes."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.training = False
        self.model = case.model
        self._forward = (case.forward,)  # in a tuple: a module would be registered a second time

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Scores [P, C]."""
        rows: Tensor = batch["batch"].rows(self._forward[0](batch["batch"].inputs))
        return rows
