"""How freely the parameters may move: Fisher information in them, its trace and its effective dimension.

R-Drop claims to take freedom from the parameters (Liang et al. 2021, section 2.3): here is what a checkpoint has of it.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rdrop_probes.columns import Column, ColumnSet, Floats, State
from rdrop_probes.fisher_trace import traces
from rdrop_probes.gram import fits, gram
from rdrop_probes.output_fisher import Leverages, OutputFisher, exact, leverages, trainable
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.sampling import errors_in_words
from rdrop_probes.selection import Case, Selection
from rdrop_probes.state import flags
from rdrop_probes.strategies import first_line

EXAMPLES = 256
IN_SPECTRUM = 128  # of them, on which the effective dimension is computed: it takes hundreds of passes
DELTA = 0.01
NUMBERS = 2**21  # in the outputs of all examples, beyond which their random vectors are not kept
FEWEST = 8  # examples, with fewer of which there is no spectrum to speak of


class Freedom(Probe):
    """Fisher information F of the eval model in all its trainable parameters theta.

    fisher_trace = E_x E_{y~p} |grad_theta log p(y|x)|^2, the sum of F's eigenvalues; for each example by gradients,
    exact up to 64 classes, sampled beyond and where an example has several rows (which are the x then).
    effective_dimension = sum of lambda / (lambda + delta) over the eigenvalues of F (MacKay 1992; Maddox et al. 2020).
    F is the curvature of the mean NLL (the generalised Gauss-Newton matrix): a direction counts in full where the data
    hold the parameters much more firmly than a weight decay of delta = 0.01 would, and not at all where they do much
    less. Its delta is the same for every checkpoint, and so are examples and random vectors.

    They are of at most 256 and 128 examples at equal distances in the data. The dimension grows with their number, so
    it can be compared on the same examples only. Its interval over new data is the jackknife's, from what the dimension
    falls by without example n, tr[(I - A_n)^-1 S_n] with the parts of F (F + delta)^-1 and delta F (F + delta)^-2 that
    its gradients have. Where the gradients of all outputs fit into memory nothing is random; else random vectors are
    crossed with examples, and the interval is a little narrow for not knowing what outputs of one example share.
    """

    name = "freedom"
    units: ClassVar = {"fisher_trace": "", "effective_dimension": ""}
    families = ("categorical", "gaussian")
    on_request = True
    packages: ClassVar = {"curvlinops": "rdrop-analysis[freedom]"}
    together = EXAMPLES

    def __init__(self) -> None:
        super().__init__()
        self.sampling = ColumnSet()
        self._findings: dict[str, str] = {}

    @classmethod
    def compute(cls, case: Case) -> State:
        """Traces by example, and the effective dimension with what it owes to each of them."""
        findings: dict[str, str] = {}
        made: State = {"indices": list(case.selection.indices), "n": case.selection.n, "findings": findings}
        if reason := _unfit(case):
            return made | {"findings": {"freedom_unavailable": f"no Fisher information in the parameters: {reason}"}}
        with _differentiable(case):
            try:
                made["trace"] = traces(case)
            except Exception as problem:  # a model may have anything in it that autograd cannot follow
                findings["freedom_unavailable"] = f"no Fisher information in the parameters: {first_line(problem)}"
                return made
            try:
                made["dimension"] = _dimension(case)
            except Exception as problem:  # or that cannot be differentiated forwards
                findings["dimension_unavailable"] = f"no effective dimension: {first_line(problem)}"
        if text := _in_words(made):
            findings["freedom_examples"] = text
        return made

    def take(self, found: State) -> None:
        """Make columns of what was computed, which is nothing for the examples that were not selected."""
        self._findings = dict(found["findings"])
        place, n = np.asarray(found["indices"], dtype=np.int64), int(found["n"])
        if trace := found.get("trace"):
            weights = None if trace["weights"] is None else _spread(trace["weights"], place, n, 0.0)
            self.kept.add("fisher_trace", Column(_spread(trace["values"], place, n), weights=weights, floor=0.0))
            if trace["sampled"]:
                self.sampling.add("fisher_trace", Column(_spread(trace["variance"], place, n), weights=weights))
                self._findings["sampled_freedom"] = f"{trace['sampled']}: gradients are of sampled y"
        if dimension := found.get("dimension"):
            by_vector, place = dimension["leave_out"], np.asarray(dimension["indices"], dtype=np.int64)
            self.kept.add(
                "effective_dimension",
                Column(
                    _spread(dimension["values"], place, n),
                    None if by_vector is None else _spread(dimension["variance"], place, n),
                    None if by_vector is None else np.asarray(by_vector, dtype=np.float64),
                    leave_out_n=len(place),
                    tabulated=False,
                    floor=0.0,
                    crossed=by_vector is not None,
                ),
            )

    def outcome(self) -> Outcome:
        """Columns, and what they are of."""
        findings = dict(self._findings)
        if errors := errors_in_words(self.sampling, self.kept):
            findings["sampled_freedom"] += f", which adds a standard error of {errors}; the interval contains it"
        return Outcome(self.kept, findings=findings)


def _in_words(made: State) -> str:
    """Of which examples the numbers are, where some were left out."""
    known = {"Fisher trace": len(made["indices"]), "effective dimension": len(made.get("dimension", made)["indices"])}
    left_out = [f"the {name} is estimated on {n} of {made['n']} examples" for name, n in known.items() if n < made["n"]]
    return "; ".join(left_out if "dimension" in made else left_out[:1])


def _unfit(case: Case) -> str:
    """Why there is nothing to compute; empty if there is."""
    if not trainable(case.model):
        return "none of them is trainable"
    if any(site.fires_in_eval for site in case.plan.sites.values()):
        return "the eval model draws randomness"
    return ""


def _differentiable(case: Case) -> ExitStack:
    """The model in eval mode, with recurrent layers in a form that has gradients in it."""
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", DeprecationWarning)  # of how torch compiles its forward derivatives
    stack.enter_context(flags(case.model, case.plan.eval_modules))
    if any(isinstance(module, nn.RNNBase) for module in case.model.modules()):
        stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        setattr(torch.backends.mkldnn, "enabled", False)  # noqa: B010 - its type is that of the descriptor behind it
    return stack


def _dimension(case: Case) -> State:
    """The effective dimension as the mean over examples of values that vary as it does with the examples."""
    width = _width(case)
    shares = -(-width * len(_owners(case.selection)) // NUMBERS), -(-len(case.selection.indices) // IN_SPECTRUM)
    selection = case.selection.thinned(max(shares))
    if len(selection.indices) < FEWEST:
        raise ValueError(f"it takes {FEWEST} examples, with at most {NUMBERS} numbers in all their outputs")
    case, owners = replace(case, selection=selection), _owners(selection)
    found = _leverages(case, width * len(owners))
    return {"indices": list(selection.indices)} | _jackknifed(found, owners, width, len(selection.indices))


def _leverages(case: Case, numbers: int) -> Leverages:
    """What each number of the outputs has in the effective dimension; from the whole matrix where that can be made."""
    if fits(case, numbers):
        return exact(gram(case), DELTA)
    fisher, step = OutputFisher(case), partial(case.stage, "effective dimension")
    return leverages(fisher, numbers, DELTA, seed=case.seed, at_a_time=fisher.at_a_time, step=step)


def _width(case: Case) -> int:
    """How many numbers are in a row of the outputs."""
    with torch.no_grad():
        return int(case.forward(next(case.selection.parts(1)).inputs).shape[-1])


def _owners(selection: Selection) -> Tensor:
    """[R], the place among the selected examples of the one that each row belongs to."""
    found, first = [], 0
    for batch in selection.batches:
        found.append(first + (torch.arange(batch.n) if batch.owners is None else batch.owners.cpu()))
        first += batch.n
    return torch.cat(found)


def _jackknifed(found: Leverages, owners: Tensor, width: int, n: int) -> State:
    """Values by example d + n (t_n - w_n t), t_n what d falls by without it, w_n its share; means of V vectors."""
    share = torch.bincount(owners, minlength=n).double() / len(owners)
    dimensions = found.counted.sum(1)
    falls = found.without(owners.repeat_interleave(width), n)  # [V, n]
    moved = n * (falls - share * falls.sum(1, keepdim=True))
    vectors = len(dimensions)
    leave_out = None if found.exact else n * (dimensions.sum() - dimensions) / (vectors - 1)
    return {
        "values": (dimensions.mean() + moved.mean(0)).numpy(),
        "variance": None if found.exact else (moved.var(0) / vectors).numpy(),
        "leave_out": None if leave_out is None else leave_out.numpy(),
    }


def _spread(values: Floats, place: NDArray[np.int64], n: int, rest: float = np.nan) -> Floats:
    """Values at their places among all [n] examples."""
    whole = np.full(n, rest)
    whole[place] = values
    return whole
