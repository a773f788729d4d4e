"""A loss as one Python module that needs nothing but PyTorch.

`source` walks the expression of a loss once and writes a statement for each value that deserves a name. The functions
that these statements call are copied from `autosegloss.loss.standalone`, and only those. Nothing of a loss file becomes
code but numbers; its provenance becomes comments, of printable characters alone.
"""

from autosegloss.loss.python.module import source

__all__ = ["source"]
