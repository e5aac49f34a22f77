"""Vectors as test parameters, and the watch that none of them is left without a test.

A test names the file that it takes its cases from; each case of it becomes a test of its own:

    @pytest.mark.vectors("stun/uris.json")                  # or with group="..."
    def test_uri(case):
        assert str(parse(case["uri"])) == ...

The file is a path below rfc-vectors/, ``case`` is one element of its "cases".  When everything in
this folder was run (or, with ``--collect-only``, collected), a case that no test took fails the
session, and so does one that was only ever skipped.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
PROPERTY = "vector"

_seen = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors-root",
        type=Path,
        default=None,
        help="the folder to take test vectors from, in place of rfc-vectors",
    )


def _root(config: pytest.Config) -> Path:
    given: Path | None = config.getoption("--vectors-root", None)
    return given or HERE.parent.parent / "rfc-vectors"


@lru_cache
def _cases(root: Path, name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((root / name).read_text())["cases"]
    return cases


def vector_files(root: Path) -> list[str]:
    """The vector files below ``root``; schema/ and iana/ hold documents of other kinds."""
    return sorted(
        str(path.relative_to(root))
        for path in root.glob("*/*.json")
        if path.parent.name not in {"schema", "iana"}
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "vectors(file, group=None): one test for each case of a file in rfc-vectors"
    )
    config.stash[_seen] = set()
    config.pluginmanager.register(_Watch(config))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = list(metafunc.definition.iter_markers("vectors"))
    if not marks:
        return
    parameters = []
    for mark in marks:
        (name,) = mark.args
        group = mark.kwargs.get("group")
        chosen = [
            case
            for case in _cases(_root(metafunc.config), name)
            if group is None or case.get("group") == group
        ]
        if not chosen:
            raise pytest.UsageError(f"{metafunc.function.__name__}: {name} has no such case")
        parameters += [
            pytest.param((f"{name}#{case['id']}", case), id=case["id"]) for case in chosen
        ]
    metafunc.parametrize("case", parameters, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One case of the file that the test's ``vectors`` mark names."""
    value: dict[str, Any] = request.param[1]
    return value


def pytest_itemcollected(item: pytest.Item) -> None:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if item.get_closest_marker("vectors") and "case" in parameters:
        key = parameters["case"][0]
        item.user_properties.append((PROPERTY, key))
        if item.config.getoption("collectonly"):
            item.config.stash[_seen].add(key)


class _Watch:
    """Hears what was run, here or by the processes of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped:
            self.config.stash[_seen].update(
                str(value) for name, value in report.user_properties if name == PROPERTY
            )


def _is_whole_run(config: pytest.Config) -> bool:
    """Whether this run was asked for every test in this folder."""
    if config.getoption("keyword") or config.getoption("markexpr") or config.getoption("deselect"):
        return False
    if config.getoption("lf", False) or config.getoption("maxfail"):
        return False
    roots = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return all("::" not in argument for argument in config.args) and any(
        root == HERE or root in HERE.parents for root in roots
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workerinput") or not _is_whole_run(config):
        return
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    root = _root(config)
    unused = [
        key
        for name in vector_files(root)
        for key in (f"{name}#{case['id']}" for case in _cases(root, name))
        if key not in config.stash[_seen]
    ]
    if unused:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"{len(unused)} vectors without a test:", red=True)
            for key in unused:
                reporter.write_line(f"  {key}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
