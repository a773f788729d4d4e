"""The errors of the package: each says what was given, where, what is allowed and what to do."""


class AutoseglossError(Exception):
    """Base class of the errors of this package."""


class ExprError(AutoseglossError, TypeError):
    """An expression combines incompatible values."""


class ParseError(ExprError, ValueError):
    """A text is not a valid expression; the message points at the position."""


class InputError(AutoseglossError, ValueError):
    """A tensor, a label or an argument is out of range or of the wrong shape."""


class InputTypeError(InputError, TypeError):
    """A tensor or an argument is of the wrong type."""


class ConfigError(AutoseglossError, ValueError):
    """A configuration is invalid; the message lists all errors, each with its file and line."""


class LossFileError(AutoseglossError, ValueError):
    """A loss file is damaged, written by a newer version, or describes an impossible loss."""


class WriteError(AutoseglossError, ValueError):
    """A file can't be written."""


class DataError(AutoseglossError, ValueError):
    """A data set is missing, incomplete or inconsistent."""


class TrainingDiverged(AutoseglossError, RuntimeError):  # noqa: N818 - an outcome of a trial, not a mistake
    """A training run met a loss or a weight that is not finite."""


class SearchError(AutoseglossError, RuntimeError):
    """A search can't continue; finished trials are safe in the journal."""


class RefusedError(SearchError, ValueError):
    """A search is refused before it starts: the folder holds another search, or resources are missing."""
