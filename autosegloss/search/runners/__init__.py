"""The runners of trials: this process, or workers of Ray."""

from __future__ import annotations

from autosegloss.errors import InputError, RefusedError, shown
from autosegloss.search.runners.base import Runner
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import ResourcesConfig


def choose_runner(runner: Runner | str, resources: ResourcesConfig, address: str | None = None) -> Runner:
    """The runner of a name, with the resources of a configuration.

    Args:
        runner: "ray", "serial", or a runner, which is returned unchanged.
        resources: Workers, and what each of them gets.
        address: Of the Ray cluster to join; only with "ray".

    Raises:
        InputError: The runner is unknown, or is not "ray" and an address is given.
        RefusedError: The runner is "serial", and a time limit is set.
    """
    if address is not None and runner != "ray":
        raise InputError(f"address needs the runner ray, got {shown(runner)}.")
    if runner == "serial":
        if resources.time_limit is not None:
            raise RefusedError(
                f"resources.time_limit is {resources.time_limit:g} s, but with the runner serial a process can't stop "
                "its own trial. Use the runner ray, or set resources.time_limit to null."
            )
        return SerialRunner(resources.workers if resources.gpus else 1)
    if runner == "ray":
        from autosegloss.search.runners.ray import RayRunner  # keeps Ray out of serial runs

        return RayRunner(resources.workers, resources.cpus, resources.gpus, resources.time_limit, address)
    if isinstance(runner, str):
        raise InputError(f"runner must be ray or serial, got {shown(runner)}.")
    return runner
