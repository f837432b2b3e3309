"""Errors meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: the command line prints it as one line and exits with `exit_code`.

    The message says what is wrong, where, and what to do.
    """

    exit_code = 2
