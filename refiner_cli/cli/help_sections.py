"""The plain-text help in sections: the commands by task, and the options of commands that have many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

MANY_OPTIONS = 15  # options; fewer stay one list
OTHER_COMMANDS = "Commands"
ARGUMENT_SECTION = "Arguments"
OTHER_OPTIONS = "Options"
COMMAND_SECTIONS = {
    "Start": ("demo", "guide", "doctor", "info"),
    "Recognise photos": ("predict", "index", "search", "suggest", "convert", "merge"),
    "Train": ("dataset", "download", "config", "train", "runs", "calibrate", "export"),
    "Evaluate": ("eval", "compare", "reproduce", "bench"),
}
OPTION_SECTIONS = {  # by the name of the parameter, in every command
    "Images": ("include", "exclude", "null", "boxes", "box_margin", "box_confidence", "on_error",
               "keep_errors"),
    "Candidates": ("world", "states", "objects", "pairs"),
    "Answers": ("top_k", "min_precision", "min_probability", "object_states"),
    "Several processes": ("part", "part_size", "devices", "engine"),
    "Settings": ("method", "backbone", "pretrained", "config", "epochs", "batch_size", "lr", "assign",
                 "seed", "seeds"),
    "Computing": ("device", "precision", "batch", "workers", "compile_images"),
}  # fmt: skip


def sorted_into(
    sections: dict[str, tuple[str, ...]], rest: str, rows: Iterable[tuple[str, tuple[str, str]]]
) -> dict[str, list[tuple[str, str]]]:
    """The rows by section, those of no section under ``rest``."""
    section_of = {name: title for title, names in sections.items() for name in names}
    found: dict[str, list[tuple[str, str]]] = {}
    for name, row in rows:
        found.setdefault(section_of.get(name, rest), []).append(row)
    return found


def is_argument(param: Any) -> bool:
    return str(param.param_type_name) == "argument"


class SectionedCommand(TyperCommand):
    """A command whose options are listed in sections where there are many."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        shown = [(param, record) for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        options = [(param.name or "", record) for param, record in shown if not is_argument(param)]
        if len(options) < MANY_OPTIONS:
            super().format_options(ctx, formatter)
            return
        found = {ARGUMENT_SECTION: [record for param, record in shown if is_argument(param)]}
        found |= sorted_into(OPTION_SECTIONS, OTHER_OPTIONS, options)
        for title in (ARGUMENT_SECTION, OTHER_OPTIONS, *OPTION_SECTIONS):
            if found.get(title):
                with formatter.section(title):
                    formatter.write_dl(found[title])


class SectionedGroup(TyperGroup):
    """The app, whose commands are listed by task."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        in_order = [name for names in COMMAND_SECTIONS.values() for name in names]
        names = sorted(self.list_commands(ctx), key=lambda name: (*in_order, name).index(name))
        commands = {name: self.get_command(ctx, name) for name in names}
        width = formatter.width - 6 - max(map(len, commands))
        rows = [
            (name, (name, command.get_short_help_str(width))) for name, command in commands.items() if command
        ]
        found = sorted_into(COMMAND_SECTIONS, OTHER_COMMANDS, rows)
        for title in (*COMMAND_SECTIONS, OTHER_COMMANDS):
            if title in found:
                with formatter.section(title):
                    formatter.write_dl(found[title])
