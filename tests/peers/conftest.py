"""What is compared with other libraries, which ``make test-all`` installs."""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Importing them takes seconds: not where ``-m`` leaves them out."""
    return True if "not peers" in config.option.markexpr else None
