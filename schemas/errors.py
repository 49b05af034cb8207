"""The errors that a user can act on; anything else is a bug and shows its traceback.

    PrelabelError
    ├── UserError      the command line, the configuration, an environment variable
    ├── SourceError    what is read: a folder, a tar, a Parquet file, a list, an object that is gone
    ├── ModelError     a model's name, its weights, its categories, what it can do
    └── JobError       what is written: an output that exists, a manifest that differs, a lock that is held

A message is one line that says what, where and what to do, and shows no secret: see `redacted`.
"""

import re
from urllib.parse import unquote

HIDDEN = "***"
"""Stands for a secret in what is shown."""
_USERINFO = re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)([^/\s\"<>\\]*)@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&;#])([^=?&;#\s]+)=((?:[^?&;#\s\"<>\\]|[?;](?![^=?&;#\s]+=))*[^?&#\s\"<>\\:,.;')\]}])"  # up to the next one
)
_SECRET = re.compile(
    r"(x-amz|x-goog|x-ms)-.*|.*(token|secret|passw|signature|credential|(api|access|account|private)[_-]?key).*"
    r"|sig|key|pwd|auth|jwt|policy|key-pair-id|awsaccesskeyid|googleaccessid",
    re.IGNORECASE,
)


class PrelabelError(Exception):
    """A mistake outside of this code: the command line prints its message alone and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)).replace("\n", "\\n"))


class UserError(PrelabelError):
    """The command line or the configuration asks for something that makes no sense."""


class SourceError(PrelabelError):
    """A source can't be read, or is not what the plan recorded."""


class ModelError(PrelabelError):
    """A model can't be built, or can't do what is asked of it."""


class JobError(PrelabelError):
    """An output folder can't be used as asked."""


def redacted(text: str) -> str:
    """A URL, or a text with URLs in it, with `***` for passwords and for query parameters that are secrets.

    What stands before the `@` of a web address is a secret; elsewhere what has a colon is, for
    `abfs://container@account/` names a place.

    >>> redacted("https://me:pw@host/x.jpg?width=9&X-Amz-Signature=0a1b")
    'https://***@host/x.jpg?width=9&X-Amz-Signature=***'
    """
    return _PARAMETER.sub(_hide_parameter, _USERINFO.sub(_hide_userinfo, text))


def _hide_userinfo(match: re.Match[str]) -> str:
    scheme, userinfo = match.groups()
    return f"{scheme}{HIDDEN}@" if ":" in userinfo or "http" in scheme.lower() else match[0]


def _hide_parameter(match: re.Match[str]) -> str:
    before, name, _ = match.groups()
    return f"{before}{name}={HIDDEN}" if _SECRET.fullmatch(unquote(name)) else match[0]


def one_line(error: object) -> str:
    """What somebody else's error says, to be part of a message here."""
    return redacted(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Somebody else's text without what would steer a terminal: `\\x1b` stands for that character."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in redacted(text))
