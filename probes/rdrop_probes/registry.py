"""The probes by name: the built-in ones, and those that installed packages add by an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from rdrop_probes.calibration import Calibration
from rdrop_probes.families import FamilyName
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.probe import Probe
from rdrop_probes.regression import GaussianGap, GaussianPairwise

BUILT_IN: tuple[type[Probe], ...] = (PairwiseKL, GaussianPairwise, Gap, GaussianGap, Calibration, Jacobian, Prediction)
ENTRY_POINTS = "rdrop_analysis.probes"


def available(family: FamilyName = "categorical") -> dict[str, type[Probe]]:
    """Every probe class by its name, of those for outputs of a family."""
    probes: dict[str, type[Probe]] = {}
    for probe in (*BUILT_IN, *(entry.load() for entry in entry_points(group=ENTRY_POINTS))):
        if family in probe.families:
            probes.setdefault(probe.name, probe)
    return probes


def choose(names: Sequence[str] | None, *, labels: bool, family: FamilyName = "categorical") -> list[type[Probe]]:
    """The probes named, or all that fit the data.

    Raises:
        ValueError: an unknown name, or a probe that needs labels named for data without them.
    """
    probes = available(family)
    if names is None:
        return [probe for probe in probes.values() if labels or not probe.needs_labels]
    if unknown := [name for name in names if name not in probes]:
        fit = "" if family == "categorical" else " for regression"
        raise ValueError(f"unknown probe {unknown[0]!r}{fit}: choose from {', '.join(probes)}")
    chosen = [probe for name, probe in probes.items() if name in names]
    if not labels and (needy := [probe.name for probe in chosen if probe.needs_labels]):
        raise ValueError(f"probe {needy[0]} needs labels, and the data have none")
    return chosen
