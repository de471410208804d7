"""The papers: one file each, found by name.

A method's file defines `build(num_classes, **options) -> contract.Method`, or
`contract.Ensemble` where several of its models work together. A further method is one
more file in this folder, or any importable module named with a dot
(`my_package.my_method`); nothing is registered. docs/sixth_method.md is an example.
"""

import importlib.util
import pkgutil
from collections.abc import Callable

from crossres_jax.methods.contract import Ensemble, Method


def names() -> list[str]:
    """The names of the methods in this folder, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name != "contract")


def load(name: str) -> Callable[..., Method | Ensemble]:
    """The `build` function of a method.

    Args:
      name: a name of `names()`, or a dotted path to a module of your own.

    Returns:
      `build(num_classes, **options) -> contract.Method` or `contract.Ensemble`.

    Raises:
      ValueError: if there is no such method.
    """
    if name in names():
        return importlib.import_module(f"{__name__}.{name}").build
    if (
        "." in name
        and _exists(name)
        and (build := getattr(importlib.import_module(name), "build", None))
    ):
        return build
    raise ValueError(
        f"no method named {name!r}. Expected one of {', '.join(names())}, or the "
        "dotted path of a module with a function `build`."
    )


def _exists(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
