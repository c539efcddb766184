"""What a journal says was decided once for a whole run, looked at before it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from rdrop_analysis.batching import Batching
from rdrop_probes.strategies import Choice
from rdrop_probes.weighing import GradientChoice


@dataclass(frozen=True)
class SubModelCount:
    """K as a pilot chose it, and the interval that it foretold."""

    sub_models: Annotated[int, msgspec.Meta(ge=2, lt=2**31)]
    half_width: float


KINDS = {"batching": Batching, "choice": Choice, "gradients": GradientChoice, "sub_models": SubModelCount}
COMPUTED = "computed."  # by a probe, which knows best what that is
COUNTS = ("chunk", "examples", "directions")  # at least 1


def are_sound(decisions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether decisions are what they are taken for."""
    try:
        return all(name.startswith(COMPUTED) or _is_sound(KINDS[name], found) for name, found in decisions.items())
    except (KeyError, msgspec.ValidationError):
        return False


def _is_sound(kind: type[Any], decision: Mapping[str, Any]) -> bool:
    made = vars(msgspec.convert(decision, kind))
    counts = [made[name] for name in COUNTS if name in made] + list(made.get("sizes", ()))
    return made.keys() >= decision.keys() and all(0 < count < 2**31 for count in counts)
