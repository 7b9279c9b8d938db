"""The pages of the reference that are generated: every config key, every command, every public name.

MkDocs calls `on_files` when it builds the site (`hooks` in mkdocs.yml); `tests/test_docs.py` reads the same pages.
"""

import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import typer
from pydantic.fields import FieldInfo

import distmeta
from distmeta.cli import app
from distmeta.config import Config, Section, section_in
from distmeta.learners import LEARNERS, settings_of
from distmeta.models import MODELS


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File  # an extra: the tests read the pages without it

    for name, page in (("config", config_page), ("commands", commands_page), ("python", python_page)):
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    files.append(File.generated(config, "contributing.md", content=contributing_page()))
    for notebook in sorted((Path(__file__).parent / "notebooks").glob("*.ipynb")):
        for name, content in notebook_pages(notebook).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def contributing_page() -> str:
    """CONTRIBUTING.md, whose links into this folder lead to the site's own pages."""
    return (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text().replace("](docs/", "](")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    return markdown.replace(".ipynb)", ".md)")


def notebook_pages(notebook: Path) -> dict[str, str | bytes]:
    """A notebook as a Markdown page, and the pictures on the page; each with its path in `notebooks`."""
    from nbconvert import MarkdownExporter

    place = {"unique_key": notebook.stem, "output_files_dir": f"{notebook.stem}_files"}
    page, resources = MarkdownExporter().from_filename(str(notebook), resources=place)
    return {f"{notebook.stem}.md": page, **resources["outputs"]}


def config_page() -> str:
    """Every key of a config, section by section, with its type, default and meaning."""
    lines = ["# Config keys", "", "Set a key in a config, or with `--set key=value`.", ""]
    for section, model in _sections(Config, ""):
        lines += [f"## {section or 'top level'}", "", inspect.cleandoc(model.__doc__ or ""), ""]
        lines += ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
        lines += [_row(section, name, field) for name, field in model.model_fields.items() if section_in(field.annotation) is None]
        lines += [""]
    for name, learner in LEARNERS.items():
        lines += _arguments("learner", name, learner, settings_of(learner).values())
    for name, network in MODELS.items():
        own = [one for key, one in inspect.signature(network).parameters.items() if key not in ("input_shape", "outputs", "norm")]
        lines += _arguments("model", name, network, own)
    return "\n".join(lines)


def _arguments(section: str, name: str, kind: type, parameters: Iterable[inspect.Parameter]) -> list[str]:
    """The keys that one learner or network adds to its section: the arguments of its constructor."""
    lines = [f"## {section}.name: {name}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    rows = [
        f"| `{section}.{one.name}` | `{_type(one.annotation)}` | {'required' if one.default is one.empty else f'`{one.default!r}`'} |"
        for one in parameters
    ]
    return [*lines, "| Key | Type | Default |", "|---|---|---|", *rows, ""] if rows else [*lines, "It has no settings.", ""]


def _sections(model: type[Section], name: str) -> Iterator[tuple[str, type[Section]]]:
    yield name, model
    for key, field in model.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from _sections(inner, f"{name}.{key}" if name else key)


def _type(annotation: Any) -> str:
    """A type as people write it: without bounds and module names, choices as a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if arguments:
        return f"{origin.__name__}[{', '.join(_type(argument) for argument in arguments)}]"
    return "None" if annotation is types.NoneType else getattr(annotation, "__name__", str(annotation))


def _row(section: str, name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
    kind = _type(field.annotation)
    meaning = " ".join((field.description or "").split())
    return (
        "| "
        + " | ".join(text.replace("|", "\\|") for text in (f"`{section + '.' if section else ''}{name}`", f"`{kind}`", default, meaning))
        + " |"
    )


def commands_page() -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", ""]
    root = typer.main.get_command(app)
    for path, command in (("distmeta", root), *_commands(root, "distmeta")):
        lines += [f"## {path}", "", inspect.cleandoc(command.help or "").replace("\b", "").strip(), ""]
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        if shown:
            lines += ["| Option | Default | Meaning |", "|---|---|---|", *(_option(parameter) for parameter in shown), ""]
    return "\n".join(lines)


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if hasattr(command, "commands"):
        for name, one in command.commands.items():
            yield from _commands(one, f"{path} {name}")
    else:
        yield path, command


def _option(parameter: click.Parameter) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    required = "required" if parameter.required else ""
    shown = "" if parameter.default in (None, (), []) or callable(parameter.default) else f"`{parameter.default}`"
    meaning = " ".join((getattr(parameter, "help", "") or "").split())
    if variable := getattr(parameter, "envvar", None):
        meaning += f" Environment variable: `{variable}`."
    return "| " + " | ".join(text.replace("|", "\\|") for text in (names, required or shown, meaning)) + " |"


def python_page() -> str:
    """Every public name of the package, from its docstring."""
    lines = ["# Python API", "", "Import these from `distmeta`.", ""]
    for name in distmeta.__all__:
        value = getattr(distmeta, name)
        lines += [f"## distmeta.{name}", ""]
        if callable(value):
            lines += [f"::: {value.__module__}.{name}", "    options: {show_root_heading: false, show_root_toc_entry: false}", ""]
        else:
            lines += [f"The names that `learner.name` accepts: {', '.join(f'`{key}`' for key in sorted(value))}.", ""]
    return "\n".join(lines)
