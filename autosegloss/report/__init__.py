"""The report room: what a search or a loss looks like to a person."""
