"""Names of categories that a format can carry, or else a line that says why not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from prelabel.schemas.errors import UserError

FORBIDDEN = re.compile("^\\s|\\s$|[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""White space at an end, which readers strip, and what XML can't say: https://www.w3.org/TR/xml/#charsets."""


def check_names(names: Iterable[str], tool: str, forbidden: re.Pattern[str] = FORBIDDEN) -> None:
    """Whether a tool that knows labels by name can tell them apart.

    Raises:
        UserError: a name is there twice, or has something in it that is forbidden there.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{count} labels are called {name!r}, and {tool} knows labels by name: name them apart")
        if found := forbidden.search(name):
            raise UserError(f"{tool} can't have a label {name!r}, with {found[0]!r} there: give it another name")
