"""What every test shares: the seed, and the strictness that CI asks for."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import settings

DEFAULT_SEED = 8489

# Machines that run tests are shared: an example that takes long says nothing about the code.
settings.register_profile("natkit", deadline=None, print_blob=True)
settings.load_profile("natkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        default=str(DEFAULT_SEED),
        help="a number, which replays the run that printed it, or: random",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Workers of a parallel run share the seed of the process that started them.
    worker_input = getattr(config, "workerinput", {})
    seed = worker_input.get("natkit_seed", config.getoption("--seed"))
    config.option.seed = random.SystemRandom().getrandbits(32) if seed == "random" else int(seed)
    if config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = config.option.seed


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine on an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    given = {name: value for name, value in pyfuncitem.funcargs.items() if name in wanted}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**given), 60))
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Hand the seed to a worker of pytest-xdist."""
    node.workerinput["natkit_seed"] = node.config.getoption("--seed")  # type: ignore[attr-defined]


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (--seed random for another)"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        report.sections.append(("replay", f"--seed {item.config.getoption('--seed')}"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the folder say what a test needs, so that no test can forget its marker.

    Slow tests come first, so that nobody waits for the last of them alone.
    """
    for item in items:
        for folder in ("lab", "interop"):
            if folder in item.path.relative_to(config.rootpath).parts:
                item.add_marker(getattr(pytest.mark, folder))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a skipped lab or interop test into a failure in CI: there it proves nothing."""
    if not os.environ.get("CI") or exitstatus:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [] if reporter is None else reporter.stats.get("skipped", [])
    refused = [r.nodeid for r in skipped if {"lab", "interop"} & set(r.keywords)]
    if refused:
        reporter.write_line(f"skipped in CI, so failed: {', '.join(refused)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for this test: the run's seed and the test's name, so that tests are independent."""
    value = random.Random(f"{request.config.getoption('--seed')}:{request.node.nodeid}")
    return value.getrandbits(32)


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)
