"""The command line: one file a command, `output` the only stdout, `diagnostics` the only stderr and exit codes.

Commands are loaded when they are called, and import their work when they run: `ncmon --help` costs an interpreter and
click, whatever the rest of ncmon needs.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

import ncmon
from ncmon.cli import diagnostics
from ncmon.errors import near

COMMANDS = {
    "serve": "Receive windows from trainings, store them and show them.",
    "watch": "Show a daemon's runs, or a database's, in the terminal.",
    "runs": "List the runs, newest first, or those that fulfil conditions.",
    "show": "Show the last window of a run, every layer and metric.",
    "history": "Show one metric of a run over time.",
    "bounds": "Show what is measured beside what is guaranteed.",
    "compare": "Show runs side by side.",
    "conjectures": "Check the thesis' conjectures on runs.",
    "alerts": "List what somebody should look at.",
    "ack": "Acknowledge alerts: they no longer press.",
    "metrics": "Say what each number means.",
    "query": "Ask the database in SQL, read-only.",
    "export": "Write runs to files that other tools read.",
    "log": "Log runs to Weights & Biases or TensorBoard, live too.",
    "plot": "Draw runs as PNG, SVG or PDF.",
    "report": "Write one HTML file about a run.",
    "tag": "Give a run tags.",
    "note": "Write something down about a run.",
    "rename": "Give a run another name.",
    "delete": "Delete runs, after asking.",
    "prune": "Throw away parts of runs, and give the space back.",
    "merge": "Take over the runs of other databases.",
    "completion": "Make the shell complete commands, runs and metrics.",
    "spool": "List and deliver what trainings could not deliver.",
    "keys": "Say who may reach the daemon from other machines.",
    "doctor": "Say what is wrong, and what to type.",
    "demo": "Train a small network and watch it.",
}
"""Every command, in the order of the help, with its line in it; `ncmon.cli.NAME.command` is the command itself."""


class Commands(click.Group):
    """The group that loads a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ncmon.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a line; an unknown one is answered with near names."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no command is named {args[0]!r}{near(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line and end the process: 0, 1 for a failure, 2 for what was typed, 130 for Ctrl-C."""
        extra["standalone_mode"] = False
        diagnostics.exit_after(lambda: super(Commands, self).main(*args, **extra))


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n  ncmon demo     a small training, watched\n"
    "  ncmon serve    then `ncmon_client.watch(model, ...)` in your own training",
)
@click.version_option(ncmon.__version__, prog_name="ncmon")
@click.pass_context
def main(context: click.Context) -> None:
    """Watch neural collapse while a network trains."""
    if context.invoked_subcommand is None:
        from ncmon.cli import output

        output.write(context.get_help() + "\n")


__all__ = ("COMMANDS", "main")
