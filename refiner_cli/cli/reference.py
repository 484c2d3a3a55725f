"""``python -m refiner_cli.cli.reference``: rewrite the generated parts of the guide's pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter, getdoc, signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

import refiner_cli.guide
from refiner_cli.cli.app import app
from refiner_cli.config import known_fields
from refiner_cli.files import atomic_file
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.settings import RENAMED_KEYS, toml_text

PAGES_FOLDER = Path(refiner_cli.guide.__file__).parent
VALUES = {int: "N", float: "X", Path: "PATH"}  # what stands for an option's value, by its type


def markdown_table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heading, ("---",) * len(heading), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def meaning(field: Any) -> str:
    """The description of a setting, with the values it may take."""
    text = str(field.description or "")
    choices = [str(choice) for choice in get_args(field.annotation)]
    if get_origin(field.annotation) is Literal and not all(choice in text for choice in choices):
        text += f" ({', '.join(choices)})"
    limits = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(rule, name, None) is not None
    ]
    return text + (f" [{', '.join(limits)}]" if limits else "")


def settings() -> str:
    """Every setting by section; those of ``[model]`` with the methods that have them."""
    by_method = {method: known_fields(method) for method in BUILT_IN_METHODS}
    fields = by_method["refiner"]
    plain = ("setting", "default", "meaning")
    top = [(f"`{k}`", toml_text(f.default), meaning(f)) for k, f in fields.items() if "." not in k]
    train = [
        (f"`{k}`", toml_text(f.default), meaning(f)) for k, f in fields.items() if k.startswith("train.")
    ]
    model: dict[tuple[str, ...], list[str]] = {}
    for method, of_method in by_method.items():
        for key, field in of_method.items():
            if key.startswith("model."):
                row = (f"`{key}`", toml_text(field.default), meaning(field))
                model.setdefault(row, []).append(method)
    every = len(by_method)
    rows = [
        (key, default, "all" if len(methods) == every else ", ".join(methods), text)
        for (key, default, text), methods in sorted(model.items(), key=lambda entry: entry[0][0])
    ]
    calibration = [
        (f"`{k}`", toml_text(f.default), meaning(f))
        for k, f in fields.items()
        if k.startswith("calibration.")
    ]
    parts = [
        ("Top level", markdown_table(plain, top)),
        ("`[model]`: the method", markdown_table(("setting", "default", "methods", "meaning"), rows)),
        ("`[train]`: the training loop", markdown_table(plain, train)),
        ("`[calibration]`: what may be tried after training", markdown_table(plain, calibration)),
    ]
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in parts)


def renamed_settings() -> str:
    """The former settings that have another name now."""
    return markdown_table(("before", "now"), [(f"`{old}`", f"`{new}`") for old, new in RENAMED_KEYS.items()])


def all_commands(group: typer.Typer = app, path: str = "refiner") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command of the app with its function."""
    if group is app and app.registered_callback and app.registered_callback.callback:
        yield path, app.registered_callback.callback
    for command in group.registered_commands:
        if command.callback:
            yield f"{path} {command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance:
            yield from all_commands(inner.typer_instance, f"{path} {inner.typer_instance.info.name}")


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, type, Any, Any]]:
    """Name, type, Typer's description and default of every argument and option of a command."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in signature(function).parameters.items():
        kind, described = get_args(hints[name])[:2]
        yield name, kind, described, parameter.default


def value_name(kind: Any, described: Any) -> str:
    """What stands for a value in the usage: the metavar, the choices, or a word for the type."""
    inner = next((part for part in (*get_args(kind), kind) if part is not type(None)), str)
    inner = kind if get_origin(kind) is Literal else inner
    if described.metavar:
        return str(described.metavar)
    if get_origin(inner) is Literal:
        return "|".join(get_args(inner))
    return VALUES.get(inner, "TEXT")


def item(name: str, kind: Any, described: Any, default: Any) -> str:
    """An argument or option as an item of a list."""
    text = described.help or ""
    if isinstance(described, ArgumentInfo):
        return f"- `{described.metavar or name.upper()}`: {text}"
    # Typer takes an option's first name for its default where the type is Annotated.
    declared = [described.default, *(described.param_decls or ())]
    flags = [flag for flag in declared if isinstance(flag, str) and flag.startswith("-")]
    flags = flags or [f"--{name.replace('_', '-')}"]
    value = "" if kind is bool else f" {value_name(kind, described)}"
    if default is Parameter.empty:
        text += " Required."
    elif default is not None and kind is not bool:
        text += f" Default: `{default}`."
    return f"- `{', '.join(flags)}{value}`: {text}"


def command_reference() -> str:
    """Every command with its arguments and options."""
    sections = []
    for name, function in all_commands():
        found = list(parameters(function))
        arguments = [d.metavar or n.upper() for n, _, d, _ in found if isinstance(d, ArgumentInfo)]
        usage = " ".join([name, *arguments, "[OPTIONS]", *(["COMMAND"] if name == "refiner" else [])])
        about = getdoc(function) or str(app.info.help)
        sections.append(f"## {name}\n\n    {usage}\n\n{about}\n\n" + "\n".join(item(*one) for one in found))
    return "\n\n".join(sections)


GENERATED = {"settings": settings, "renamed": renamed_settings, "commands": command_reference}


def renewed(text: str) -> str:
    """A page with its generated parts made again."""
    for name, make in GENERATED.items():
        start, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->\n"
        if start in text:
            before, _, rest = text.partition(start)
            text = f"{before}{start}\n{make()}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    for file in sorted(PAGES_FOLDER.glob("*.md")):
        old = file.read_text("utf-8")
        new = renewed(old)
        if new != old:
            with atomic_file(file) as part:
                part.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
