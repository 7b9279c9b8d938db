"""Firing rates of a network's spiking neurons. A silent or saturated layer passes no information on, so a run reports it."""

from statistics import fmean

from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, floating
from distmeta.models.spiking import LeakyIntegrateAndFire
from distmeta.training.evaluate import Stream
from distmeta.training.metric import Metric

SILENT, SATURATED = 0.02, 0.5
_EPISODES = 10


def spike_rates(metric: Metric, learner: Learner, meta_params: Params, stream: Stream) -> dict[str, float]:
    """For each spiking layer, the share of neurons that fires in a time step; empty if there are none.

    The mean is over the first ten episodes of `stream`, in the last forward of scoring each: its queries, after adapting.
    """
    layers = {name: module for name, module in learner.model.named_modules() if isinstance(module, LeakyIntegrateAndFire)}
    if not layers:
        return {}
    seen: dict[str, list[float]] = {name: [] for name in layers}
    parameter = floating(meta_params)
    for batch in stream.evaluation(list(range(_EPISODES))):
        for episode in batch.like(parameter).each():
            metric.scores(learner, meta_params, episode)
            for name, layer in layers.items():
                seen[name].append(layer.spike_rate.item())
    return {name: fmean(rates) for name, rates in seen.items()}


def warning(rates: dict[str, float]) -> str | None:
    """A warning about these rates with a remedy, or None if they are fine."""
    shown = {name: f"{name} fires in {100 * rate:.1f} % of time steps" for name, rate in rates.items()}
    silent = [shown[name] for name, rate in rates.items() if rate < SILENT]
    saturated = [shown[name] for name, rate in rates.items() if rate > SATURATED]
    warnings = []
    if silent:
        warnings.append(f"silent layers: {', '.join(silent)}\nlower model.threshold, or raise model.beta")
    if saturated:
        warnings.append(f"saturated layers: {', '.join(saturated)}\nraise model.threshold, or lower model.beta")
    return "\n".join(warnings) or None
