"""Puts a demo's model and calibration into a bucket, with the settings of a monitor.

upload.py s3://bucket/prefix DEMO_FOLDER MONITOR_YAML
"""

import sys
from pathlib import Path

from nap_stream.errors import NapStreamError
from nap_stream.objects import ObjectStore, RequestLimits

LIMITS = RequestLimits(request_timeout_s=10, retry_timeout_s=10)


def upload(root: str, folder: Path, config: Path) -> int:
    """Put them below ``root``, in place of what is there; return how many files they are.

    Raises:
        OSError: One is missing.
        NapStreamError: The store does not take it.
    """
    calibration = ("calibration/calibration.json", "calibration/scores.safetensors")
    files = {name: folder / name for name in ("model.safetensors", *calibration)}
    store = ObjectStore(root, limits=LIMITS)
    for name, file in {config.name: config, **files}.items():
        store.replace(name, file.read_bytes())
    return len(files) + 1


def main() -> int:
    """Upload; 1 where a file is missing or the store does not take it."""
    root, folder, config = sys.argv[1:]
    try:
        count = upload(root, Path(folder), Path(config))
    except OSError as error:
        print(f"{error}: `make demo` makes it", file=sys.stderr)
        return 1
    except NapStreamError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} files at {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
