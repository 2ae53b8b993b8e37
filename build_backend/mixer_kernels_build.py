"""PEP 517 backend: setuptools, building against the torch that is already installed.

pip builds in an isolated environment. Naming torch as a build requirement would download a second torch there, often
another version than the one the package will run with. So torch is taken from the environment that runs pip, and asked
for as a requirement only when it is not there.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # the hooks that need no change

_TORCH_REQUIREMENT = "torch>=2.11"


def _find_installed_torch() -> bool:
    # In an isolated build this is still the site-packages of the environment that pip installs into. It is appended,
    # so the isolated environment's own packages keep precedence.
    purelib = sysconfig.get_path("purelib")
    if purelib not in sys.path:
        sys.path.append(purelib)
    return importlib.util.find_spec("torch") is not None


_HAS_TORCH = _find_installed_torch()


def _with_torch(requirements: list[str]) -> list[str]:
    return requirements if _HAS_TORCH else [*requirements, _TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return _with_torch(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return _with_torch(build_meta.get_requires_for_build_editable(config_settings))
