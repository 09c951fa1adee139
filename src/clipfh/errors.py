"""The one exception that means: the input is wrong, not the program."""


class InputError(Exception):
    """A user's mistake (a missing file, a malformed line, an impossible option).

    The message names the file, the value and the way out. Scripts print it without a traceback and exit with 2.
    """
