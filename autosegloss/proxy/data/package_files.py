"""Images that come with other packages, which the extra `samples` installs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from autosegloss.errors import DataError


def package_file(dataset: str, package: str, file: str, what: str) -> Path:
    """The path of a file in an installed package, which is not imported: it would import much else.

    Args:
        dataset: Name of the data set, for the message.
        package: Name of the package.
        file: Path in it.
        what: What the file holds, for the message.

    Raises:
        DataError: The package is not installed, or lacks the file.
    """
    spec = find_spec(package)
    found = spec.submodule_search_locations if spec is not None else None
    path = Path(found[0], file) if found else None
    if path is not None and path.is_file():
        return path
    reason = "is not installed" if path is None else f"has no {path.name} in its installed version"
    raise DataError(
        f"data set `{dataset}`: the {package} package, which ships {what}, {reason}: "
        'pip install "autosegloss[samples]".'
    )
