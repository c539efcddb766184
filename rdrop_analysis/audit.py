"""The dropout of a checkpoint's model, as `rdrop-analyze sites` tells it: repeated layers in one row, and a verdict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from rdrop_analysis.files import counted
from rdrop_probes.records import SiteRecord

NUMBER = re.compile(r"(?<![^.#])\d+(?![^.#])")  # a whole part of a path, or an ordinal


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Every site of a checkpoint's model, and what else is random in it.

    `outside_torch`: it also draws from Python's or NumPy's generators (LayerDrop, SpecAugment). `uncontrolled`: two
    passes under the same masks differ, by generators of the model's own.
    """

    checkpoint: str
    sites: list[SiteRecord]
    outside_torch: bool = False
    uncontrolled: bool = False

    def to_json(self) -> bytes:
        """Strict, indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def sentences(self) -> list[str]:
        """What the sites amount to, the number of them first."""
        said = [self._reached()] if self.sites else []
        if dirty := _count(site for site in self.sites if site.fires_in_eval):
            text = f"Dirty eval: {dirty} fires in eval mode as well, so that the deployed model's outputs are random."
            said.append(text)
        if self.outside_torch:
            said.append("The model also draws from Python's or NumPy's generators, which leaves no mask to list.")
        if self.uncontrolled:
            said.append("Two passes under the same masks differ: it draws from generators of its own.")
        return said or ["The model draws nothing: it has no active dropout."]

    def _reached(self) -> str:
        """How many sites module patching reaches."""
        recipe = "switching nn.Dropout modules on in eval mode, as tools for MC dropout do,"
        sites = counted(len(self.sites), "site")
        missed = [site for site in self.sites if not site.found_by_patching]
        if not missed:
            return f"{sites}: {recipe} reaches all of them."
        reached = len(self.sites) - len(missed)
        return f"{sites}: {recipe} reaches {reached or 'none'} and misses {_count(missed)}."


@dataclass(frozen=True)
class Row:
    """Sites that differ in nothing but the numbers in their paths and in their rates."""

    label: str
    sites: Sequence[SiteRecord]

    @property
    def rate(self) -> str:
        """The rate, or the smallest and the largest."""
        rates = sorted({site.rate for site in self.sites if site.rate is not None})
        return " to ".join(f"{rate:.3g}" for rate in (rates[:1] + rates[1:][-1:]))

    @property
    def mask(self) -> str:
        """The mask's shape for one example."""
        return " x ".join(map(str, self.sites[0].mask_shape)) or "1"


def rows(sites: Sequence[SiteRecord], *, every: bool = False) -> list[Row]:
    """A row for each group of repeated layers, in the order of the first; with `every` one for each site."""
    if every:
        return [Row(site.label, [site]) for site in sites]
    groups: dict[object, list[SiteRecord]] = {}
    for site in sites:
        alike = (site.kind, site.rate is None, *site.mask_shape, site.fires_in_eval, site.found_by_patching)
        groups.setdefault((NUMBER.sub("*", _numbered(site)), alike, site.per_example), []).append(site)
    return [Row(_label(group), group) for group in groups.values()]


def _numbered(site: SiteRecord) -> str:
    """Path with the ordinal."""
    return f"{site.path or '(root)'}#{site.ordinal}"


def _label(group: Sequence[SiteRecord]) -> str:
    """`layer.{0-11}.dropout` for twelve sites, `layer.{0-11}.dropout#1` for the second draws of theirs."""
    names = [_numbered(site) for site in group]
    places = zip(*(map(int, NUMBER.findall(name)) for name in names), strict=True)
    spans = iter([_span(sorted(set(numbers))) for numbers in places])
    return NUMBER.sub(lambda _: next(spans), names[0]).removesuffix("#0")


def _span(numbers: Sequence[int]) -> str:
    """`3` for one number, else `{0-2,5}`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return parts[0] if len(numbers) == 1 else f"{{{','.join(parts)}}}"


def _count(sites: Iterable[SiteRecord]) -> str:
    """How many of which kinds, the most frequent first."""
    kinds = Counter(site.kind for site in sites).most_common()
    if len(kinds) == 1:
        return f"{kinds[0][1]} ({kinds[0][0]})"
    return f"{sum(n for _, n in kinds)} ({', '.join(f'{n} {kind}' for kind, n in kinds)})" if kinds else ""
