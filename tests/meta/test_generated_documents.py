"""Documents that a tool writes must be what the tool writes today."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tool(name: str) -> dict:
    return runpy.run_path(str(ROOT / "tools" / f"{name}.py"))


def test_the_json_schema_is_up_to_date() -> None:
    assert (ROOT / "docs" / "report.schema.json").read_text() == tool("schemadoc")["schema_text"]()


def test_the_table_of_fields_is_up_to_date() -> None:
    guide = (ROOT / "docs" / "natcheck.md").read_text()
    assert guide == tool("schemadoc")["guide_text"](guide)


def test_the_picture_is_up_to_date() -> None:
    picture = tool("diagram")["draw"]()
    assert (ROOT / "docs" / "demo-network.svg").read_text() == picture
    ET.fromstring(picture)
