"""R-Drop's loss equals naive loops over pairs and the published formulas, in value and gradient."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rdrop_analysis.losses import (
    CONVENTIONS,
    RDropLoss,
    concatenated_forward,
    mean_pairwise_kl,
    separate_forward,
)


def close(found: Tensor, expected: Tensor) -> None:
    """Compare in float64, whose 16 digits sums of a few hundred terms of order 1 to 10 lower by about three."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def logits_and_labels(*shape: int, passes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random logits [m, *shape] in float64 and labels for all but their last dimension."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(passes, *shape, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(shape[-1], shape[:-1], generator=generator)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(P‖Q) by its definition, of the shape of the positions."""
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    return (p * (p / q).log()).sum(-1)


def pair(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two passes and the divergences between them, both ways."""
    first, second = logits
    return first, second, kl(first, second), kl(second, first)


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean", smoothing: float = 0.0) -> Tensor:
    return functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction=reduction, label_smoothing=smoothing
    )


def paper(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    first, second, there, back = pair(logits)
    nll = cross_entropy(first, labels) + cross_entropy(second, labels)
    return nll + alpha * 0.5 * (there + back).mean()


def article(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    first, second, there, back = pair(logits)
    nll = 0.5 * (cross_entropy(first, labels) + cross_entropy(second, labels))
    return nll + alpha * (there.sum() + back.sum()) / 2


def vit(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    first, second, there, back = pair(logits)
    return cross_entropy(first, labels) + cross_entropy(second, labels) + alpha * (there.sum() + back.sum())


def fairseq(logits: Tensor, labels: Tensor, alpha: float, smoothing: float = 0.0) -> Tensor:
    *_, there, back = pair(logits)
    doubled = cross_entropy(logits.flatten(0, 1), torch.cat([labels, labels]), "sum", smoothing)
    return doubled + alpha * (there.sum() + back.sum()) / 2


def glue(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    first, second, there, back = pair(logits)
    nll = cross_entropy(first, labels) + cross_entropy(second, labels)
    return nll + alpha * (there.sum() + back.sum()) / 2


PUBLISHED: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "paper": paper,
    "article": article,
    "vit": vit,
    "fairseq": fairseq,
    "glue": glue,
}


def test_every_convention_has_its_oracle() -> None:
    assert PUBLISHED.keys() == CONVENTIONS.keys()


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("shape", [(8, 5), (3, 4, 6), (1, 2)])
def test_a_convention_is_the_published_formula_with_its_gradient(
    convention: str, alpha: float, shape: tuple[int, ...]
) -> None:
    logits, labels = logits_and_labels(*shape)
    expected = PUBLISHED[convention](logits, labels, alpha)
    loss = RDropLoss(alpha, convention=convention)(logits, labels)
    close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    close(gradient, expected_gradient)


def test_the_conventions_differ() -> None:
    logits, labels = logits_and_labels(8, 5)
    losses = {round(RDropLoss(1.0, convention=name)(logits, labels).item(), 6) for name in CONVENTIONS}
    assert len(losses) == len(CONVENTIONS)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("passes", [2, 3, 5])
def test_m_passes_are_the_mean_over_pairs(convention: str, passes: int) -> None:
    logits, labels = logits_and_labels(6, 4, passes=passes)
    pairs = torch.combinations(torch.arange(passes))
    expected = torch.stack([PUBLISHED[convention](logits[pair], labels, 0.7) for pair in pairs]).mean()
    close(RDropLoss(0.7, convention=convention)(logits, labels), expected)


@pytest.mark.parametrize("passes", [2, 3, 6])
def test_the_divergence_is_a_loop_over_ordered_pairs(passes: int) -> None:
    logits, _ = logits_and_labels(3, 4, 5, passes=passes)
    ordered = [kl(logits[i], logits[j]) for i in range(passes) for j in range(passes) if i != j]
    expected = torch.stack(ordered).mean(dim=0)
    close(mean_pairwise_kl(logits.log_softmax(-1)), expected)


def test_two_passes_that_agree_almost_keep_their_digits_in_float32() -> None:
    logits, _ = logits_and_labels(64, 1000)
    near = torch.stack([logits[0], logits[0] + 1e-3 * logits[1]]).detach()
    expected = 0.5 * (kl(near[0], near[1]) + kl(near[1], near[0]))
    found = mean_pairwise_kl(near.float().log_softmax(-1))
    # float32 rounds log p to about 1e-6 of the difference's 1e-3; the error is averaged over the classes
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0.0)


def test_the_terms_add_up_to_the_loss() -> None:
    logits, labels = logits_and_labels(6, 4)
    loss = RDropLoss(0.7)
    terms = loss.terms(logits, labels)
    close(terms.loss, terms.fit + 0.7 * terms.consistency)
    assert torch.equal(terms.loss, loss(logits, labels))
    assert terms.consistency > 0


def test_tuples_lists_and_concatenated_outputs_are_the_same_passes() -> None:
    logits, labels = logits_and_labels(6, 4)
    loss = RDropLoss(1.0)
    expected = loss(logits, labels)
    assert torch.equal(loss((logits[0], logits[1]), labels), expected)
    assert torch.equal(loss([logits[0], logits[1]], labels), expected)
    assert torch.equal(loss.from_concatenated(torch.cat([logits[0], logits[1]]), labels), expected)


# ---- positions that do not count


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_padding_and_ignored_labels_are_as_if_cut_out(convention: str) -> None:
    logits, labels = logits_and_labels(4, 5, 3)
    padded = torch.zeros(4, 5, dtype=torch.bool)
    padded[:2, 3:] = True
    padded[3, 0] = True
    expected = PUBLISHED[convention](logits[:, ~padded].unsqueeze(1), labels[~padded].unsqueeze(0), 0.7)
    loss = RDropLoss(0.7, convention=convention)
    close(loss(logits, labels, padded), expected)
    close(loss(logits, labels.masked_fill(padded, -100)), expected)
    half = padded & (torch.arange(5) > 3)
    close(loss(logits, labels.masked_fill(half, -100), padded), expected)
    other = RDropLoss(0.7, convention=convention, ignore_index=-1)
    close(other(logits, labels.masked_fill(padded, -1)), expected)


def test_true_in_the_mask_means_ignore() -> None:
    logits, labels = logits_and_labels(2, 3, 4)
    mask = torch.tensor([[False, False, True], [False, False, True]])
    changed = logits.detach().clone()
    changed[:, :, 2] = 50 * torch.randn(2, 2, 4, dtype=torch.float64)
    loss = RDropLoss(1.0)
    assert torch.equal(loss(logits, labels, mask), loss(changed, labels, mask))
    assert not torch.equal(loss(logits, labels, ~mask), loss(changed, labels, ~mask))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_nothing_but_padding_costs_nothing(convention: str) -> None:
    logits, labels = logits_and_labels(2, 3, 4)
    loss = RDropLoss(1.0, convention=convention)(logits, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# ---- settings


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_label_smoothing_is_torchs(smoothing: float) -> None:
    logits, labels = logits_and_labels(3, 4, 6)
    loss = RDropLoss(0.7, convention="fairseq", label_smoothing=smoothing)
    close(loss(logits, labels), fairseq(logits, labels, 0.7, smoothing))


def test_a_reduction_replaces_both_of_the_convention() -> None:
    logits, labels = logits_and_labels(4, 5, 3)
    sums = fairseq(logits, labels, 0.7)
    reduced = {name: RDropLoss(0.7, reduction=name)(logits, labels) for name in ("sum", "mean", "batchmean")}
    close(reduced["sum"], sums)
    close(reduced["mean"], sums / 20)
    close(reduced["batchmean"], sums / 4)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_regression_compares_outputs_by_their_squares(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randn(shape, generator=generator, dtype=torch.float64)
    first, second = outputs
    expected = (
        functional.mse_loss(first, targets)
        + functional.mse_loss(second, targets)
        + 0.7 * functional.mse_loss(first, second)
    )
    loss = RDropLoss(0.7, task="regression")
    close(loss(outputs, targets), expected)
    if shape[1:] == (1,):
        close(loss(outputs, targets.squeeze(1)), expected)
    first_half = torch.arange(6) >= 3
    close(loss(outputs, targets, first_half), loss(outputs[:, :3], targets[:3]))


def test_three_regression_passes_are_the_mean_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    loss = RDropLoss(0.7, task="regression")
    pairs = [loss(outputs[pair], targets) for pair in torch.combinations(torch.arange(3))]
    close(loss(outputs, targets), torch.stack(pairs).mean())


# ---- extremes


def finite_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss after checking that its gradient is finite."""
    logits = logits.detach().requires_grad_()
    loss: Tensor = RDropLoss(1.0)(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    return loss


def test_a_class_impossible_in_every_pass_contributes_nothing() -> None:
    logits, labels = logits_and_labels(6, 4)
    wider = torch.cat([logits, torch.full((2, 6, 2), -torch.inf, dtype=torch.float64)], dim=-1)
    close(finite_gradient(wider, labels), finite_gradient(logits, labels))


def test_a_class_impossible_in_one_pass_only_is_infinitely_inconsistent() -> None:
    logits, labels = logits_and_labels(6, 4)
    broken = logits.detach().clone()
    broken[0, 2, (labels[2] + 1) % 4] = -torch.inf
    terms = RDropLoss(1.0).terms(broken, labels)
    assert terms.consistency == torch.inf
    assert terms.fit.isfinite()
    assert RDropLoss(0.0)(broken, labels).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_logits_stay_finite(dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(6, 4)
    finite_gradient((1e4 * logits.sign()).to(dtype), labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(6, 4)
    half = logits.detach().to(dtype)
    loss = finite_gradient(half, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, RDropLoss(1.0)(half.float(), labels))


def test_equal_passes_are_perfectly_consistent() -> None:
    logits, labels = logits_and_labels(6, 4)
    assert RDropLoss(1.0).terms(torch.stack([logits[0], logits[0]]), labels).consistency == 0


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be at least 0"),
        ({"alpha": float("nan")}, "alpha must be at least 0"),
        ({"alpha": 1.0, "convention": "best"}, "unknown convention 'best': known are paper, article"),
        ({"alpha": 1.0, "reduction": "none"}, "unknown reduction"),
        ({"alpha": 1.0, "task": "ranking"}, "unknown task"),
        ({"alpha": 1.0, "label_smoothing": 1.5}, "label_smoothing"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDropLoss(**settings)  # type: ignore[arg-type]  # the wrong types are the point


def test_shapes_that_do_not_go_together_are_refused() -> None:
    logits, labels = logits_and_labels(6, 4)
    loss = RDropLoss(1.0)
    with pytest.raises(ValueError, match="at least two passes"):
        loss(logits[:1], labels)
    with pytest.raises(ValueError, match=r"need labels \[6\], not \[5\]"):
        loss(logits, labels[:5])
    with pytest.raises(ValueError, match="must be bool"):
        loss(logits, labels, torch.zeros(6))
    with pytest.raises(ValueError, match="must be bool"):
        loss(logits, labels, torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="7 rows are not 2 passes"):
        loss.from_concatenated(torch.zeros(7, 4), labels)
    with pytest.raises(ValueError, match="need targets"):
        RDropLoss(1.0, task="regression")(torch.zeros(2, 6, 3), torch.zeros(6))


def test_the_settings_show() -> None:
    assert repr(RDropLoss(2.0)) == "RDropLoss(alpha=2.0, convention='paper', task='classification')"


# ---- running the model


class Adds(nn.Module):
    """Adds its arguments after dropout."""

    def __init__(self, wrap: Callable[[Tensor], object] = lambda output: output) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.wrap = wrap

    def forward(self, a: Tensor, b: Tensor | None = None) -> object:
        return self.wrap(self.drop(a if b is None else a + b))


@pytest.mark.parametrize("run", [concatenated_forward, separate_forward])
@pytest.mark.parametrize("passes", [2, 3])
def test_the_passes_differ_in_their_masks_only(run: Callable[..., Tensor], passes: int) -> None:
    x = torch.rand(5, 40) + 1
    for inputs, total in ((x, x), ((x, x + 1), x + (x + 1)), ({"b": x, "a": x + 1}, x + (x + 1))):
        outputs = run(Adds(), inputs, passes)
        assert outputs.shape == (passes, 5, 40)
        for output in outputs:
            assert torch.equal(output[output != 0], 2 * total[output != 0])
        assert len({tuple((output != 0).flatten().tolist()) for output in outputs}) == passes
        calm = run(Adds().eval(), inputs, passes)
        assert torch.equal(calm, total.expand(passes, 5, 40))


@pytest.mark.parametrize("wrap", [lambda output: {"logits": output}, lambda output: SimpleNamespace(logits=output)])
def test_logits_are_found_in_the_output(wrap: Callable[[Tensor], object]) -> None:
    x = torch.rand(3, 2)
    assert torch.equal(concatenated_forward(Adds(wrap).eval(), x), x.expand(2, 3, 2))


@pytest.mark.parametrize("run", [concatenated_forward, separate_forward])
def test_one_pass_and_outputs_without_logits_are_refused(run: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="at least two passes, not 1"):
        run(Adds(), torch.ones(2, 2), passes=1)
    with pytest.raises(TypeError, match="returned a str"):
        run(Adds(lambda output: "logits"), torch.ones(2, 2))
