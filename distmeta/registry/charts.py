"""The figures of a run's test as MLflow's metrics."""

from typing import Any

from mlflow.entities import Metric

from distmeta.training.measurement import BASELINE_KEY, KEY


def metrics_of_test(result: dict[str, Any]) -> list[Metric]:
    """The figures of a finished run's test; figures by inner step become curves over the inner steps."""
    step, metrics = result["steps"], []
    for key, value in result["test"].items():
        if key == "calibration":
            errors = ((f"test/calibration_error_{when}", value[when]["error"]) for when in ("before", "after"))
            metrics += [Metric(name, error, step, step) for name, error in errors]
        elif isinstance(value, dict) and key not in ("beside", "by_class", KEY, BASELINE_KEY):
            metrics += [_column(f"test/{key}", column, figure, step) for column, figure in value.items() if figure is not None]
        elif isinstance(value, float):
            metrics.append(Metric(f"test/{key}", value, step, step))
    return metrics


def _column(key: str, column: str, figure: float, step: int) -> Metric:
    """A figure of one column: a point of a curve over the inner steps or, if columns are not numbers, a separate metric."""
    return Metric(key, figure, int(column), int(column)) if column.isdigit() else Metric(f"{key}/{column}", figure, step, step)
