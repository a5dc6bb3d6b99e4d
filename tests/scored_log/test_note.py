"""Signed notes, by the examples of golang.org/x/mod/sumdb/note and of c2sp.org/signed-note."""

from pathlib import Path

import pytest

from nap_stream.errors import ConfigError, ProofError, UnknownKeyError
from nap_stream.scored_log.proof.note import (
    MAX_KEY_BYTES,
    MAX_NOTE_BYTES,
    create_key,
    open_note,
    parse_public_key,
    parse_signer,
    read_public_keys,
    read_signer,
)

PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = parse_public_key("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
ENOCH = parse_public_key("EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop")
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
BY_PETER = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpR"
    "Zb6KE6RyyBwJnAM=\n"
)
BY_ENOCH = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33"
    "WWd1RvMc+QQ=\n"
)


def _note(*signatures: str, text: str = TEXT) -> bytes:
    return f"{text}\n{''.join(signatures)}".encode()


def test_the_published_key_signs_the_published_note() -> None:
    signer = parse_signer(PRIVATE)
    assert signer.public == PETER
    assert str(PETER) == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert signer.sign(TEXT) == _note(BY_PETER)
    for text in ("abc", "", "a\tb\n", "a\r\n"):
        with pytest.raises(ValueError, match="ends with a newline"):
            signer.sign(text)


def test_signatures_of_known_keys_count_and_others_are_named() -> None:
    both = _note(BY_PETER, BY_ENOCH)
    found = open_note(both, [PETER], "n")
    assert (found.text, found.signers) == (TEXT, ("PeterNeumann+c74f20a3",))
    assert found.unknown == ("EnochRoot+af0cfe78",)
    assert open_note(both, [ENOCH, PETER], "n").unknown == ()
    repeated = open_note(_note(BY_PETER, BY_PETER, BY_ENOCH, BY_ENOCH), [PETER], "n")
    assert (repeated.signers, repeated.unknown) == (found.signers, found.unknown)
    blank_in_text = parse_signer(PRIVATE).sign("a\n\nb\n")
    assert open_note(blank_in_text, [PETER], "n").text == "a\n\nb\n"
    with pytest.raises(UnknownKeyError, match=r"EnochRoot\+af0cfe78, which no given key is"):
        open_note(_note(BY_ENOCH), [PETER], "n")
    with pytest.raises(UnknownKeyError):
        open_note(both, [], "n")


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        _note(),
        _note(BY_PETER)[:-1],
        b"\x01" + _note(BY_PETER),
        b"\xff" + _note(BY_PETER),
        _note(BY_PETER.replace("PeterNeumann", "Bad Name")),
        _note(BY_PETER, "Unexpected line.\n"),
        _note(BY_PETER.replace("— ", "- ")),
        _note(BY_PETER.replace("AM=", "AM")),
        _note("— PeterNeumann x08goA\n"),
        _note(*[BY_PETER] * 101),
        b"",
        b"x" * (MAX_NOTE_BYTES + 1),
    ],
)
def test_what_is_no_note_is_refused(content: bytes) -> None:
    with pytest.raises(ProofError, match="not a signed note"):
        open_note(content, [PETER], "n")


@pytest.mark.parametrize(
    "content",
    [
        _note(BY_PETER, text=TEXT.replace("your", "our")),
        _note(BY_PETER[:60] + "ABCD" + BY_PETER[60:]),
        _note(BY_ENOCH, BY_PETER.replace("pRZb", "pRZc")),
    ],
)
def test_a_known_key_whose_signature_is_not_of_the_text_spoils_the_note(content: bytes) -> None:
    with pytest.raises(ProofError, match=r"signature of PeterNeumann\+c74f20a3 is not of this"):
        open_note(content, [PETER, ENOCH], "n")


def test_no_part_of_a_key_and_no_changed_key_is_one() -> None:
    for text, parse in ((str(PETER), parse_public_key), (PRIVATE, parse_signer)):
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                if end - start < len(text):
                    with pytest.raises(ValueError, match=r".") as caught:
                        parse(text[start:end])
                    assert text[40:60] not in str(caught.value)
        for at, character in enumerate(text):
            with pytest.raises(ValueError, match=r"."):
                parse(text[:at] + chr(ord(character) + 1) + text[at + 1 :])
    for wrong in (
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ):
        with pytest.raises(ValueError, match="not an Ed25519 key"):
            parse_public_key(wrong)


def test_a_key_that_was_made_signs_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    public = create_key(path, "example.org/line-3")
    assert path.stat().st_mode & 0o777 == 0o600
    signer = read_signer(path, "--key")
    assert open_note(signer.sign("a\n"), [public], "n").signers == (public.label,)
    secret = path.read_text().strip()
    assert secret.rpartition("+")[2] not in f"{signer!r} {signer}"
    with pytest.raises(ConfigError, match="File exists"):
        create_key(path, "other")
    assert path.read_text().strip() == secret
    for name in ("", "a b", "a+b", "a\u00a0b", "a\nb", "a\x1bb"):
        with pytest.raises(ConfigError, match="no name of a key"):
            create_key(tmp_path / "other", name)


@pytest.mark.parametrize(
    ("mode", "is_taken"),
    [(0o400, True), (0o440, True), (0o640, True)]
    + [(mode, False) for mode in (0o604, 0o602, 0o601, 0o620, 0o644)],
)
def test_a_private_key_that_others_may_use_is_refused(
    tmp_path: Path, mode: int, is_taken: bool
) -> None:
    path = tmp_path / "signing.key"
    public = create_key(path, "a")
    path.chmod(mode)
    if is_taken:
        assert read_signer(path, "--key").public == public
        return
    with pytest.raises(ConfigError, match=f"others may use the key.*mode {mode:04o}"):
        read_signer(path, "--key")


def test_files_that_hold_no_private_key_are_refused_without_showing_them(tmp_path: Path) -> None:
    path = tmp_path / "hunter2"
    for content in (
        b"",
        b"hunter2",
        PRIVATE.encode()[:-4],
        b"hunter2\xff",
        b"h" * (MAX_KEY_BYTES + 1),
    ):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError) as caught:
            read_signer(path, "log.checkpoints.key_file")
        said = f"{caught.value} {caught.value.__cause__} {caught.value.args}"
        assert said.startswith("log.checkpoints.key_file: not a")
        assert "hunter2" not in said
        assert PRIVATE[40:60] not in said
    with pytest.raises(ConfigError, match="cannot be read"):
        read_signer(tmp_path, "--key")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_signer(tmp_path / "none", "--key")


def test_public_keys_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"# until May\n{PETER}\n\n  {ENOCH}  \n")
    assert read_public_keys(path, "--keys") == (PETER, ENOCH)
    for content, said in (
        ("# none\n", "has no keys"),
        (f"{PETER}\nnonsense\n", "line 2: no public key"),
        (f"{PRIVATE}\n", "line 1: no public key: this is a private key"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=said) as caught:
            read_public_keys(path, "--keys")
        assert PRIVATE[40:60] not in str(caught.value)
