"""The error of a user's mistake."""


class UhkdError(ValueError):
    """Invalid input: an option, a file, a network or a run folder. The message contains what to change.

    The command line prints the message without a traceback and exits with code 2. Any other ValueError is a bug.
    """
