"""Calibrated probabilities: a temperature fitted on validation episodes, and the expected calibration error."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.learners.description import Temperature
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.seeds import generator
from distmeta.training.accuracy import Accuracy, accuracies
from distmeta.training.evaluate import Evaluation
from distmeta.training.metric import Metric

BINS = 15
_THRESHOLDS = 101  # 0 %, 1 %, … 100 %
_LARGEST = 14.0  # temperatures lie between exp(-14) and exp(14)
_HALVINGS = 60  # halvings of that range; they leave 1e-16 of it
_RESAMPLES = 1000
_DIGITS = 5  # of stored shares

Array = NDArray[np.float64]


class Answers(Accuracy):
    """Accuracy that also keeps every query's inductive answer: its logits (N,) and its label."""

    def __init__(self, task: Task) -> None:
        self.queries, self.way = task.way * task.queries, task.way
        self.beside = self.queries * (self.way + 1)

    def score(self, learner: Learner, meta_params: Params, episode: EpisodeBatch) -> Tensor:
        logits, labels = self.logits(learner, meta_params, episode), episode.query_labels[0]
        answers = torch.cat([logits.inductive.double(), labels[:, None].double()], 1).flatten()
        if len(answers) != self.beside:  # a user's domain may have episodes of other sizes than its task says
            answers = answers.new_full((self.beside,), torch.nan)
        return torch.cat([accuracies(logits, labels), answers])

    def answered(self, beside: Tensor) -> "Answered":
        """What `Evaluation.beside` holds of these answers."""
        rows = beside.reshape(len(beside), self.queries, self.way + 1).numpy()
        return Answered(rows[..., :-1], rows[..., -1])


class Answered(NamedTuple):
    """The queries of E episodes: logits (E, M, N) and labels (E, M), in float64."""

    logits: Array
    labels: Array

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.logits).all() and np.isfinite(self.labels).all())

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each query was answered by its class, (E, M)."""
        right: NDArray[np.bool_] = self.logits.argmax(-1) == self.labels
        return right

    def confidence(self, temperature: float) -> Array:
        """The probability of each query's answer, (E, M)."""
        highest: Array = _probabilities(self.logits, temperature).max(-1)
        return highest


def keeping_answers(metric: Metric, task: Task) -> Metric:
    """`metric`, which also keeps the queries' answers if it is accuracy."""
    return Answers(task) if type(metric) is Accuracy else metric


def answered(metric: Metric, evaluation: Evaluation) -> Answered | None:
    """The answers that `metric` kept in its evaluation, if it keeps any and all are finite."""
    if not isinstance(metric, Answers) or evaluation.beside is None:
        return None
    kept = metric.answered(evaluation.beside)
    return kept if kept.is_finite else None


def _probabilities(logits: Array, temperature: float) -> Array:
    """softmax(logits / temperature) over the last axis."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def fitted_temperature(answered: Answered) -> float:
    """The temperature T at which softmax(logits / T) gives the labels the highest likelihood (Guo et al. 2017, arXiv:1706.04599, 4.2).

    The mean log-likelihood is concave in 1/T. Its slope is the mean of (the label's logit - the expected logit under the softmax), and
    bisection finds where that is zero.
    """
    logits = answered.logits.reshape(-1, answered.logits.shape[-1])
    logits = logits - logits.max(1, keepdims=True)
    own = logits[np.arange(len(logits)), answered.labels.reshape(-1).astype(np.int64)]
    low, high = -_LARGEST, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (_probabilities(logits, np.exp(middle)) * logits).sum(1)
        if (own - expected).mean() > 0:  # the labels' logits are higher than expected: the softmax may be sharper
            high = middle
        else:
            low = middle
    return float(np.exp((low + high) / 2))


def temperature_of(answered: Answered, task: Task, inner_steps: int) -> Temperature:
    """The temperature for tasks of this way and shot, and the cost of a lowest accepted probability on these episodes.

    `coverage[p]` is the fraction of queries whose probability is at least p %, and `accuracy[p]` the fraction of these that is right.
    """
    temperature = fitted_temperature(answered)
    confidence, right = answered.confidence(temperature).ravel(), answered.right.ravel()
    accepted = [confidence >= threshold for threshold in np.linspace(0, 1, _THRESHOLDS)]
    return {
        "way": task.way,
        "shot": task.shot,
        "inner_steps": inner_steps,
        "temperature": temperature,
        "episodes": len(answered.labels),
        "coverage": [round(float(those.mean()), _DIGITS) for those in accepted],
        "accuracy": [round(float(right[those].mean()), _DIGITS) if those.any() else None for those in accepted],
    }


def calibration_error(answered: Answered, temperature: float, seed: int = 0) -> dict[str, Any]:
    """The expected calibration error in BINS bins of equal mass (Nguyen & O'Connor 2015, arXiv:1508.05154, section 3.2), its 95% interval,
    the mean confidence, and each bin's (confidence, accuracy).

    The interval is by bootstrap over episodes. Resampling adds noise to every bin, which an absolute value turns into error, so the
    resampled errors are shifted to have the measured one as their mean.
    """
    confidence, right = answered.confidence(temperature), answered.right
    order = np.argsort(confidence, axis=None, kind="stable")
    episode = order // confidence.shape[1]
    ordered = np.stack([confidence.ravel()[order], right.ravel()[order].astype(np.float64)])
    bins = _bins(ordered, np.ones(len(order)))
    error, random = _error(bins), generator(seed, "calibration bootstrap")
    resampled = [
        _error(_bins(ordered, np.bincount(random.integers(len(confidence), size=len(confidence)), minlength=len(confidence))[episode]))
        for _ in range(_RESAMPLES)
    ]
    full = bins[:, bins[2] > 0]  # fewer answers than bins leave some empty
    low, high = np.quantile(resampled, [0.025, 0.975]) + error - np.mean(resampled)
    return {
        "error": error,
        "interval": [max(0.0, float(low)), float(high)],
        "confidence": float(confidence.mean()),
        "bins": [[round(float(value), _DIGITS) for value in pair] for pair in (full[:2] / full[2]).T],
    }


def _bins(ordered: Array, weights: NDArray[Any]) -> Array:
    """Sums over BINS bins of equal mass: confidence, right answers and weight (3, BINS), of columns in order of confidence."""
    mass = np.cumsum(weights, dtype=np.float64)
    ends = np.searchsorted(mass, mass[-1] * np.arange(1, BINS + 1) / BINS - 1e-9)
    sums = np.cumsum(np.vstack([ordered * weights, weights]), axis=1)[:, np.minimum(ends, len(mass) - 1)]
    return np.diff(sums, axis=1, prepend=0)


def _error(bins: Array) -> float:
    confidence, right, weight = bins
    return float(np.abs(confidence - right).sum() / weight.sum())


def calibration_of(answered: Answered, temperature: Temperature) -> dict[str, Any]:
    """A test's calibration: without temperature ("before") and at the temperature ("after")."""
    values = {"before": 1.0, "after": temperature["temperature"]}
    errors = {when: calibration_error(answered, value) for when, value in values.items()}
    return {"temperature": temperature["temperature"], "way": temperature["way"], "shot": temperature["shot"], **errors}
