"""The proxy room: data, networks and short training runs that evaluate a loss."""
