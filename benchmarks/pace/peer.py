"""baal and torchmetrics, in the environment of another interpreter: `PYTHON -m pace.peer FILE K THREADS`.

baal needs packages that cannot be installed beside ours. This process reads the model and its inputs from FILE and
then, for each line on its standard input, measures once and answers with one line of JSON, timed here.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pace.clock import timed
from pace.models import find


def main() -> None:
    """Load, say who answers, then measure on demand."""
    path, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    given = torch.load(path, weights_only=True)
    model = find(given["case"]).model()
    model.load_state_dict(given["state"])
    patched = _patched(model)
    run = timed(lambda: (measure(patched, given["inputs"], count),))
    measure(patched, given["inputs"][:1], 2)  # to warm up
    versions = {name: importlib.metadata.version(name) for name in ("baal", "torchmetrics", "torch")}
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        done = run()
        print(json.dumps({"seconds": done.seconds, "epkl": done.epkl}), flush=True)


def _patched(model: nn.Module) -> nn.Module:
    """The eval model with baal's dropout layers, which are always on."""
    from baal.bayesian.dropout import MCDropoutModule

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No layer was modified")
        return MCDropoutModule(model).eval()


@torch.no_grad()
def measure(model: nn.Module, batches: list[Tensor], count: int) -> float:
    """Mean KL over all ordered pairs of `count` passes, by torchmetrics."""
    from torchmetrics import KLDivergence

    metric: Any = KLDivergence(log_prob=True)
    for inputs in batches:
        log_p = [model(inputs).log_softmax(-1).flatten(0, -2) for _ in range(count)]
        for i, first in enumerate(log_p):
            for j, second in enumerate(log_p):
                if i != j:
                    metric.update(first, second)
    return float(metric.compute())


if __name__ == "__main__":
    main()
