"""XML read without entities and document types, by which a small file grows large or reaches for other files."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from graphs.errors import BadCircuit


def refuse_declarations(text: str) -> None:
    """Raise if XML text declares a document type or an entity.

    Raises:
        BadCircuit: Always then, even within a comment; circuits never need one.
    """
    if re.search(r"<!(DOCTYPE|ENTITY)", text, flags=re.IGNORECASE):
        raise BadCircuit("it declares a document type or entities, which circuits never need; refused")


def parsed(text: str) -> ElementTree.Element:
    """The root element of XML text.

    Raises:
        BadCircuit: If it is not XML, or declares a document type or an entity.

    Example:
        >>> parsed("<gexf/>").tag
        'gexf'
    """
    refuse_declarations(text)
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise BadCircuit(f"it is not XML, or cut short: {error}") from None
