"""The check for optional packages."""

import pytest

from vartok.errors import VartokError
from vartok.optional import is_installed, require


def test_installed_packages_pass() -> None:
    assert is_installed("numpy")
    require("numpy", "torch", extra="train", purpose="training")


def test_every_missing_package_is_named() -> None:
    with pytest.raises(VartokError) as error:
        require("no_such_one", "numpy", "no_such_two", extra="train", purpose="training")
    assert str(error.value) == "not installed: no_such_one, no_such_two (needed for training)"
    assert error.value.hint == "run pip install '.[train]' in a clone of vartok"
