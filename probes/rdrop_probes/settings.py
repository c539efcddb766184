"""How to measure, and what a model's own sites change in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rdrop_probes.arithmetic import Precision
from rdrop_probes.masks import Masks
from rdrop_probes.sites import SitePlan
from rdrop_probes.strategies import Strategy

LEAST_MEMORY = 64 * 2**20


@dataclass(frozen=True)
class Settings:
    """How to measure: number of sub-models K, seed, masks, strategy, sub-models at a time (None: what fits).

    With a `tolerance` a pilot chooses K, so that the interval over masks of the mean EPKL is within it, relative to
    the mean. `memory` is what a run may take in bytes (None: what there is), `precision` what passes compute in (None:
    as the checkpoint is). `dropout` are rates at inference that sub-models are drawn at as well.
    """

    sub_models: int = 32
    seed: int = 0
    masks: Masks = "per-example"
    strategy: Strategy = "auto"
    chunk: int | None = None
    tolerance: float | None = None
    memory: int | None = None
    precision: Precision | None = None
    dropout: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.sub_models < 2:
            raise ValueError(f"{self.sub_models} sub-models have no pairs: take at least 2")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"a tolerance of {self.tolerance} makes no sense: 0.05 stands for 5% of the mean EPKL")
        if self.memory is not None and self.memory < LEAST_MEMORY:
            raise ValueError(f"{self.memory} bytes of memory are too few: take at least {LEAST_MEMORY // 2**20} MiB")
        if wrong := [rate for rate in self.dropout or () if not 0 < rate < 1]:
            raise ValueError(f"a dropout rate of {wrong[0]} makes no sub-models: it has to lie between 0 and 1")


def effective(settings: Settings, plan: SitePlan, findings: dict[str, str]) -> Settings:
    """Settings with masks shared by all examples where the model itself shares them within a batch."""
    if not (plan.shared_by_batch or plan.erratic) or settings.masks == "shared":
        return settings
    where = ", ".join(dict.fromkeys(site.key[0] or "(root)" for site in plan.shared_by_batch)) or "a random choice"
    text = f"masks of {where} cannot be told apart by example: all examples share theirs, sub-model by sub-model"
    findings["masks_shared"] = text
    return replace(settings, masks="shared")
