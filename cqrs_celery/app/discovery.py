"""Import the modules with handlers from packages, including packages in the current folder.

Celery has the current folder on the path when it imports the modules of its setting `imports`, but
not when it discovers modules in packages. This module finds both in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery.loaders.base import find_related_module
from celery.utils.imports import cwd_in_path


def import_from(packages: Sequence[str], module: str) -> Sequence[str]:
    """Import a module of each package that has it.

    Args:
        packages: the packages' names.
        module: the module's name inside them.

    Returns:
        The packages' names, for Celery's own discovery, which then finds the modules imported.

    Raises:
        ModuleNotFoundError: there is no such package, or the module imports one that is missing.
    """
    with cwd_in_path():
        for package in packages:
            try:
                find_related_module(package, module)
            except ModuleNotFoundError as error:
                if f"{package}.".startswith(f"{error.name}."):
                    raise ModuleNotFoundError(
                        f"cqrs.autodiscover was given {package!r}, but there is no {error.name!r}"
                        " in the current folder or on the path. Correct the name, or install it",
                        name=error.name,
                    ) from error
                raise
    return packages
