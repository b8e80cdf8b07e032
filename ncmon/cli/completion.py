"""`ncmon completion`: the script that makes a shell complete commands, options, runs and metrics."""

from __future__ import annotations

import click

from ncmon.cli.arguments import examples
from ncmon.cli.output import write

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog=examples(
        'eval "$(ncmon completion bash)"    in ~/.bashrc',
        'eval "$(ncmon completion zsh)"     in ~/.zshrc',
        "ncmon completion fish > ~/.config/fish/completions/ncmon.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options, runs, metrics, layers and splits."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    # Not `found(...).source()`: that runs bash to learn its version, wherever this is printed for.
    completion = found(context.find_root().command, {}, "ncmon", "_NCMON_COMPLETE")
    write(completion.source_template % completion.source_vars() + "\n")
