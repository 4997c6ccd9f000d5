"""What configs check."""

from __future__ import annotations

from mvmae.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


MOST_WORKERS = 512  # a process each; a slip of the keyboard would stop the machine


def require_workers(workers: int | None) -> None:
    """Raise `UserError` for a number of reading processes that cannot be meant."""
    require(workers is None or workers >= 0, "workers must not be negative")
    require(
        workers is None or workers <= MOST_WORKERS,
        f"workers {workers} is more than {MOST_WORKERS} processes",
    )
