"""Recognises model files by their content, whatever their name, and unpacks archives of them."""

import gzip
import pickle  # nosec B403 # its constants only: nothing is unpickled
import pickletools  # nosec B403 # reads opcodes, and runs none
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.errors import ConvertError


class UnknownFileError(ConvertError):
    """The content is of no kind that has a name here."""


# Kinds that are converted.
KERAS, HDF5, SAVED_MODEL, TFLITE = "Keras archive", "HDF5", "SavedModel", "TFLite"
LOADABLE = (KERAS, HDF5, SAVED_MODEL, TFLITE)
_ZIP, _TAR, _GZIP = "zip", "tar", "gzip"

_HEAD = 4096
_PYTORCH = (
    "is a PyTorch file: use `python -m convert pytorch`, which takes a .pt2 or MODULE:CALLABLE"
)
# With which PyTorch's older files begin, inside a pickle.
_PYTORCH_NUMBER = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# What a file begins with, and what it then is. No model.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.", "is a Git LFS pointer, not the model itself: run `git lfs pull`"),
    (b"/annex/objects/", "is a git-annex pointer, not the model itself: run `git annex get`"),
    (b"\x89PNG", "is a PNG image, no model"),
    (b"\xff\xd8\xff", "is a JPEG image, no model"),
    (b"%PDF", "is a PDF, no model"),
    (b"\x93NUMPY", "is a NumPy array: it has weights at most, and no model around them"),
    (b"GGUF", "is a GGUF language model, no image classifier"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it and give the model in it"),
    (b"Rar!", "is a RAR archive: unpack it and give the model in it"),
    (b"BZh", "is compressed by bzip2: unpack it and give the model in it"),
    (b"\xfd7zXZ\x00", "is compressed by xz: unpack it and give the model in it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it and give the model in it"),
)


def kind_of_model(path: Path) -> str:
    """Return one of LOADABLE, or the kind of an archive that may hold one.

    Raises ConvertError that says what the file or folder is otherwise, and what to do.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.exists():
        raise ConvertError(f"{path} does not exist")
    if not path.is_file():
        raise ConvertError(f"{path} is neither a file nor a folder")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ConvertError(f"{path} can't be read: {error.strerror}") from None
    if not head:
        raise ConvertError(f"{path} is empty")
    if path.name == "saved_model.pb" and head.startswith(b"\x08\x01\x12"):
        return SAVED_MODEL
    if head[4:8] == b"TFL3":
        return TFLITE
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return HDF5
    if head.startswith(b"\x1f\x8b"):
        return _GZIP
    # A damaged archive is one too.
    if head.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path):
        return _kind_of_zip(path)
    if tarfile.is_tarfile(path):
        return _TAR
    other = _other_kind(path, head)
    if other is None:
        raise UnknownFileError(
            f"{path} is not a Keras model that loads: it is damaged, or neither .keras, .h5 nor the"
            " folder of a SavedModel, nor a .tflite"
        )
    raise ConvertError(f"{path} {other}")


def _kind_of_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return SAVED_MODEL
    names = {p.name for p in path.iterdir()}
    return KERAS if {"config.json", "model.weights.h5"} <= names else "folder"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        raise ConvertError(f"{path} is a damaged or incomplete zip file: fetch it again") from None
    if "config.json" in names and any(name.endswith("weights.h5") for name in names):
        return KERAS
    inner = {name.partition("/")[2] for name in names}
    if inner & {"data.pkl", "constants.pkl", "archive_format", "serialized_exported_program.json"}:
        raise ConvertError(f"{path} {_PYTORCH}")
    if names & {"data.pkl", "serialized_exported_program.json"}:
        raise ConvertError(f"{path} {_PYTORCH}")
    if names and all(name.endswith(".npy") for name in names):
        raise ConvertError(f"{path} is a file of NumPy arrays: weights without a model around them")
    return _ZIP


def _other_kind(path: Path, head: bytes) -> str | None:
    for beginning, sentence in _BEGINNINGS:
        if head.startswith(beginning):
            return sentence
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in text[:512]:
        return "is a web page, such as an answer to a download that failed: fetch the model again"
    if text.startswith(b"<?xml") and b"<net" in text:
        return "is an OpenVINO model, which is not converted: give the model that it was made from"
    if text.startswith((b"{", b"[")):
        return "is JSON: it describes a model at most, and its weights are elsewhere"
    if head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") < 1 << 30:
        return "is a safetensors file: it has weights alone, without the model around them"
    if _is_pickle(path, head):
        if b"torch" in head or _PYTORCH_NUMBER in head:
            return _PYTORCH
        return "is a Python pickle, which could run any code and is not opened"
    return _protobuf(head)


def _is_pickle(path: Path, head: bytes) -> bool:
    if head[:1] != b"\x80" or not 2 <= int.from_bytes(head[1:2]) <= pickle.HIGHEST_PROTOCOL:
        return False
    # MemoryError: of an operand that claims to be longer than any memory.
    faults = (ValueError, IndexError, UnicodeDecodeError, MemoryError)
    with suppress(*faults), path.open("rb") as file:
        for number, _ in enumerate(pickletools.genops(file)):
            if number > 8:
                break
        return True
    return False


def _protobuf(head: bytes) -> str | None:
    # Of these messages the first field is ir_version, schema version and a list of nodes.
    fields = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    if head[0] == 0x08 and len(head) > 2 and head[1] == 1 and head[2] == 0x12:
        return "is a saved_model.pb under another name: give the folder that it lies in"
    if head[0] == 0x08 and len(head) > 2 and 2 <= head[1] <= 32 and head[2] in fields:
        return "is an ONNX model, which is not converted yet: give the model that it was made from"
    if head[0] == 0x0A and (b"Placeholder" in head or b"\x12\x05Const" in head):
        return (
            "is a frozen TensorFlow graph (.pb), which is not converted: export a SavedModel or a"
            " .tflite in the program that made it"
        )
    return None


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, str]]:
    """The model at `path`, or the only one in it if it is an archive or a folder, and its kind.

    What an archive holds is there until the block ends. Raises ConvertError as `kind_of_model`
    does, for a damaged archive, and for one that holds no model or several.
    """
    kind = kind_of_model(path)
    if kind == SAVED_MODEL and path.is_file():
        yield path.parent, kind
    elif kind == KERAS and path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "model.keras"
            with zipfile.ZipFile(whole, "w") as archive:
                for file in sorted(path.rglob("*")):
                    archive.write(file, file.relative_to(path))
            yield whole, kind
    elif kind in LOADABLE:
        yield path, kind
    elif kind == "folder":
        with unpacked(_only_model(path, path)) as found:
            yield found
    else:
        with tempfile.TemporaryDirectory() as folder:
            _unpack(path, kind, Path(folder))
            with unpacked(_only_model(Path(folder), path)) as found:
                yield found


def _unpack(path: Path, kind: str, folder: Path) -> None:
    try:
        if kind == _ZIP:
            with zipfile.ZipFile(path) as archive:
                # zipfile takes `..` and a first `/` out of names.
                archive.extractall(folder)  # nosec B202
        elif kind == _TAR or tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                tar.extractall(folder, filter="data")
        else:
            # Python's tarfile knows names alone; the name inside follows from that outside.
            with gzip.open(path) as source, (folder / (path.stem or "model")).open("wb") as target:
                shutil.copyfileobj(source, target)
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError),
        *(RuntimeError, NotImplementedError, ValueError),
    ) as error:
        why = "it needs a password" if "encrypted" in str(error) else "it is damaged"
        raise ConvertError(f"{path} is a {kind} archive that can't be unpacked: {why}") from None


def _only_model(folder: Path, named: Path) -> Path:
    """Return the model in `folder`, which is `named` in messages."""
    models: list[Path] = []
    refused: list[ConvertError] = []
    for path in sorted([folder, *folder.rglob("*")]):
        inside = path.relative_to(folder).parts
        if any(part.startswith((".", "__MACOSX")) for part in inside):
            continue
        if any(path.is_relative_to(model) for model in models):
            continue
        if path.is_dir():
            kind: str | None = _kind_of_folder(path)
        else:
            try:
                kind = kind_of_model(path)
            except ConvertError as error:
                refused.append(error)
                continue
        if kind in LOADABLE and path.name != "saved_model.pb":
            models.append(path)
    names = ", ".join(str(path.relative_to(folder)) for path in models)
    if len(models) > 1:
        raise ConvertError(f"{named} holds several models, {names}: give one of them")
    if not models:
        only = ""
        if len(refused) == 1:
            only = "; " + str(refused[0]).replace(str(folder), str(named))
        raise ConvertError(
            f"{named} holds no model: it holds no saved_model.pb, .keras, .h5 or .tflite{only}"
        )
    return models[0]
