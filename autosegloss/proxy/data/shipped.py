"""Files of data sets that another package ships; the extra `samples` installs these packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from autosegloss.errors import DataError


def shipped(dataset: str, package: str, file: str, what: str) -> Path:
    """The path of a file in an installed package. The package is not imported, which would import much else.

    Args:
        dataset: Name of the data set, for the message.
        package: Name of the package.
        file: Path in it.
        what: What the file holds, for the message.

    Raises:
        DataError: The package is not installed, or lacks the file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise not_installed(dataset, f"the {package} package, which ships {what}, is not installed")
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file():
        raise not_installed(dataset, f"the installed {package} package has no {path.name}")
    return path


def not_installed(dataset: str, what: str) -> DataError:
    """An error about what the extra `samples` would bring."""
    return DataError(f'data set `{dataset}`: {what}. Install it: pip install "autosegloss[samples]"')
