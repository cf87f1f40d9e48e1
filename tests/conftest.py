"""What holds for all tests: a skip is a failure, and one that failed is shown with what its kevips said."""

from collections.abc import Generator

import pytest
from hypothesis import settings

settings.register_profile("kevip", deadline=None)  # a busy machine is no failure
settings.load_profile("kevip")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail what was skipped, for what was not run shows nothing; add the logs of replicas and containers."""
    if call.when == "call" and call.excinfo:
        for replica in getattr(item.funcargs.get("start"), "started", []):
            item.add_report_section("call", f"kevip on {replica.node.name}", replica.log())
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr}"
    return report
