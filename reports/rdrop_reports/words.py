"""The words of the report that are not metrics, for the reader who meets them first here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ALWAYS = ("word-sub-model", "word-eval", "word-mean", "word-site", "word-interval")


@dataclass(frozen=True)
class Word:
    """A word and what it means here."""

    label: str
    meaning: str


WORDS: Mapping[str, Word] = MappingProxyType(
    {
        "word-sub-model": Word("Sub-model", "The network under one draw of all its dropout masks."),
        "word-eval": Word("Eval model", "The network with dropout off, as it is deployed."),
        "word-mean": Word("MC mean", "The mean of the predictions of the sub-models."),
        "word-site": Word("Site", "One place in the forward pass that draws randomness: a module's path and a number."),
        "word-interval": Word(
            "[low, high]", "An interval for new data of the same kind: in 95 of 100 such runs it holds the true mean."
        ),
        "word-only": Word(
            "Only this site", "EPKL with every other site switched off: what this one causes by itself."
        ),
        "word-without": Word(
            "All but this site", "EPKL with this site alone switched off. How far that is below the whole is what is "
            "lost without it, with its interactions."
        ),
        "word-part": Word(
            "Part", "The kind of module that a site is in, as far as its path tells (attention, mlp, embedding, head; "
            "other where it does not), and the number of its layer."
        ),
        "word-share": Word("Share", "Part of the sum over all sites."),
        "word-predicted": Word(
            "Predicted", "What theory foretells of the site to second order, from gradients of the eval model alone."
        ),
        "word-ratio": Word("Ratio", "Candidate over reference: below 1, the candidate's is smaller."),
        "word-p": Word(
            "Adjusted p", "How often so large a difference would arise by chance if there were none, adjusted for the "
            "number of metrics tested (Benjamini & Hochberg 1995)."
        ),
        "word-rank": Word(
            "Rank correlation", "Spearman's: 1 where two metrics put the checkpoints into the same order, "
            "\N{MINUS SIGN}1 into the opposite one."
        ),
        "word-passes": Word("Passes", "Forward passes with dropout on, whose predictions are averaged."),
        "word-enough": Word(
            "Enough", "The fewest passes from which on more are shown not to matter: the whole interval of the score "
            "lies within 5% of what the most passes gain over one."
        ),
        "word-temperature": Word(
            "Temperature", "What the logits are divided by (the logarithms of the mean probabilities, of the MC mean); "
            "that which minimises NLL, judged on each tenth of the examples as fitted on all others (Guo et al. 2017)."
        ),
        "word-noise": Word(
            "Numerical noise", "KL between eval passes that should agree, with dropout off: other precision, other "
            "kernels, other batch size."
        ),
        "word-rate": Word("Dropout rate", "The drop probability that every site was given at inference."),
    }
)  # fmt: skip
