"""The probes by name: the built-in ones, and those that installed packages add by an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec

from rdrop_probes.attribution import Attribution, GaussianAttribution
from rdrop_probes.averaging import Averages, GaussianAverages
from rdrop_probes.calibration import Calibration
from rdrop_probes.families import FamilyName
from rdrop_probes.freedom import Freedom
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.noise_floor import NoiseFloors
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.probe import Probe
from rdrop_probes.regression import GaussianGap, GaussianPairwise
from rdrop_probes.sweep import GaussianSweep, Sweep
from rdrop_probes.temperature import TemperatureScaling

BUILT_IN: tuple[type[Probe], ...] = (
    *(PairwiseKL, GaussianPairwise, Gap, GaussianGap, Calibration, Jacobian, Prediction),
    *(Attribution, GaussianAttribution, Sweep, GaussianSweep),
    Freedom,
    *(Averages, GaussianAverages, TemperatureScaling, NoiseFloors),
)
DEFAULT = "default"
ENTRY_POINTS = "rdrop_analysis.probes"


def available(family: FamilyName = "categorical") -> dict[str, type[Probe]]:
    """Every probe class by its name, of those for outputs of a family."""
    probes: dict[str, type[Probe]] = {}
    for probe in (*BUILT_IN, *(entry.load() for entry in entry_points(group=ENTRY_POINTS))):
        if family in probe.families:
            probes.setdefault(probe.name, probe)
    return probes


def choose(
    names: Sequence[str] | None, *, labels: bool, family: FamilyName = "categorical", sweep: bool = False
) -> list[type[Probe]]:
    """The probes named with those that run beside them, or all that fit the data and are not for requests only.

    The name `default` stands for the latter. With `sweep`, that of dropout rates as well.

    Raises:
        ValueError: an unknown name, or a probe that needs labels named for data without them, or a package.
    """
    probes = available(family)
    usual = [p.name for p in probes.values() if not p.on_request and (labels or not p.needs_labels)]
    names = [n for name in ([DEFAULT] if names is None else names) for n in (usual if name == DEFAULT else [name])]
    if unknown := [name for name in names if name not in probes]:
        fit = "" if family == "categorical" else " for regression"
        raise ValueError(f"unknown probe {unknown[0]!r}{fit}: choose from {', '.join((DEFAULT, *probes))}")
    if not sweep and Sweep.name in names:
        raise ValueError(f"probe {Sweep.name} needs dropout rates: give some, 0.05 and 0.1 for instance")
    wanted = {*names, *[Sweep.name] * sweep}
    wanted |= {companion for name in wanted for companion in probes[name].companions}
    chosen = [probe for name, probe in probes.items() if name in wanted]
    if not labels and (needy := [probe.name for probe in chosen if probe.needs_labels]):
        raise ValueError(f"probe {needy[0]} needs labels, and the data have none")
    for probe in chosen:
        if missing := [name for name in probe.packages if find_spec(name) is None]:
            raise ValueError(f"probe {probe.name} needs {missing[0]}: pip install '{probe.packages[missing[0]]}'")
    return chosen
