"""Versions that serve only if somebody we trust has signed them."""

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from server_process import LiveServer
from tiny_models import MakeModel, change_manifest, write_bundle

from convert.__main__ import main
from server.cli.fleet.push import pack
from server.config.settings import Settings
from server.errors import BundleError, SettingsError, VersionRefusedError
from server.recognition.manifest import MANIFEST, SIGNATURE, read_bundle
from server.store.bundles.folder import ModelsFolder, models_folder
from server.store.bundles.signatures import Signers
from server.store.bundles.upload import import_archive

ROOM = 10_000_000


def make_key(folder: Path, name: str) -> tuple[Path, str]:
    """The file of a new private key, and that of its public one."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, str(public)


@pytest.fixture
def models(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """A folder of the model `colors` in two versions without a signature."""
    folder = tmp_path / "models" / "colors"
    write_bundle(folder / "1", tiny_model("colors"))
    shutil.copytree(folder / "1", folder / "2")
    change_manifest(folder / "2", version=2)
    return folder.parent


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    return make_key(tmp_path, "plant")


def serving(models: Path, *public: str) -> int:
    """The version that serves with these keys."""
    settings = Settings(models=str(models), model="colors", bundle_keys=public)
    return models_folder(settings).verify_default().manifest.version


def test_signed_version_serves_and_others_do_not(
    models: Path, keys: tuple[Path, str], tmp_path: Path
) -> None:
    private, public = keys
    assert serving(models) == 2
    with pytest.raises(BundleError, match="is not signed, and `bundle_keys` asks for it"):
        serving(models, public)
    assert main(["sign", str(models / "colors" / "1"), "--key", str(private)]) == 0
    assert (models / "colors" / "1" / SIGNATURE).stat().st_size == 64
    other = make_key(tmp_path, "other")
    assert serving(models, other[1], public) == 1
    with pytest.raises(BundleError, match="is of no key of `bundle_keys`"):
        ModelsFolder(models, "colors", None, 1, Signers([other[1]])).verify_default()


def test_signature_is_of_every_byte(models: Path, keys: tuple[Path, str]) -> None:
    private, public = keys
    folder = models / "colors" / "2"
    assert main(["sign", str(folder), "--key", str(private)]) == 0
    change_manifest(folder, version=2, source="another")
    with pytest.raises(BundleError, match="or of another file"):
        Signers([public]).check(folder)
    shutil.copy(models / "colors" / "1" / MANIFEST, folder)
    for damage in (b"", b"x" * 64, b"x" * 1000):
        (folder / SIGNATURE).write_bytes(damage)
        with pytest.raises(BundleError, match="is of no key"):
            Signers([public]).check(folder)


def test_bare_model_is_never_signed(models: Path, keys: tuple[Path, str]) -> None:
    folder = models / "colors" / "1"
    (folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        Signers([keys[1]]).check(folder)


def test_upload_needs_and_keeps_the_signature(
    models: Path, keys: tuple[Path, str], tmp_path: Path
) -> None:
    private, public = keys
    folder, there, signers = models / "colors" / "1", tmp_path / "there", Signers([public])

    def send() -> tuple[int, bool]:
        archive = pack(folder, read_bundle(folder).manifest)
        return import_archive(there, "colors", io.BytesIO(archive), ROOM, signers)

    with pytest.raises(VersionRefusedError, match="the archive is not signed"):
        send()
    assert not (there / "colors").exists()
    assert main(["sign", str(folder), "--key", str(private)]) == 0
    assert send() == (1, True)
    assert serving(there, public) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can't be read: No such file or directory"),
        (b"x", "is no public key in PEM"),
        ("private", "is no public key in PEM"),
        ("other kind", "is no key of Ed25519"),
    ],
)
def test_unusable_key_stops_the_start(
    models: Path, keys: tuple[Path, str], tmp_path: Path, content: bytes | str | None, says: str
) -> None:
    file = tmp_path / "key.pub"
    if content == "private":
        file.write_bytes(keys[0].read_bytes())
    elif content == "other kind":
        public = generate_private_key(SECP256R1()).public_key()
        file.write_bytes(
            public.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"bundle_keys: {file} {says}"):
        serving(models, str(file))
    server = LiveServer(models=models, bundle_keys=file)
    assert server.process.wait(60) == 1
    server.stop()
    assert any("bundle_keys" in str(line) for line in server.lines)


def test_sign_says_what_it_can_not_use(
    models: Path, keys: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = models / "colors" / "1", tmp_path / "other.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            encoding, form, serialization.BestAvailableEncryption(b"secret")
        )
    )
    curve = tmp_path / "curve.pem"
    curve.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            encoding, form, serialization.NoEncryption()
        )
    )
    for key, says in (
        (tmp_path / "none.pem", "none.pem can't be read: No such file"),
        (keys[1], "plant.pub is no private key in PEM"),
        (other, "other.pem has a password"),
        (curve, "curve.pem is no key of Ed25519"),
    ):
        assert main(["sign", str(folder), "--key", str(key)]) == 1
        assert says in capsys.readouterr().err
    (folder / "labels.txt").write_text("changed")
    assert main(["sign", str(folder), "--key", str(keys[0])]) == 1
    assert "labels.txt is damaged" in capsys.readouterr().err
    assert not (folder / SIGNATURE).exists()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_verifies_a_signature_too(models: Path, keys: tuple[Path, str]) -> None:
    folder = models / "colors" / "1"
    assert main(["sign", str(folder), "--key", str(keys[0])]) == 0
    words = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", keys[1]]
    files = ["-sigfile", str(folder / SIGNATURE), "-in", str(folder / MANIFEST)]
    subprocess.run([*words, *files], check=True, stdout=subprocess.DEVNULL)
