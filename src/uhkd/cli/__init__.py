"""The command line: arguments to a command, its result as JSON, completion."""
