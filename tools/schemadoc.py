"""Writes the report's JSON Schema to docs/report.schema.json and its fields into docs/natcheck.md.

Both follow from nattype/jsonform.py, where each field is declared once with the sentence that
documents it.

    python tools/schemadoc.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nattype.jsonform import json_schema  # noqa: E402

SCHEMA_FILE = ROOT / "docs" / "report.schema.json"
GUIDE = ROOT / "docs" / "natcheck.md"
BEGIN, END = "<!-- fields: written by tools/schemadoc.py -->", "<!-- end of fields -->"


def schema_text() -> str:
    """Return the JSON Schema as it stands in the file."""
    return json.dumps(json_schema(), indent=2) + "\n"


def guide_text(guide: str) -> str:
    """Return the guide with its tables of fields brought up to date.

    Raises ``ValueError`` when the guide has lost its markers.
    """
    before, found, rest = guide.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"{GUIDE.name} has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{''.join(_tables())}{END}{after}"


def _tables() -> Iterator[str]:
    """Every object of the document once, as a table of its fields, the outermost first."""
    seen: set[str] = set()
    waiting = [("The document", json_schema())]
    while waiting:
        title, schema = waiting.pop(0)
        yield f"**{title}**\n\n| field | value | meaning |\n|---|---|---|\n"
        for name, field in schema["properties"].items():
            inner = _inside(field)
            where = name if title == "The document" else f"{title.strip('`')}.{name}"
            if name == "peers":
                kinds = inner["properties"]
                waiting.append((f"`peers`, for each of {', '.join(kinds)}", kinds["open"]))
            elif "properties" in inner and name not in seen:
                seen.add(name)
                waiting.append((f"`{where}`", inner))
            yield f"| `{name}` | {_value(field)} | {field['description']} |\n"
        yield "\n"


def _inside(field: dict[str, Any]) -> dict[str, Any]:
    """The object inside a nullable field or a list, or the field itself."""
    inner: dict[str, Any] = field["anyOf"][0] if "anyOf" in field else field
    return inner["items"] if isinstance(inner.get("items"), dict) else inner


def _value(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return f"{_value(field['anyOf'][0])}, or null"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    if "pattern" in field:
        return '`"host:port"`'
    if field["type"] == "array":
        return "list" if "prefixItems" in field["items"] else f"list of {_plural(field['items'])}"
    if field["type"] == "object":
        return "object"
    return str(field["type"])


def _plural(item: dict[str, Any]) -> str:
    return {"string": "strings", "object": "objects"}[item["type"]]


def main() -> None:
    """Write both."""
    SCHEMA_FILE.write_text(schema_text())
    GUIDE.write_text(guide_text(GUIDE.read_text()))
    print(SCHEMA_FILE, GUIDE, sep="\n")


if __name__ == "__main__":
    main()
