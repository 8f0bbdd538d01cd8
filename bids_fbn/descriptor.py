"""The command line as a Boutiques descriptor, for platforms that run tools by one.

``python -m bids_fbn.descriptor > bids_fbn.json`` writes the file at the top of the repository.
Inputs come from the parser and from :class:`~bids_fbn.config.Config`: it says what they do.

Boutiques, schema 0.5: Glatard T, Kiar G, Aumentado-Armstrong T, et al. Boutiques: a flexible
framework to integrate command-line applications in computing platforms. GigaScience 7(5):giy016,
2018.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bids_fbn import __version__
from bids_fbn.cli import build_parser
from bids_fbn.config import Config

__all__ = ["descriptor"]

# What a call does instead of its work.
_NOT_INPUTS = ("help", "version", "demo")
# JSON Schema → Boutiques, and whether the bound itself is left out.
_BOUNDS = {
    "minimum": ("minimum", False),
    "exclusiveMinimum": ("minimum", True),
    "maximum": ("maximum", False),
    "exclusiveMaximum": ("maximum", True),
}


def descriptor() -> dict[str, Any]:
    """The descriptor, as its JSON file has it.

    No input has a ``default-value``: platforms write these on every command line, where they would
    win over a settings file. Defaults stand under ``custom``.
    """
    parser = build_parser()
    groups = [group for group in parser._action_groups if _inputs_of(group)]
    inputs = [action for group in groups for action in _inputs_of(group)]
    return {
        "name": "bids_fbn",
        "tool-version": __version__,
        "description": str(parser.description),
        "author": "bids_fbn developers",
        "schema-version": "0.5",
        # Boutiques starts a shell in the container, not the container's own entry point.
        "command-line": " ".join(["bids-fbn", *map(_value_key, inputs)]),
        "container-image": {"type": "docker", "image": f"bids_fbn:{__version__}"},
        "inputs": [_input(action) for action in inputs],
        "groups": [_group(group) for group in groups if group.title != "positional arguments"],
        "output-files": [
            {
                "id": "output",
                "name": "Output dataset",
                "description": "BIDS derivatives, with a report for each participant",
                "path-template": "[OUTPUT_DIR]",
                "optional": False,
            }
        ],
        "error-codes": [
            {"code": 1, "description": "A run failed, the others are done"},
            {
                "code": 2,
                "description": "The command line or an input is wrong, nothing was started",
            },
        ],
        "tags": {"domain": ["neuroinformatics", "mri", "fmri", "bids-app"]},
        "custom": {
            "defaults": {
                _identifier(action): default
                for action in inputs
                if _type(action) != "Flag"
                and (default := _field(action.dest).get("default")) not in (None, [], {})
            }
        },
    }


def _inputs_of(group: Any) -> list[argparse.Action]:
    return [action for action in group._group_actions if action.dest not in _NOT_INPUTS]


def _identifier(action: argparse.Action) -> str:
    """By the spelling on the command line: ``no_resume``, whose value is called ``resume``."""
    flag = _flag(action)
    return flag.removeprefix("--").replace("-", "_") if flag else action.dest


def _value_key(action: argparse.Action) -> str:
    return f"[{_identifier(action).upper()}]"


def _flag(action: argparse.Action) -> str:
    """The long spelling; of an option that is on unless it is switched off, that which does so."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return action.option_strings[-1]
    return next((name for name in action.option_strings if name.startswith("--")), "")


def _input(action: argparse.Action) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": _identifier(action),
        "name": _identifier(action).replace("_", " "),
        "type": _type(action),
        "value-key": _value_key(action),
        "optional": bool(action.option_strings),
    }
    if action.help:
        found["description"] = action.help
    if action.option_strings:
        found["command-line-flag"] = _flag(action)
    if found["type"] == "Flag":
        return found
    if action.nargs == "+":
        found |= {"list": True, "min-list-entries": 1}
    schema = _of_one_value(_field(action.dest))
    choices = list(action.choices or schema.get("enum", ()))
    if choices:
        found["value-choices"] = choices
    if found["type"] == "Number":
        found["integer"] = action.type is int
        for name, (bound, exclusive) in _BOUNDS.items():
            if name in schema:
                found[bound] = schema[name]
                if exclusive:
                    found[f"exclusive-{bound}"] = True
    return found


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "Flag"
    if action.type in (int, float):
        return "Number"
    # Folders to write in need not be there; a File must.
    writes = action.dest == "output_dir" or action.metavar == "DIR"
    return "File" if action.type is Path and not writes else "String"


def _field(option: str) -> dict[str, Any]:
    """What :class:`Config` says of an option, as JSON Schema; nothing of one that it lacks."""
    whole = Config.model_json_schema()
    for section in (whole, *whole["$defs"].values()):
        if option in section["properties"]:
            field: dict[str, Any] = section["properties"][option]
            return field
    return {}


def _of_one_value(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of one value of an option; nothing where there are several kinds of values."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    if len(kinds) != 1:
        return {}
    value: dict[str, Any] = kinds[0].get("items", kinds[0])
    return value


def _group(group: Any) -> dict[str, Any]:
    title = str(group.title)
    return {
        "id": title.replace(" ", "_"),
        "name": title,
        "members": [_identifier(action) for action in _inputs_of(group)],
    }


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2))
