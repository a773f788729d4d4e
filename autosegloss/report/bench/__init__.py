"""Measurements that users run on their own machine: the cost of a loss, and the pace of proxies."""
