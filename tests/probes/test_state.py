"""A model and its surroundings are left as they were found, whatever happens, and do not leak into the numbers."""

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from model_zoo import MLP, C, N, columns_of
from torch import nn

from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.state import preserved

PROBES = [PairwiseKL, Gap, Jacobian, Prediction]


def surroundings() -> dict[str, Any]:
    """The global state of torch, Python and NumPy that a measurement touches or might touch."""
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what is checked
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "hooks": (
            len(nn.modules.module._global_forward_hooks),
            len(nn.modules.module._global_forward_pre_hooks),
            len(nn.modules.module._global_forward_hooks_always_called),
        ),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch.utils._python_dispatch._len_torch_dispatch_stack(),
    }


def inside(model: nn.Module) -> dict[str, Any]:
    """All of a model."""
    return {
        "flags": [m.training for m in model.modules()],
        "attributes": [{name: id(value) for name, value in vars(m).items()} for m in model.modules()],
        "hooks": [{n: list(v) for n, v in vars(m).items() if n.endswith("_hooks")} for m in model.modules()],
        "state": {name: (id(t), t.tolist()) for name, t in model.state_dict(keep_vars=True).items()},
        "requires grad": [p.requires_grad for p in model.parameters()],
    }


class Fails(nn.Module):
    """Raises `problem` in its n-th pass of a kind: any, one that draws, or one that is differentiated."""

    def __init__(self, passes: int, problem: type[BaseException], kind: str) -> None:
        super().__init__()
        self.problem, self.kind = problem, kind
        LEFT[0] = passes

    def forward(self, x):
        counts = {"any": True, "training": self.training, "gradients": torch.is_grad_enabled()}[self.kind]
        LEFT[0] -= counts
        if LEFT[0] < 0:
            raise self.problem("as asked")
        return F.dropout(x, 0.1, self.training)


LEFT = [0]  # outside the model, whose attributes are put back


@pytest.fixture(params=[True, False], ids=["training", "eval"])
def model_that_fails(request):
    def build(passes, problem, kind):
        fails = Fails(passes, problem, kind)
        modules = (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), fails, nn.Linear(8, C))
        model = nn.Sequential(*modules).train(request.param)
        model[2].train(not request.param)
        return model

    return build


@pytest.mark.parametrize("problem", [ArithmeticError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("kind", "passes"), [*(("any", n) for n in (0, 1, 2, 4, 6, 8, 10)), *(("training", n) for n in (0, 5, 9, 14))]
)
def test_an_exception_at_any_stage_leaves_everything_as_it_was_found(measured, model_that_fails, problem, kind, passes):
    model, x = model_that_fails(passes, problem, kind), torch.randn(N, 5)
    before = surroundings(), inside(model)
    with pytest.raises(problem, match="as asked"):
        measured(model, x, PROBES, sub_models=20, strategy="loop")
    assert (surroundings(), inside(model)) == before


@pytest.mark.parametrize("passes", [0, 1])
def test_an_interrupt_in_a_gradient_pass_leaves_everything_as_it_was_found(measured, model_that_fails, passes):
    model, x = model_that_fails(passes, KeyboardInterrupt, "gradients"), torch.randn(N, 5)
    before = surroundings(), inside(model)
    with pytest.raises(KeyboardInterrupt):
        measured(model, x, PROBES, sub_models=4)
    assert (surroundings(), inside(model)) == before


def test_success_leaves_everything_as_it_was_found(measured):
    model, x = MLP.build().train(), torch.randn(N, 5)
    before = surroundings(), inside(model)
    measured(model, x, PROBES, sub_models=4)
    assert (surroundings(), inside(model)) == before


class _Float64:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


class _Deterministic:
    def __enter__(self):
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *_):
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": _Float64,
    "deterministic algorithms": _Deterministic,
    "attention by flash kernels": lambda: nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_the_caller_has_turned_on_changes_no_number_and_stays_on(measured, name):
    model, x = MLP.build().eval(), torch.randn(N, 5)
    expected = columns_of(measured(model, x, PROBES, sub_models=6))
    with SURROUNDINGS[name]():
        before = surroundings()
        found = measured(model, x, PROBES, sub_models=6)
        assert surroundings() == before
    assert columns_of(found) == expected
    assert not found.findings


class OwnGenerators(nn.Module):
    """Draws its masks from generators of its own, and keeps a list and a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, C)
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.python, self.legacy = random.Random(1), np.random.RandomState(1)  # noqa: S311 - as users do
        self.seen: list[int] = []
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x):
        self.seen.append(len(x))
        self.cache["last"] = x
        if self.training:
            self.python.random()
            x = x * (torch.rand(x.shape, generator=self.torch) > 0.3)
            x = x * torch.bernoulli(torch.full_like(x, 0.7), generator=self.torch)
            x = x + 0.1 * torch.normal(0.0, 1.0, x.shape, generator=self.torch)
            x = x + torch.from_numpy(0.1 * self.numpy.normal(size=x.shape) + self.legacy.rand(*x.shape)).to(x)
        return self.head(x)


def test_generators_and_containers_of_the_model_are_put_back(measured):
    model, x = OwnGenerators(), torch.randn(N, 5)

    def states():
        legacy = model.legacy.get_state()
        return (
            *(model.torch.get_state().tolist(), model.numpy.bit_generator.state, model.python.getstate()),
            *(legacy[1].tolist(), legacy[2:], list(model.seen), dict(model.cache)),
        )

    before = states()
    found = measured(model, x, [PairwiseKL], sub_models=4)
    assert states() == before
    assert "uncontrolled_randomness" in found.findings  # those of NumPy and Python cannot be seeded from outside


def test_draws_from_a_torch_generator_that_nobody_knows_follow_from_the_seed_and_leave_it_alone(measured):
    own = torch.Generator().manual_seed(5)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, C)

        def forward(self, x):
            if self.training:
                x = x * (torch.rand(x.shape, generator=own) > 0.3) + torch.normal(0.0, 0.1, x.shape, generator=own)
                x = x * torch.empty_like(x).bernoulli_(0.7, generator=own)
            return self.head(x)

    model, x, before = Model(), torch.randn(N, 5), own.get_state().tolist()
    runs = [measured(model, x, [PairwiseKL], sub_models=6, seed=seed) for seed in (0, 0, 1)]
    assert columns_of(runs[0]) == columns_of(runs[1]) != columns_of(runs[2])
    assert own.get_state().tolist() == before
    assert not runs[0].findings


def test_preserved_can_be_nested():
    model = MLP.build()
    before = surroundings()
    with preserved(model), preserved(model):
        assert not torch.backends.mha.get_fastpath_enabled()
    assert surroundings() == before
