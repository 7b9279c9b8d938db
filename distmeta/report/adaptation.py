"""The adaptation curve of a regression run: how the error on new tasks falls with the inner steps."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot


def draw_adaptation(test: dict[str, Any], title: str, path: Path) -> None:
    """Draw a test's mse_by_step, with 95% bands, beside the random initialisation and the models in `beside`, into a PNG."""
    curves = {"this run": (test["mse_by_step"], test["ci95_by_step"])}
    curves |= {name: (other["mse_by_step"], other["ci95_by_step"]) for name, other in test.get("beside", {}).items()}
    curves["random initialisation"] = (test["random_init"], test["random_init_ci95"])
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (mse, ci95) in curves.items():
        steps = sorted(mse, key=int)
        middle = [mse[step] for step in steps]
        x = [int(step) for step in steps]
        (line,) = axes.plot(x, middle, marker="o", markersize=4, label=name)
        low, high = zip(*((mse[step] - ci95[step], mse[step] + ci95[step]) for step in steps), strict=True)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="inner steps", ylabel="mean squared error on query points", title=title, ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
