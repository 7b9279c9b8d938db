"""Verbs about the registry of models: models, publish, sync, promote, compare."""

from pathlib import Path
from typing import Annotated

import typer

from distmeta.cli.inference import adapt
from distmeta.cli.options import Json, MaxPixels, Network, OwnLearner, TrackingUri, ValueRange, own_classes
from distmeta.masking import printable
from distmeta.show import print_json, say, show_table, summary, support_notes


def models(
    name: Annotated[str | None, typer.Option(help="Only models with this name. * and ? match any characters.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only models with this alias.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only models trained on this dataset.")] = None,
    learner: Annotated[str | None, typer.Option(help="Only models of this learner.")] = None,
    way: Annotated[int | None, typer.Option(min=1, help="Only models trained with this many classes.")] = None,
    shot: Annotated[int | None, typer.Option(min=1, help="Only models trained with this many support images per class.")] = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """List the registered models.

    Example: distmeta models --alias champion --dataset omniglot
    """
    from distmeta.registry.listing import list_models, matching
    from distmeta.registry.tracking import tracking_uri as resolve

    rows = matching(list_models(resolve(tracking_uri)), name, alias, dataset=dataset, learner=learner, way=way, shot=shot)
    if as_json:
        print_json(rows)
        return
    columns = ["model", "aliases", "dataset", "task", "learner", "test", "age"]
    table = [
        [
            row["uri"],
            " ".join(row["aliases"]),
            row["dataset"] or "?",
            f"{row['way'] or '?'}-way {row['shot'] or '?'}-shot",
            row["learner"] or "?",
            summary(row),
            f"{row['age_s'] // 3600} h {row['age_s'] // 60 % 60} min",
        ]
        for row in rows
    ]
    show_table(columns, table)


def publish(
    run_folder: Annotated[str, typer.Argument(help="Folder of a finished run, or its URL.")],
    name: Annotated[str | None, typer.Option(help="Name in the registry (default: <dataset>-<way>way-<shot>shot).")] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to give this version, such as 'candidate'.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make low-rank pairs (model.lora) part of the weights they belong to.")] = False,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Register a run's best model as a new version.

    Example: distmeta publish runs/omniglot_5way_1shot_maml --name characters --alias candidate
    """
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import publish as register
    from distmeta.training.run_folder import RunFolder

    published = register(resolve(tracking_uri), RunFolder(run_folder), name, alias, merge=merge)
    champion = f"; the champion is version {published.held_by}" if published.held_by else ""
    say(f"published models:/{published.name}/{published.version}" + (", the champion" if published.champion else champion))
    if as_json:
        print_json({"model": published.uri, "version": published.version, "champion": published.champion})


def publish_adapted(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    support: Annotated[Path, typer.Option(help="Folder with one folder of images per class.")],
    name: Annotated[str, typer.Option(help="Name of the classifier in the registry.")],
    alias: Annotated[str | None, typer.Option(help="Alias to give this version, such as 'production'.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Inner steps (default: as in the model's evaluation).")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Write the classifier to this file as well, as an ONNX graph.")] = None,
    value_range: ValueRange = None,
    max_pixels: MaxPixels = 100_000_000,
    network: Network = None,
    learner: OwnLearner = None,
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Adapt a registered model to its classes once, and register the result as a plain classifier, which needs no support images.

    Example: distmeta publish-adapted --model models:/photos-5way-5shot@champion --support new/support --name pets
    """
    from distmeta.data.decode import parse_value_range
    from distmeta.data.image_files import LeftOut
    from distmeta.registry.adapted import publish_adapted as register
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import check_model_name, pinned

    check_model_name(name, "--name")
    chosen, own, passed_over = parse_value_range(value_range), own_classes(network, learner), LeftOut()
    model = pinned(resolve(tracking_uri), model)
    adapted, shown, reader = adapt(tracking_uri, model, own, support, steps, chosen, max_pixels, passed_over)
    for note in support_notes(reader, shown, passed_over):
        say(note)
    if onnx is not None:
        adapted.export_onnx(onnx)
        say(f"wrote {onnx}")
    address = register(resolve(tracking_uri), model, adapted, name, alias, own)
    say(f"published {address}, which tells apart {', '.join(adapted.classes)}")
    say(f"serve it: mlflow models serve --model-uri {address} --env-manager local --port 5001")
    if as_json:
        print_json({"model": address, "classes": adapted.classes})


def sync(
    run_folder: Annotated[str, typer.Argument(help="Folder of a run, or its URL.")],
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI (default: the one that the run used).")] = None,
    as_json: Json = False,
) -> None:
    """Send MLflow what it missed of a run: metrics, test figures, report and model. Nothing is sent twice.

    Example: distmeta sync runs/omniglot_5way_1shot_maml
    """
    from distmeta.assembly.sync import sync as send
    from distmeta.training.run_folder import RunFolder

    sent = send(RunFolder(run_folder), tracking_uri)
    say(f"MLflow run {sent['run_id']} has all {sent['steps']} steps of {run_folder}")
    say(f"model {sent['model']}" if sent["model"] else "the run has not ended; distmeta train CONFIG --resume continues it")
    if as_json:
        print_json(sent)


def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/model.")],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "champion",
    tracking_uri: TrackingUri = None,
) -> None:
    """Move an alias to a registered version.

    Example: distmeta promote models:/omniglot-5way-1shot/3 --alias champion
    """
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.registry.versions import promote as give

    say(f"{give(resolve(tracking_uri), model, alias)} is now {model}")


def compare(
    a: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model.")],
    b: Annotated[str, typer.Argument(help="A second model, tested on the same episodes.")],
    tracking_uri: TrackingUri = None,
    as_json: Json = False,
) -> None:
    """Compare two models by the paired difference over the episodes that both were tested on.

    Example: distmeta compare models:/omniglot-5way-1shot/1 models:/omniglot-5way-1shot/2
    """
    from distmeta.registry.compare import compare as paired
    from distmeta.registry.compare import verdict
    from distmeta.registry.tracking import tracking_uri as resolve
    from distmeta.training.measurement import quantity

    comparison = paired(resolve(tracking_uri), a, b)
    if as_json:
        print_json(comparison)
        return
    means = [quantity(comparison[side], None, comparison["scale"], comparison["digits"] + 1, comparison["unit"]) for side in ("a", "b")]
    show_table(["model", comparison["figure"]], [[a, means[0]], [b, means[1]]])
    print(printable(verdict(comparison)))
