"""Entries of a configuration's list that become named tuples: goals, published numbers."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from lopt.errors import InvalidInput, unknown


def check_record(what: str, node: Any, fields: Sequence[str], defaults: Container[str]) -> dict[str, Any]:
    """The entry as arguments of a named tuple.

    Args:
        what: a goal, a published number; for the error.
        fields, defaults: the tuple's `_fields`, and its `_field_defaults`, which may be left out.

    Raises:
        InvalidInput: it is no mapping, a key is unknown, or one without a default is missing.
    """
    needed = [name for name in fields if name not in defaults]
    if not isinstance(node, Mapping):
        raise InvalidInput(f"{what}: {node!r} is no mapping. Give {', '.join(needed)}, as {{{needed[0]}: ...}}.")
    for key in node:
        if key not in fields:
            raise unknown(f"key of a {what}", str(key), fields)
    if missing := [name for name in needed if name not in node]:
        raise InvalidInput(f"{what}: {dict(node)} lacks {', '.join(missing)}. Give {', '.join(needed)}.")
    return dict(node)
