"""The one exception for a user's mistake: the command line prints its message as one line and exits with 2."""


class UserError(Exception):
    """Says what was wrong, where, and what to do, in one line."""
