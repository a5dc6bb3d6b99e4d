"""Ray's start on a machine that is busy.

A node of Ray ends at once where its agents take more than 15 s to come up, and Ray has no setting
for that: whoever started it tries again. The other limits of its start are generous here.
"""

ATTEMPTS = 5
RAY_ENVIRON = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # events of two workers differ by a word, and each one counts
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_gcs_server_port_wait_time_s": "60",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
}
"""Of all tests and of what they start: tests/conftest.py sets it before anybody imports Ray."""


def was_too_slow(text: str) -> bool:
    """Whether Ray's own words say that a node did not come up in time."""
    return "The current node timed out during startup" in text
