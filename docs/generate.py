"""Write docs/cli.md and docs/settings.md from the program itself: `python docs/generate.py`. A test keeps them true."""

from __future__ import annotations

from pathlib import Path

from linnaeus.cli.main import commands
from linnaeus.config import RULES, Settings, accepted

HERE = Path(__file__).parent


def describe_commands() -> str:
    """Return the help of every command as Markdown."""
    parts = ["# Commands\n\nMade from `--help` by docs/generate.py.\n"]
    with commands.make_context("linnaeus", [], resilient_parsing=True) as context:
        parts.append(_block("linnaeus", commands.get_help(context)))
        for name in commands.list_commands(context):
            command = commands.get_command(context, name)
            assert command is not None
            with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
                parts.append(_block(f"linnaeus {name}", command.get_help(inner)))
    return "\n".join(parts)


def _block(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text}\n```\n"


def describe_settings() -> str:
    """Return every setting as a row of a Markdown table."""
    rows = [
        f"| `{name}` | `{default}` | {accepted(name)} | {RULES[name]['help']} |"
        for name, default in Settings().to_dict().items()
    ]
    head = (
        "# Settings\n\nEach can be given as `KEY=VALUE` to `linnaeus train`, or as a keyword to `linnaeus.train`,\n"
        "and stands resolved in a run's `config.toml`. `auto` is chosen from the data, and the run says what and why.\n"
        "Made from `linnaeus.config` by docs/generate.py.\n\n"
        "| setting | default | accepts | what it is |\n| --- | --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (HERE / "cli.md").write_text(describe_commands(), encoding="utf-8")
    (HERE / "settings.md").write_text(describe_settings(), encoding="utf-8")
