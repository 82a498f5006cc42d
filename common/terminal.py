"""What all our command lines share: how they are made, and how they print."""

import typer
from rich.console import Console


def program(about: str) -> typer.Typer:
    """A command line, to which commands are added."""
    return typer.Typer(
        help=about, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
    )


def group(parent: typer.Typer, name: str, about: str) -> typer.Typer:
    """A group of commands in a command line, such as `consilium-site ledger ...`."""
    commands = typer.Typer(help=about, no_args_is_help=True)
    parent.add_typer(commands, name=name)
    return commands


def plain(stderr: bool = False) -> Console:
    """A console that prints texts as they are: no colours of its own, no markup, no wrapping."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)
