"""The command ``migcompat``, which kubectl also finds as its plugin ``kubectl migcompat``."""

from __future__ import annotations

import typer


def application() -> typer.Typer:
    """The commands; their modules are imported here, so that importing the package stays cheap."""
    from migcompat.cli import check, clean_up, explain, scan  # noqa: PLC0415

    app = typer.Typer(
        help="When may a VFIO device's state migrate to another device?",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_together)
    check.command(app)
    scan.command(app)
    explain.command(app)
    clean_up.command(app)
    return app


def main() -> None:
    """Run the command line; exits 2 on unusable arguments."""
    application()()


def _together() -> None:
    """When may a VFIO device's state migrate to another device?"""
