"""Two definitions of a domain side by side, for people: what a change adds and takes away.

Both are written out alike (two blanks for each level, attributes as they stand), so that only what differs is told.
Wrapped keys in a console's own metadata are ciphertext, and still nobody's to read here: their text is left out.
"""

import difflib
from collections.abc import Mapping
from typing import Final

from lxml import etree

from inventory.engine.domain_xml import parse_document

CONTEXT: Final = 3
_HIDDEN: Final = "wrapped-key"


def difference(before: str, after: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Lines of a unified diff (`@@`, ` `, `-`, `+`) without its two head lines; empty where nothing differs. `before`
    empty: all of `after` is new.

    `names` are put in the place of texts of `after` that stand for something not known yet. Raises BadDefinition.
    """
    old, new = _lines(before) if before else [], _lines(after)
    for text, name in names.items():
        new = [line.replace(text, name) for line in new]
    return tuple(list(difflib.unified_diff(old, new, lineterm="", n=CONTEXT))[2:])


def _lines(xml: str) -> list[str]:
    root = parse_document(xml)
    for element in root.iter(etree.Element):
        if etree.QName(element).localname == _HIDDEN:
            element.text = "..."
        if len(element) and not (element.text or "").strip():
            element.text = None
        if not (element.tail or "").strip():
            element.tail = None
    etree.indent(root)
    return etree.tostring(root, encoding="unicode").splitlines()
