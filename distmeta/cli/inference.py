"""Verbs that use a registered model: predict, rollout, evaluate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distmeta.cli.options import Address, Json, MaxPixels, Network, OwnLearner, TrackingUri, ValueRange, on_this_machine, own_classes
from distmeta.errors import ConfigError, DataError, DistmetaError
from distmeta.show import counted, prediction_notes, print_json, say, show_classes, show_table, show_test, write_predictions

if TYPE_CHECKING:
    from collections.abc import Collection

    from distmeta.data.decode import ValueRange as ValueRangeGiven
    from distmeta.data.image_files import LeftOut
    from distmeta.inference.model import Adapted
    from distmeta.inference.predict import FileReader, Support

_CALIBRATED_ON = 200  # validation episodes, for `evaluate --calibrate`


def predict(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    query: Annotated[str, typer.Option(help="Folder of images to classify, one image, or - for paths on standard input.")],
    support: Annotated[
        Path | None, typer.Option(help="Folder with one folder of images per class. A model that publish-adapted made takes none.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Inner steps (default: as in the model's evaluation).")] = None,
    form: Annotated[
        Literal["table", "csv", "jsonl"], typer.Option("--format", help="Output format. csv and jsonl are written row by row.")
    ] = "table",
    wrong_only: Annotated[bool, typer.Option("--wrong-only", help="Print wrong predictions only.")] = False,
    reject_below: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Mark answers whose probability is below P as rejected.")
    ] = 0.0,
    explain: Annotated[
        Path | None, typer.Option(callback=on_this_machine, help="Draw support images, queries and predictions into this PNG.")
    ] = None,
    value_range: ValueRange = None,
    max_pixels: MaxPixels = 100_000_000,
    network: Network = None,
    learner: OwnLearner = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Adapt a registered model to a few labelled images and classify others.

    Queries in folders named like the classes are counted as right or wrong, and a table shows wrong ones first. A second table counts each
    class. Images that do not decode are named and left out (exit code 1).

    Example: distmeta predict --model models:/omniglot-5way-1shot@champion --support episode/support --query episode/query
    """
    from distmeta.data.decode import parse_value_range
    from distmeta.data.image_files import LeftOut
    from distmeta.inference.predict import Score, predict_files, query_files
    from distmeta.inference.temperature import calibration_note, rejection_note

    chosen, passed_over = parse_value_range(value_range), LeftOut()
    own = own_classes(network, learner)
    adapted, shown, reader = _adapted(tracking_uri, model, own, support, steps, chosen, max_pixels, passed_over)
    left_out: list[tuple[str, str]] = []

    def leave_out(error: DistmetaError) -> None:
        say(error.message)
        left_out.append((error.message, error.remedy))  # the message alone: the error's traceback would keep the file's bytes in memory

    score = Score()
    files = counted(query_files(query, sys.stdin, passed_over), "classifying")
    predictions = score.count(predict_files(adapted, files, shown, leave_out, reader, reject_below))
    if wrong_only:
        predictions = (prediction for prediction in predictions if prediction.wrong)
    kept = write_predictions(predictions, "json" if as_json else form, keep=explain is not None)
    show_classes(score, adapted.classes)
    for note in prediction_notes(score, reader, shown, passed_over):
        say(note)
    say(calibration_note(adapted.temperature, len(adapted.classes), adapted.shot))
    if reject_below:
        say(rejection_note(adapted.temperature, reject_below))
    if explain is not None:
        from distmeta.report.explain import draw

        draw(shown, kept, explain, reader)
        say(f"drew {explain}")
    if wrong_only and not score.known:
        raise DataError(
            "--wrong-only: the truth is known of no query", "put queries into folders that are named like the support's classes"
        )
    if left_out:
        message, remedy = left_out[0]
        raise DataError(f"{len(left_out)} of {len(left_out) + score.asked} images were left out; the first: {message}", remedy)


def _adapted(
    tracking_uri: str | None,
    model: str,
    own: "Collection[str]",
    support: Path | None,
    steps: int | None,
    value_range: "ValueRangeGiven | None",
    max_pixels: int,
    passed_over: "LeftOut",
) -> "tuple[Adapted, Support, FileReader]":
    """The registered model adapted to `support`, or the one that is adapted already; what it was shown, and what reads images for it."""
    from distmeta.inference.predict import FileReader, Support
    from distmeta.registry.adapted import load_adapted
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import pinned

    version = pinned(resolve(tracking_uri), model)
    adapted = load_adapted(resolve(tracking_uri), version, own)
    if adapted is not None:
        for flag, given in (("--support", support), ("--steps", steps), ("--value-range", value_range)):
            if given is not None:
                raise ConfigError(f"{flag}: {model} is adapted to its classes already", f"leave {flag} out")
        return adapted, Support({}, set(), {}, []), FileReader(adapted.preprocessing, max_pixels)
    if support is None:
        raise ConfigError(
            f"{model} adapts to labelled images, but --support is missing", "give a folder with one folder of images per class"
        )
    return adapt(tracking_uri, version, own, support, steps, value_range, max_pixels, passed_over)


def adapt(
    tracking_uri: str | None,
    model: str,
    own: "Collection[str]",
    support: Path,
    steps: int | None,
    value_range: "ValueRangeGiven | None",
    max_pixels: int,
    passed_over: "LeftOut",
) -> "tuple[Adapted, Support, FileReader]":
    """The registered model adapted to the folder `support`, what it was shown, and what reads images for it."""
    from distmeta.inference.predict import FileReader, adapt_to_folder
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import load_model

    loaded = load_model(resolve(tracking_uri), model, own)
    loaded = loaded.with_value_range(value_range) if value_range else loaded
    reader = FileReader(loaded.preprocessing, max_pixels)
    return *adapt_to_folder(loaded, support, steps, reader, passed_over), reader


def rollout(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    env: Annotated[
        str | None, typer.Option(help="Environment, as in data.settings.environment (default: the one used in training).")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of --env, such as horizon=50.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="X,Y,…", help="The task's components, such as a goal (default: drawn from --seed).")
    ] = None,
    adapt: Annotated[int | None, typer.Option(min=1, help="Inner steps (default: as in the model's evaluation).")] = None,
    trajectories: Annotated[int, typer.Option(min=2, help="Trajectories before the first inner step and after each.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trajectories, and of the task if --task is not given.")] = 0,
    out: Annotated[
        Path,
        typer.Option(
            callback=on_this_machine,
            help="PNG file for a picture of the paths (of the returns, if the environment has no paths), "
            "or GIF file for the first trajectory after the last inner step.",
        ),
    ] = Path("rollout.png"),
    save: Annotated[
        Path | None,
        typer.Option(
            callback=on_this_machine,
            metavar="FOLDER",
            help="New folder for the adapted policy, as an MLflow model from observations to actions.",
        ),
    ] = None,
    network: Network = None,
    learner: OwnLearner = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Adapt a registered policy to a task by acting in it, and draw the result.

    Example: distmeta rollout --model models:/navigation@champion --task 0.3,-0.2 --adapt 3
    """
    from distmeta.inference.policy import environment_of, task_of
    from distmeta.registry.policies import check_vacant, load_policy, save_policy
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.report.paths import draw_adaptation, write_gif

    if save is not None:
        check_vacant(save)
    own = own_classes(network, learner)
    environment = environment_of(env, option or [])
    policy = load_policy(resolve(tracking_uri), model, own, environment)
    adapted = policy.adapt(environment, task_of(task), adapt, trajectories, seed)
    if out.suffix.lower() == ".gif":
        write_gif(adapted.frames(), out)
    else:
        draw_adaptation(adapted.environment, adapted.task, adapted.played, out)
    say(f"drew {out}")
    if save is not None:
        save_policy(adapted, save)
        say(f"saved {save}; in Python: mlflow.pyfunc.load_model({str(save)!r}).predict(observations)")
    answer = {"environment": adapted.environment.name, "task": adapted.task, "returns": adapted.returns, "picture": str(out)}
    if as_json:
        print_json(answer)
        return
    show_table(["inner steps", "mean return"], [[str(step), f"{value:.2f}"] for step, value in enumerate(adapted.returns)])


def evaluate(
    shards: Annotated[str, typer.Argument(help="Folder or URL of a packed dataset.")],
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION.")] = ...,  # type: ignore[assignment]
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split of the dataset.")] = "test",
    way: Annotated[int | None, typer.Option(min=2, help="Classes per episode (default: as in training).")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Support images per class (default: as in training).")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Query images per class.")] = 15,
    episodes: Annotated[int, typer.Option(min=2, help="Number of episodes.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit a temperature on validation episodes of this way and shot, and store it with the model for `predict`."
        ),
    ] = False,
    network: Network = None,
    learner: OwnLearner = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Score the episodes by accuracy, or by the metric at this import path (default: accuracy)."),
    ] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Evaluate a registered model on fixed episodes of a packed dataset, spread over all CPUs or GPUs of a Ray cluster.

    Example: distmeta evaluate data/omniglot --model models:/omniglot-5way-1shot@champion --shot 5
    """
    from distmeta.registry.temperatures import tags_of
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import load_model, pinned, tag_version

    own = own_classes(network, learner)
    model = pinned(resolve(tracking_uri), model)
    loaded = load_model(resolve(tracking_uri), model, own)
    say(f"evaluating {model}")  # checked before importing Ray, which takes seconds
    from distmeta.scale.evaluate import PART, EpisodeSource
    from distmeta.scale.evaluate import evaluate as start

    source = EpisodeSource(shards=shards, split=split, way=way, shot=shot, queries=queries, seed=seed)
    on_validation = _CALIBRATED_ON if calibrate else None
    parts = start(loaded, source, episodes, address, own, metric, on_validation)
    *_, found = counted(parts, f"parts of {PART} episodes", 1 + -(-episodes // PART) + -(-(on_validation or 0) // PART))
    assert found is not None
    if calibrate and found.fitted is None:
        raise ConfigError("--calibrate: answers to the validation episodes are not finite", "evaluate without --calibrate")
    if found.fitted is not None:
        tag_version(resolve(tracking_uri), model, tags_of(found.fitted))
        say(f"stored the temperature {found.fitted['temperature']:.3g} with {model}")
    if as_json:
        print_json(found.figures)
    else:
        show_test(found.figures)
