"""The final test: the best step's network on the episodes of test classes, beside the same network not meta-trained, and other models."""

from typing import Any, NamedTuple

from distmeta.assembly.run import Run
from distmeta.learners.description import Temperature
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.training.by_class import figures_of_answers
from distmeta.training.calibration import answered, keeping_answers, temperature_of
from distmeta.training.evaluate import Evaluation, Stream, evaluate, paired_difference
from distmeta.training.model_folder import Rows


class Tested(NamedTuple):
    """The test's part of a run's result, the scores of its episodes, and the temperature that calibrates probabilities, if there is one."""

    figures: dict[str, Any]
    by_episode: Rows
    calibration: list[Temperature]


def final_test(run: Run, best: Params, rank: int = 0, workers: int = 1) -> Tested:
    """Test the meta_params `best` of a run. Each worker evaluates its share of the episodes; all workers return the same.

    The temperature is fitted on the validation episodes, before the test. Raises what `evaluate` raises.
    """
    learner, config, stream = run.learner, run.config, run.domain.evaluation("test")
    temperature = _temperature(run, best, rank, workers)
    metric = keeping_answers(run.metric, stream.task)

    def tested(learner: Learner, params: Params, norm: str, scored_by: Any = run.metric) -> Evaluation:
        return evaluate(scored_by, learner, params, stream, config.data.eval.episodes, norm, rank, workers)

    result = tested(learner, best, config.model.norm, metric)
    untrained = result if config.outer.steps == 0 else tested(learner, run.start(), config.model.norm)
    figures = result.as_dict() | untrained.as_baseline() | {"baseline": run.baseline}
    beside = {}
    for number, origin in enumerate(config.data.eval.beside):
        other = tested(*run.beside(number))
        beside[origin] = other.as_dict() | paired_difference(result.headline, other.headline)
    figures |= {"beside": beside} if beside else {}
    figures |= figures_of_answers(stream, answered(metric, result), temperature)
    return Tested(figures, result.rows(), [temperature] if temperature else [])


def _temperature(run: Run, params: Params, rank: int, workers: int) -> Temperature | None:
    """The temperature for the probabilities under `params`, fitted on the validation episodes. None if the run does not classify."""
    stream: Stream = run.domain.evaluation("val")
    metric = keeping_answers(run.metric, stream.task)
    if metric is run.metric:
        return None
    episodes = run.config.data.eval.val_episodes
    validation = evaluate(metric, run.learner, params, stream, episodes, run.config.model.norm, rank, workers)
    answers = answered(metric, validation)
    return answers and temperature_of(answers, stream.task, run.learner.inner_steps_eval)
