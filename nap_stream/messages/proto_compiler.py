"""Protobuf schemas from text, by protoc, in a process of its own.

The text comes from a registry and may be made to harm: what it takes, and where it may look, is
bounded, and a crash is a schema that cannot be used.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_TEXT_BYTES = 2**20
TIMEOUT_S = 20.0
_MAIN = "nap_stream_schema.proto"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A serialised FileDescriptorSet of a schema and its imports."""

    descriptors: bytes

    def name_at(self, indexes: Sequence[int]) -> str:
        """The full name of the message at a place of the schema.

        Raises:
            ValueError: There is none.
        """
        # Only who configures the link needs the package.
        from google.protobuf.descriptor_pb2 import FileDescriptorSet  # noqa: PLC0415

        files = FileDescriptorSet.FromString(self.descriptors).file
        file = next(file for file in files if file.name == _MAIN)
        names, messages = [file.package] if file.package else [], file.message_type
        for index in indexes:
            if not 0 <= index < len(messages):
                raise ValueError(f"it has no message at {list(indexes)}")
            names.append(messages[index].name)
            messages = messages[index].nested_type
        return ".".join(names)


def compile_proto(text: str, references: Sequence[tuple[str, str]]) -> Compiled:
    """Compile a schema. ``references`` are the files that it imports: their names and texts.

    Raises:
        ValueError: It is no schema, or one that is refused.
    """
    files = {**dict(references), _MAIN: text}
    if sum(map(len, files.values())) > MAX_TEXT_BYTES:
        raise ValueError(f"the schema takes more than {MAX_TEXT_BYTES} characters")
    with tempfile.TemporaryDirectory(prefix="nap-stream-proto-") as folder:
        root = Path(folder) / "files"
        for name, content in files.items():
            path = root / _inside(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8", errors="backslashreplace")
            except OSError:
                raise ValueError(f"it imports files that cannot be: {name[:80]!r}") from None
        out = Path(folder) / "descriptors"
        command = [sys.executable, "-I", "-m", "grpc_tools.protoc", f"-I{root}"]
        command += ["--include_imports", f"--descriptor_set_out={out}", _MAIN]
        try:
            done = subprocess.run(  # noqa: S603  no part of the command comes from outside
                command, capture_output=True, timeout=TIMEOUT_S, check=False, cwd=root
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"protoc takes longer than {TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").replace(folder, "")
            raise ValueError(f"protoc says: {said.strip()[:200] or done.returncode}")
        return Compiled(out.read_bytes())


def _inside(name: str) -> PurePosixPath:
    """A file's name that stays in the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise ValueError(f"it imports a file with a name that is refused: {name[:80]!r}")
    return path
