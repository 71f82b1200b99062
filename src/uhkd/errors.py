"""The error that reports a user's mistake."""


class UhkdError(ValueError):
    """Input that cannot be used: an option, a file, a network or a run folder. The message says what to change.

    The command line prints the message without a trace and exits with code 2. A ValueError of another library is a bug.
    """
