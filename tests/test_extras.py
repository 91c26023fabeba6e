"""Which libraries are there, and what is said where one is missing."""

import pytest

from synthaug._support import extras
from synthaug._support.extras import from_extra, installed_version


def test_a_missing_library_is_named_with_its_extra_and_what_it_lacks_itself_is_not():
    message = r"^This needs timm\. Install it with `pip install 'synthaug\[timm\]'`\.$"
    with pytest.raises(ImportError, match=message), from_extra("timm", "This needs timm", "timm"):
        raise ModuleNotFoundError("No module named 'timm.models'", name="timm.models")
    with pytest.raises(ImportError, match=r"^No module"), from_extra("timm", "This", "timm"):
        raise ModuleNotFoundError("No module named 'another'", name="another")


def test_the_version_of_a_distribution_is_looked_up_once(monkeypatch):
    found = installed_version("pytest")
    assert found == pytest.__version__
    monkeypatch.setattr(extras, "version", None)
    assert installed_version("pytest") == found
    monkeypatch.undo()
    assert installed_version("a library that nobody has written") is None
