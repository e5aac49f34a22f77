"""The package's public names: all there, loaded late, each of them the object of its own module."""

from __future__ import annotations

import importlib

import pytest

import nattype


@pytest.mark.parametrize("name", nattype.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(nattype, name)
    module = importlib.import_module(nattype._MODULE_OF[name])
    assert value is getattr(module, name)
    assert name in dir(nattype)


def test_public_names_and_their_modules_agree() -> None:
    assert set(nattype.__all__) == set(nattype._MODULE_OF)


def test_discover_is_the_function_also_after_its_module_was_imported() -> None:
    module = importlib.import_module("nattype.discover")
    importlib.reload(nattype)
    nattype.discover = module
    assert callable(nattype.discover)
    assert nattype.discover is module.discover


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'discovre'"):
        nattype.discovre  # noqa: B018
