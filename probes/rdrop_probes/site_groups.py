"""Which part of a network a site belongs to, as far as its path and its kind tell: the kind of module, and the layer.

Names differ between libraries, so that the rules are few and cautious; what none of them knows is `other`:

- attention: dropout of attention probabilities, and whatever lies in a module called attention (`attn`, `attention`);
- mlp: in a module called `mlp`, `ffn`, `ff`, `feed_forward`, `intermediate` or the like;
- embedding, head: in a module called so (`embed`, `head`, `classifier`, `pooler`, ...);
- the layers of `nn.TransformerEncoder` and `nn.TransformerDecoder`, told by their `self_attn` and `dropout1`; BERT's
  `layer.N.output`, told by an `attention` beside it;
- in a network with numbered layers of attention, a site outside of them is of the embedding where it draws before all
  of them (or all of its decoder's), and of the head where it draws after all of them.

The layer is the first number in the path behind a name (`encoder.layers.3`), or the first of all (`3` in a plain
`nn.Sequential`); the path before it tells an encoder's layers from a decoder's. The steps of a head or an embedding
(`classifier.1`) are no layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rdrop_probes.sites import Site, SiteKey

ATTENTION, MLP, EMBEDDING, HEAD, OTHER = "attention", "mlp", "embedding", "head", "other"
KINDS = (EMBEDDING, ATTENTION, MLP, HEAD, OTHER)

_NAMED = (
    (ATTENTION, re.compile(r"attn|attention", re.IGNORECASE)),
    (MLP, re.compile(r"^(mlp|ffn?|moe|experts?|dense_?relu.*|.*feed_?forward.*|intermediate)\d*$", re.IGNORECASE)),
    (EMBEDDING, re.compile(r"embed|^pos_drop$|^embd_", re.IGNORECASE)),
    (HEAD, re.compile(r"^(.*_)?head$|classifier|^pooler$|^cls$|^score$", re.IGNORECASE)),
)
_IN_ENCODER = {"dropout": MLP, "dropout1": ATTENTION, "dropout2": MLP}
_IN_DECODER = {"dropout": MLP, "dropout1": ATTENTION, "dropout2": ATTENTION, "dropout3": MLP}


def kinds_of(sites: Mapping[SiteKey, Site]) -> dict[SiteKey, str]:
    """The kind of module that each site is in, of :data:`KINDS`."""
    paths = {path for path, _ in sites}
    found = {key: _kind(site, paths) for key, site in sites.items()}
    return found | _outside(found)


def layer_of(key: SiteKey) -> tuple[str, int] | None:
    """The path up to the number of a site's layer, and the number; None where there is none."""
    parts = key[0].split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal() and not _outer(parts[:place])]
    named = [place for place in numbers if place and not parts[place - 1].isdecimal()]
    if not numbers:
        return None
    place = (named or numbers)[0]
    return ".".join(parts[: place + 1]), int(parts[place])


def _outer(names: Sequence[str]) -> bool:
    """Whether a path's last name says that what it holds is no layer: the steps of a head or of an embedding."""
    return bool(names) and _named(names[-1]) in (HEAD, EMBEDDING)


def _kind(site: Site, paths: Iterable[str]) -> str:
    """From the site's kind and its path, innermost name first."""
    parts = site.key[0].split(".")
    if site.kind == "attention dropout":
        return ATTENTION
    for place in range(len(parts) - 1, -1, -1):
        kind = _named(parts[place]) or _known(".".join(parts[:place]), parts[place], paths)
        if kind:
            return kind
    return OTHER


def _named(name: str) -> str:
    return next((kind for kind, pattern in _NAMED if pattern.search(name)), "")


def _known(parent: str, name: str, paths: Iterable[str]) -> str:
    """Of modules whose names say nothing, those in layers that are known by what else is in them."""
    beside = {path[len(parent) + 1 :] for path in paths if path.startswith(f"{parent}.")} if parent else set()
    if {"self_attn", "dropout1"} <= beside:
        return (_IN_DECODER if "dropout3" in beside else _IN_ENCODER).get(name, "")
    if name == "output" and any(path.startswith("attention.") for path in beside):
        return MLP
    return ""


def _outside(found: Mapping[SiteKey, str]) -> dict[SiteKey, str]:
    """Sites of no known kind before and behind the numbered layers of a network with attention in them."""
    inside = {key: place for place, key in enumerate(found) if layer_of(key) and found[key] in (ATTENTION, MLP)}
    if ATTENTION not in (found[key] for key in inside):
        return {}
    told = {}
    for place, key in enumerate(found):
        if found[key] == OTHER and layer_of(key) is None:
            if place < min(_around(key, inside)):
                told[key] = EMBEDDING
            elif place > max(inside.values()):
                told[key] = HEAD
    return told


def _around(key: SiteKey, inside: Mapping[SiteKey, int]) -> list[int]:
    """When the layers draw that are in the innermost module around a site that has layers in it."""
    parts = key[0].split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length]) + "."
        if places := [place for (path, _), place in inside.items() if path.startswith(prefix)]:
            return places
    return list(inside.values())
