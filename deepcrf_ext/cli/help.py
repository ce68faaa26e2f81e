"""How the commands' --help looks: defaults as they would be typed, and no Python types."""

from __future__ import annotations

import argparse
import re
from typing import Any

from jsonargparse import DefaultHelpFormatter

_TEXTS = {
    "--help": "Show this help and exit.",
    "--print-config": "Print the settings as YAML, for --config, and exit; =skip_default leaves "
    "out those that are defaults.",
}
"""What is said of options of jsonargparse's own."""


class HelpFormatter(DefaultHelpFormatter):
    """Says of an option whether it is required, or its default as it would be typed.

    What an option takes is for its text to say, and so is what it does by default where that is no
    value ("Null takes whole images."; "Default: as in training.").
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        if getattr(action, "_jsonargparse_preexpanded_help", False):  # of an option without a text
            return action.help or ""
        text = action.help or ""
        for option in action.option_strings:
            text = _TEXTS.get(option, text)
        if text == "Path to a configuration file.":
            text = f"YAML file of the settings --{action.dest}.NAME."
        elif text.startswith("Show the help for "):
            text = f"Show the settings within {action.option_strings[0][:-5]} and exit."
        if action.required and action.option_strings:
            return f"{text} (required)"
        has_default = action.option_strings and action.default is not argparse.SUPPRESS
        about_null = re.search(r"\bnull\b", text, re.IGNORECASE)
        if not has_default or "Default: " in text or (action.default is None and not about_null):
            return text
        if action.nargs == 0 and action.default is False:
            return text
        return f"{text} (default: {typed(action.default)})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs stay apart, and the lines of indented ones as they are."""
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            part
            if part.startswith("  ")
            else super(HelpFormatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


def typed(value: Any) -> str:
    """A value of an option as it would be typed, numbers with four digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(typed, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed(item)}" for key, item in value.items()) + "}"
    return str(value)
