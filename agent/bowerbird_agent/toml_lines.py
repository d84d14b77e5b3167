"""The line of a TOML text in which a key stands, so that a fault in agent.toml can be found.

In: a key path such as `cameras[1].fps` and the text. Out: a line number, or None. It reads headers and keys, which is enough for
ordinary files; it is no TOML parser, and a fault without a line is still told.
"""

from __future__ import annotations

import re


def with_line(path: str, message: str, text: str) -> str:
    """A fault as it is shown: key path, line where it can be found, message."""
    line = line_of(path, text)
    return f"{path}: {message}" if line is None else f"{path} (line {line}): {message}"


def line_of(path: str, text: str) -> int | None:
    """The line of a key path, or of its table, counted from 1; None when neither is found."""
    table, _, key = path.rpartition(".")
    name, _, index = (table or path).partition("[")
    wanted = int(index.partition("]")[0]) if index else 0
    seen = -1
    in_table = not table
    table_line = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
        if header:
            is_named = header[1] == name
            seen += is_named
            in_table = is_named and seen == wanted
            if in_table and table_line is None:
                table_line = number
        elif in_table and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return number
    return table_line
