"""The proxy room: small data, small networks and short training runs that judge a loss."""
