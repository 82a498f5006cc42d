"""Where `consilium-server` and `python -m server` start; light, so that Ctrl-C works at once."""

from typing import Any

from common.entry import exit_on_error


def main() -> None:
    """Run the command line; whatever ends it is one message and one exit code."""
    exit_on_error("consilium-server", _load)


def _load() -> Any:
    from server.cli import app  # takes seconds, and is therefore not above

    return app


if __name__ == "__main__":
    main()
