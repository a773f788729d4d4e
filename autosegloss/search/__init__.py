"""The search room: an ask/tell optimiser, a study that journals its trials, runners that execute them, `search`."""

from autosegloss.search.api import Result, search

__all__ = ["Result", "search"]
