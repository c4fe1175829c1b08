"""The errors that the engine tells apart: a user's mistake, and a model that has diverged."""

from __future__ import annotations


class UserError(Exception):
    """Says what was wrong, where, and what to do, in one line; the command line prints it and exits with 2."""


class DivergedError(ValueError):
    """A loss or a model's logits are no longer finite: this model is lost, the experiment's others are not."""


def one_line(text: str) -> str:
    """`text` for a terminal: white space as single spaces, and what does not print escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(text.split()))
