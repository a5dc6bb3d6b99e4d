"""What evaluation needs beyond nap-stream itself. Imports none of it."""

from importlib.util import find_spec

from nap_stream.errors import ConfigError

_PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def require_evaluate_extra() -> None:
    """Refuse to go on without the packages of the extra.

    Raises:
        ConfigError: Naming those that are not installed.
    """
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{' and '.join(missing)} {verb} not installed",
            "",
            "pip install 'nap-stream[evaluate]'",
        )
