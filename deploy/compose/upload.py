"""Puts a demo's model and calibration into a bucket, with the settings of a monitor.

upload.py s3://bucket/prefix DEMO_FOLDER MONITOR_YAML
"""

import sys
from pathlib import Path

from nap_stream.errors import LogRootError, NapStreamError
from nap_stream.objects import ObjectStore, RequestLimits

AGAIN = 75
"""Exit code where another try may do it (EX_TEMPFAIL)."""
LIMITS = RequestLimits(request_timeout_s=10, retry_timeout_s=10)


def upload(root: str, folder: Path, config: Path) -> int:
    """Put the settings below ``root``, in place of what is there; return how many files were put.

    Model and calibration are put only where there is none yet: a monitor may be running on them.

    Raises:
        OSError: One is missing.
        NapStreamError: The store does not take it.
    """
    # The last one is there only where all of them are.
    names = ("model.safetensors", "calibration/scores.safetensors", "calibration/calibration.json")
    store = ObjectStore(root, limits=LIMITS)
    files = {} if _has(store, names[-1]) else {name: folder / name for name in names}
    for name, file in {**files, config.name: config}.items():
        store.replace(name, file.read_bytes())
    return len(files) + 1


def _has(store: ObjectStore, name: str) -> bool:
    try:
        return store.read(name) is not None
    except LogRootError:
        # SeaweedFS makes a bucket with its first object.
        return False


def main() -> int:
    """Upload; 1 where a file is missing, `AGAIN` where the store does not take it yet."""
    root, folder, config = sys.argv[1:]
    try:
        count = upload(root, Path(folder), Path(config))
    except OSError as error:
        print(f"{error}: `make demo` makes it", file=sys.stderr)
        return 1
    except NapStreamError as error:
        print(error, file=sys.stderr)
        return AGAIN
    print(f"{count} files at {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
