"""The errors a user can meet: each says what was given, where, what is allowed and what to do."""


class AutoseglossError(Exception):
    """Base of every error this package raises on purpose."""


class ExprError(AutoseglossError, TypeError):
    """An expression joins values that do not fit together."""


class ParseError(ExprError, ValueError):
    """A text is not an expression; the message points at the place."""


class InputError(AutoseglossError, ValueError):
    """A tensor, a label or an argument is out of range or of the wrong shape."""


class InputTypeError(InputError, TypeError):
    """A tensor or an argument is of the wrong type."""


class ConfigError(AutoseglossError, ValueError):
    """A configuration has mistakes; the message lists all of them, each with its file and line."""


class LossFileError(AutoseglossError, ValueError):
    """A loss file is damaged, of a newer version, or describes an impossible loss."""


class WriteError(AutoseglossError, ValueError):
    """A file can't be written."""


class DataError(AutoseglossError, ValueError):
    """A data set is missing, incomplete or inconsistent."""


class TrainingDiverged(AutoseglossError, RuntimeError):  # noqa: N818 - an outcome of a trial, not a mistake
    """A training run met a loss or a weight that is not finite."""


class SearchError(AutoseglossError, RuntimeError):
    """A search cannot go on; what is finished is safe in the journal."""


class RefusedError(SearchError, ValueError):
    """A search is refused before it starts: its folder holds another one, or the resources are not there."""
