"""How every command of ours ends: errors become one clear message and the right exit code."""

import sys
from collections.abc import Callable

from rich.console import Console

from common.errors import ConsiliumError


def exit_on_error(app: Callable[[], object]) -> None:
    """Run a command line; one of our errors is printed to stderr and sets the exit code."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app()
    except ConsiliumError as error:
        console.print(f"error: {error}")
        sys.exit(error.exit_code)
