"""The popular architectures of Hugging Face: every site found, and the numbers those of plain train mode."""

from collections import Counter
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_zoo import ARCHITECTURES, N
from model_zoo import brute_force, mean_pairwise_kl, with_standard_error
from torch import Tensor, nn

from rdrop_probes.batch import Batch
from rdrop_probes.measure import measure
from rdrop_probes.measurement import Measurement
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import mask_spread
from rdrop_probes.strategies import StrategyError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")  # its own, of no concern here


@cache
def subject(name: str) -> tuple[nn.Module, dict[str, Tensor], Measurement]:
    """Model, inputs, and what is measured."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - Wav2Vec2 draws from the global one
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.build(), architecture.inputs()
    return model, inputs, _measured(name, model, inputs, sub_models=architecture.sub_models)


def _measured(name: str, model: nn.Module, inputs: dict[str, Tensor], **settings: Any) -> Measurement:
    forward = partial(ARCHITECTURES[name].forward, model)
    return measure(model, [Batch(inputs, N, 0)], forward=forward, probes=[PairwiseKL], settings=Settings(**settings))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_are_found_with_kind_and_rate(name):
    architecture, (_, _, found) = ARCHITECTURES[name], subject(name)
    sites = found.plan.sites.values()
    assert Counter((site.kind, site.rate) for site in sites) == architecture.sites
    assert sum(site.found_by_patching for site in sites) == architecture.found_by_patching
    assert not any(site.fires_in_eval for site in sites)
    assert set(found.findings) == ({"masks_shared"} if architecture.layerdrop else set())
    assert found.plan.foreign == architecture.layerdrop  # Wav2Vec2 masks spans of time by NumPy


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_epkl_is_that_of_plain_train_mode(name):
    model, inputs, found = subject(name)
    log_p = brute_force(model, inputs, forward=ARCHITECTURES[name].forward)
    expected, error = with_standard_error(mean_pairwise_kl, log_p)
    column = found.columns["epkl"]
    own = mask_spread(column, shared_masks=found.shared_masks).variance
    combined = (own + error**2) ** 0.5
    assert abs(column.values.mean() - expected) < 4 * combined
    assert expected > 8 * combined  # else there is nothing to agree on


@pytest.mark.parametrize("strategy", ["vmap", "fold"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_many_sub_models_at_a_time_agree_with_the_loop_but_for_layerdrop(name, strategy):
    model, inputs, _ = subject(name)
    if ARCHITECTURES[name].layerdrop:
        with pytest.raises(StrategyError, match="decided at random"):
            _measured(name, model, inputs, sub_models=4, strategy=strategy)
        return
    found, loop = (_measured(name, model, inputs, sub_models=4, strategy=s) for s in (strategy, "loop"))
    assert found.columns["epkl"].values == pytest.approx(loop.columns["epkl"].values, rel=1e-3)  # float32 logits


def test_gradient_checkpointing_changes_no_number():
    name = "BERT, eager"
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    expected = _measured(name, model, inputs, sub_models=6)
    model.activation_checkpointing_enable()
    found = _measured(name, model.train(), inputs, sub_models=6)
    assert found.columns["epkl"].values == pytest.approx(expected.columns["epkl"].values, rel=1e-5)  # float32 logits
    assert found.plan.sites.keys() == expected.plan.sites.keys()
    assert model.is_activation_checkpointing


@pytest.mark.parametrize("name", ["GPT-2, sdpa", "T5, sdpa"])
def test_a_cache_of_keys_and_values_changes_no_number(name):
    model, inputs = ARCHITECTURES[name].build(), ARCHITECTURES[name].inputs()
    runs = []
    for model.config.use_cache in (True, False):
        runs.append(_measured(name, model, inputs, sub_models=6).columns["epkl"].values)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)  # float32 logits
