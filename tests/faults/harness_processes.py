"""Processes that start in a moment: forked from one that has imported everything."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
# A child runs the main module again, so the fork server imports what that imports as well.
FORKS.set_forkserver_preload(["__main__", "tests.faults.worker_process"])
