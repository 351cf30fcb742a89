"""`python -m convert sign`: says whose a bundle is, for devices that serve only what they trust."""

import argparse
from pathlib import Path

from convert.errors import ConvertError
from server.errors import BundleError
from server.recognition.manifest import MANIFEST, SIGNATURE, read_bundle
from server.system.files import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sign`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder models/NAME/VERSION")
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        help="private key (Ed25519, PEM), as `openssl genpkey -algorithm ed25519` makes it",
    )


def run(args: argparse.Namespace) -> int:
    """Write the signature beside bundle.json. Returns the exit code; raises ConvertError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        manifest = read_bundle(args.bundle).manifest
        key = load_pem_private_key(args.key.read_bytes(), password=None)
        signed = (args.bundle / MANIFEST).read_bytes()
    except BundleError as error:
        raise ConvertError(str(error)) from None
    except OSError as error:
        raise ConvertError(f"{error.filename} can't be read: {error.strerror}") from None
    except TypeError:
        raise ConvertError(
            f"{args.key} has a password: write the key without one, as by `openssl pkey -in FILE"
            " -out NEW`"
        ) from None
    except ValueError:
        raise ConvertError(f"{args.key} is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConvertError(f"{args.key} is no key of Ed25519")
    try:
        write_whole(args.bundle / SIGNATURE, key.sign(signed))
    except OSError as error:
        raise ConvertError(f"{args.bundle} can't be written to: {error.strerror}") from None
    print(f"{args.bundle}: {manifest.name}/{manifest.version} is signed")
    return 0
