"""Errors that are answers to the user: what was wrong, what was expected, what to do."""


class UserError(ValueError):
    """What was given cannot be used. The message is one line; the command line prints it without a traceback."""


class MissingFileError(UserError, FileNotFoundError):
    """A file, folder or data set is not there."""


class MissingPackageError(UserError, ImportError):
    """A library of an extra is not installed; the message names the extra."""
