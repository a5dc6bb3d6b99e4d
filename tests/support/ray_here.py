"""Ray in the process of the tests."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import ray

from tests.support.leftovers import short_folder
from tests.support.ray_start import ATTEMPTS, was_too_slow


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
    with pytest.MonkeyPatch.context() as environ, ExitStack() as folders:
        # Ray's own default from its next release on; the present one warns until it is set.
        environ.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if python_path is not None:
            environ.setenv("PYTHONPATH", python_path, prepend=os.pathsep)
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _init(folders.enter_context(short_folder()), cpus, gpus)
                    break
                except Exception as error:
                    if attempt == ATTEMPTS or not was_too_slow(str(error)):
                        raise
                    folders.close()  # with all that still runs in it
            yield
        finally:
            ray.shutdown()


def _init(folder: Path, cpus: int, gpus: int | None) -> None:
    ray.init(
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=100_000_000,
        _temp_dir=str(folder),
    )
