"""The errors that a user can act on; anything else is a bug and shows its traceback.

    PrelabelError
    ├── UserError      the command line, the configuration, an environment variable
    ├── SourceError    what is read: a folder, a tar, a Parquet file, a list, an object that is gone
    ├── ModelError     a model's name, its weights, its categories, what it can do
    └── JobError       what is written: an output that exists, a manifest that differs, a lock that is held

A message is one line that says what, where and what to do.
"""


class PrelabelError(Exception):
    """A mistake outside of this code: the command line prints its message alone and exits with `exit_code`."""

    exit_code = 2


class UserError(PrelabelError):
    """The command line or the configuration asks for something that makes no sense."""


class SourceError(PrelabelError):
    """A source can't be read, or is not what the plan recorded."""


class ModelError(PrelabelError):
    """A model can't be built, or can't do what is asked of it."""


class JobError(PrelabelError):
    """An output folder can't be used as asked."""


def one_line(error: object) -> str:
    """What somebody else's error says, to be part of a message here."""
    return " ".join(str(error).split())


def printable(text: str) -> str:
    """Somebody else's text without what would steer a terminal: `\\x1b` stands for that character."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
