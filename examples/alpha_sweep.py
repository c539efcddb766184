"""Sweep R-Drop's alpha on digits and plot EPKL, gap and accuracy against it.

Run with `python examples/alpha_sweep.py`; it writes alpha-sweep.csv and alpha-sweep.png here.
"""

import matplotlib as mpl
import seaborn as sns

from rdrop_analysis import analyze, train

ALPHAS = (0, 0.5, 1, 2, 5)
METRICS = {"epkl": "EPKL (nats)", "nll_gap": "NLL gap, sub-models - eval", "accuracy_eval": "eval accuracy"}

mpl.use("Agg")
runs = {f"alpha={a:g} seed={s}": train("digits", alpha=a, seed=s) for a in ALPHAS for s in (0, 1)}
results = analyze({name: run.model for name, run in runs.items()}, "digits", sub_models=32)

table = results.summary[results.summary["metric"].isin(METRICS)].copy()
table["alpha"] = table["checkpoint"].map(lambda name: runs[name].settings["alpha"])
table["quantity"] = table["metric"].map(METRICS)
table.to_csv("alpha-sweep.csv", index=False)
print(table.pivot_table(index="alpha", columns="metric", values="estimate").round(4))

grid = sns.relplot(
    table, x="alpha", y="estimate", col="quantity", kind="line", marker="o", errorbar=("pi", 100), height=3,
    facet_kws={"sharey": False},
)  # fmt: skip
grid.set_titles("{col_name}").set_axis_labels("R-Drop weight alpha", "")
grid.savefig("alpha-sweep.png", dpi=200)
