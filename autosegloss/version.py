"""The version of the package, from what is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("autosegloss")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "unknown"
