"""Ray in the process of the tests."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from tests.support.leftovers import short_folder


@contextmanager
def ray_here(
    *, cpus: int, gpus: int | None = None, python_path: str | None = None
) -> Iterator[None]:
    """Ray while the block runs, with GPUs that need not be there.

    Args:
        cpus: How many.
        gpus: How many; those of the machine by default.
        python_path: A folder from which its workers can import, too.
    """
    with short_folder() as folder, pytest.MonkeyPatch.context() as environ:
        environ.setenv("RAY_AUTH_MODE", "disabled")
        environ.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own default from its next release on; the present one warns until it is set.
        environ.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if python_path is not None:
            environ.setenv("PYTHONPATH", python_path, prepend=os.pathsep)
        try:
            ray.init(
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=100_000_000,
                _temp_dir=str(folder),
            )
            yield
        finally:
            ray.shutdown()
