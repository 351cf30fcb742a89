"""Signatures of versions: that somebody we trust made one, besides that it is whole.

A version is signed by Ed25519 (RFC 8032) over the bytes of its bundle.json, which holds the SHA-256
of every other file. The 64 bytes of the signature lie beside it in bundle.json.sig.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import BundleError, SettingsError
from server.recognition.manifest import MANIFEST, SIGNATURE
from server.system.files import read_plain_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class Signers:
    """Whose versions may serve: those signed by a key of `files`, each a public key in PEM; without
    files, anybody's."""

    def __init__(self, files: Sequence[str] = ()) -> None:
        """Raise SettingsError for a file that can't be read or has no such key."""
        self._keys = [_public_key(Path(file)) for file in files]

    def check(self, folder: Path) -> None:
        """Raise BundleError unless the version in `folder` is signed by one of them."""
        if not self._keys:
            return
        from cryptography.exceptions import InvalidSignature

        try:
            signature = read_plain_file(folder / SIGNATURE)
            signed = read_plain_file(folder / MANIFEST)
        except FileNotFoundError:
            raise BundleError(
                f"{folder} is not signed, and `bundle_keys` asks for it: `python -m convert sign`"
                f" writes {SIGNATURE}"
            ) from None
        except OSError as error:
            raise BundleError(f"{folder / SIGNATURE} can't be read: {error.strerror}") from None
        for key in self._keys:
            try:
                key.verify(signature, signed)
                return
            except InvalidSignature:
                continue
        raise BundleError(f"{folder / SIGNATURE} is of no key of `bundle_keys`, or of another file")


def _public_key(path: Path) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_plain_file(path))
    except OSError as error:
        raise SettingsError(f"bundle_keys: {path} can't be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"bundle_keys: {path} is no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"bundle_keys: {path} is no key of Ed25519")
    return key
