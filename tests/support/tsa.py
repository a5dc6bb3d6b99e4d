"""A time stamp authority of the tests: certificates made here, tokens by the openssl program."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.waiting import PATIENCE_S

HAS_OPENSSL = shutil.which("openssl") is not None
_CONFIG = """\
[tsa]
default_tsa = here
[here]
dir = {folder}
serial = $dir/serial
crypto_device = builtin
signer_cert = $dir/tsa.pem
signer_key = $dir/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ess_cert_id_alg = sha256
"""


@dataclass(frozen=True)
class LocalTsa:
    """Where it answers, and the certificate that its own is signed by."""

    url: str
    root: Path


@contextmanager
def local_tsa(folder: Path) -> Iterator[LocalTsa]:
    """A TSA that answers while the block runs."""
    folder.mkdir()
    _make_certificates(folder)
    (folder / "tsa.cnf").write_text(_CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder))
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield LocalTsa(f"http://127.0.0.1:{server.server_address[1]}/tsa", folder / "root.pem")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query, answer = folder / "query.tsq", folder / "answer.tsr"
            query.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            reply: list[str | Path] = ["openssl", "ts", "-reply", "-config", folder / "tsa.cnf"]
            subprocess.run(
                [*reply, "-queryfile", query, "-out", answer],
                check=True,
                capture_output=True,
                timeout=PATIENCE_S,
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.read_bytes())

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    return Handler


def _make_certificates(folder: Path) -> None:
    root_key, key = (rsa.generate_private_key(65_537, 2_048) for _ in range(2))
    root = _certificate("root", root_key, None)
    stamping = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
    tsa = _certificate("tsa", key, (root, root_key), stamping)
    for name, certificate in (("root", root), ("tsa", tsa)):
        path = folder / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tsa.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _certificate(
    name: str,
    key: rsa.RSAPrivateKey,
    by: tuple[x509.Certificate, rsa.RSAPrivateKey] | None,
    usage: x509.ExtendedKeyUsage | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} of the tests")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(key if by is None else by[1], hashes.SHA256())
