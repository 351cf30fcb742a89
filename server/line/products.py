"""The products of a line: each chooses model, version and verdict policy; one of them is active.

`data/product.json` keeps the active one. A file that can't be read, or that names a product which
the settings do not have, makes none active: frames that name neither product nor model are refused
until one is activated, since another product's policy may pass what this one's would not.
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import msgspec

from server.config.products import ProductTable
from server.errors import (
    InvalidFieldError,
    LinesideError,
    NotReadyError,
    ProductNotFoundError,
    SettingsError,
    StorageError,
    VersionRefusedError,
)
from server.observe.logs import ProblemLog
from server.recognition.tasks.task import Reader
from server.recognition.tensor_model import Model
from server.store.bundles.policies import make_policy
from server.store.bundles.repository import BundleRepository
from server.system.files import make_folder, read_plain_file, write_whole
from server.values import json_values
from server.values.validation import InvalidValueError

logger = logging.getLogger(__name__)

FILE = "product.json"
# Seconds before the active product's model is tried again, if it could not be loaded at the start.
RETRY_S = 1.0
# Seconds for which a load that is under way may delay the stop.
STOP_TIMEOUT_S = 5.0

Readers: TypeAlias = WeakKeyDictionary[Reader[Any], Reader[Any]]


class ProductState(msgspec.Struct, frozen=True):
    """One product. version: that must serve, 0 for any. policy: its own verdict policy, null if the
    model's is in force. fault: why its frames are not judged now, null if they are."""

    name: str
    active: bool
    model: str
    version: int
    policy: dict[str, Any] | None
    fault: str | None


class _File(msgspec.Struct, frozen=True):
    active: str


class Products:
    """The products `tables`, of which the first is active until another is activated.

    Raises SettingsError if the policy of one does not fit the version that would serve. `_lock`
    guards `_readers`, the readers by a product's policy, by that of the model; `_changing` is held
    by one activation.
    """

    def __init__(self, tables: Sequence[ProductTable], store: BundleRepository, data: Path) -> None:
        self._tables = {table.name: table for table in tables}
        self._store = store
        self._path = data / FILE
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._readers: dict[str, Readers] = {name: WeakKeyDictionary() for name in self._tables}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        for table in tables:
            self._check(table)
        self.active = self._read_active()
        if self.active is not None:
            store.need(self.active.model)

    def _check(self, table: ProductTable) -> None:
        """Raise SettingsError if the policy does not fit. A missing or damaged bundle is a matter
        of `fault`: it may be mended while the line's other products go on."""
        if table.policy is None:
            return
        with suppress(LinesideError):
            bundle = self._store.bundle(table.model, table.version or None)
            try:
                make_policy(table.policy, bundle)
            except InvalidFieldError as error:
                raise SettingsError(f"[[product]] {table.name}: {error.message}") from None

    def _read_active(self) -> ProductTable | None:
        if not self._tables:
            return None
        try:
            data = read_plain_file(self._path)
            name = json_values.decode(data, _File, name="it", lenient=False).active
        except FileNotFoundError:
            return next(iter(self._tables.values()))
        except (OSError, InvalidValueError) as error:
            self._log_none(str(error))
            return None
        if name not in self._tables:
            self._log_none(f"the settings have no product {name}")
        return self._tables.get(name)

    def _log_none(self, reason: str) -> None:
        fields = {"file": str(self._path), "reason": reason}
        logger.error("no product is active", extra={"fields": fields})

    def start(self) -> None:
        """Load the active product's model, in a thread of its own."""
        if self.active is not None:
            self._thread = threading.Thread(target=self._load_active, name="product", daemon=True)
            self._thread.start()

    def _load_active(self) -> None:
        problem = ProblemLog("the active product's model can't be loaded", "it is loaded now")
        while not self._stop.is_set():
            table = self.active
            if table is None or not self.fault(table):
                break
            try:
                self._serve(table)
            except LinesideError as error:
                problem.failed(error.message, product=table.name)
            self._stop.wait(RETRY_S)
        problem.went_well()

    def _serve(self, table: ProductTable) -> None:
        """Have the product's model, in its version, serve. Raises what loading it does."""
        model = self._store.load(table.model)
        if table.version not in (0, model.manifest.version):
            self._store.activate(table.model, table.version)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def find(self, name: str) -> ProductTable:
        """Return the product `name`. Raises ProductNotFoundError."""
        table = self._tables.get(name)
        if table is None:
            raise ProductNotFoundError(f"there is no product {name} in the settings")
        return table

    def of_frame(self, product: str | None, model: str | None) -> ProductTable | None:
        """Return the product of a frame that names `product` or `model`: the active one if it names
        neither; None if it names a model, or if the settings have no products.

        Raises ProductNotFoundError, InvalidFieldError if it names both, and NotReadyError if it
        names neither and no product is active.
        """
        if product is not None:
            if model is not None:
                raise InvalidFieldError("product and model were sent together: send one of them")
            return self.find(product)
        if model is not None or not self._tables:
            return None
        if self.active is None:
            raise NotReadyError("no product is active: activate one, or name one with `product`")
        return self.active

    def reader(self, product: str, model: Model) -> Reader[Any]:
        """Return what reads the outputs of `model`, the product's own, by the policy in force for
        the product. Raises ProductNotFoundError, and NotReadyError if the product needs another
        version, or its policy does not fit this one."""
        table, base, manifest = self.find(product), model.reader, model.manifest
        policy = table.policy
        if table.version not in (0, manifest.version):
            raise NotReadyError(
                f"the product {product} needs version {table.version} of {manifest.name}, and"
                f" {manifest.version} serves"
            )
        if policy is None:
            return base
        with self._lock:
            reader = self._readers[product].get(base)
        if reader is None:
            try:
                reader = base.with_policy(make_policy(policy, model.bundle), "product")
            except InvalidFieldError as error:
                raise NotReadyError(
                    f"the policy of the product {product} does not fit version {manifest.version}"
                    f" of {manifest.name}: {error.message}"
                ) from None
            with self._lock:
                self._readers[product][base] = reader
        return reader

    def fault(self, table: ProductTable) -> str:
        """Return why the product's frames can't be judged now; '' if they can."""
        model = self._store.served().get(table.model)
        if model is None:
            return f"the model {table.model} of the product {table.name} is not loaded"
        if model.unfit:
            return model.unfit
        try:
            self.reader(table.name, model)
        except LinesideError as error:
            return error.message
        return ""

    def ready(self) -> tuple[bool, str]:
        """Return whether frames that name neither product nor model are judged, and why not."""
        if not self._tables:
            return True, ""
        fault = self.fault(self.active) if self.active else "no product is active"
        return not fault, fault

    def activate(self, name: str) -> None:
        """Judge frames by the product `name` from the next one on, also after a restart. Its model
        is loaded, in its version.

        Raises ProductNotFoundError, StorageError, NotReadyError, and what loading a version does,
        in which cases the product before stays active, and the version before serves again; what
        can't be taken back is in the error's message.
        """
        table = self.find(name)
        if not self._changing.acquire(blocking=False):
            raise NotReadyError("another product is being activated", retry_after=5)
        try:
            before = self._serving(table)
            self._keep(table)
            try:
                self._serve(table)
                if fault := self.fault(table):
                    raise VersionRefusedError(fault)
            except LinesideError as error:
                error.message += self._take_back(table, before)
                raise
            self.active = table
            self._store.need(table.model)
        finally:
            self._changing.release()

    def _serving(self, table: ProductTable) -> int | None:
        """Return the version that serves of the product's model; None if none does."""
        model = self._store.served().get(table.model)
        return model.manifest.version if model else None

    def _take_back(self, table: ProductTable, before: int | None) -> str:
        """Have the version `before` of a product's model serve again, and keep the choice of the
        active product. Return what could not be taken back, for the end of a message."""
        left = ""
        serving = self._serving(table)
        if before is not None and serving != before:
            try:
                self._store.activate(table.model, before)
            except LinesideError as error:
                left = f"; version {serving} of {table.model} serves now, since {error.message}"
        if self.active is not None:
            try:
                self._keep(self.active)
            except StorageError as error:
                left += f"; at the next start {table.name} is active, since {error.message}"
        return left

    def _keep(self, table: ProductTable) -> None:
        """Keep that `table` is active, on the disk once this returns. Raises StorageError."""
        try:
            make_folder(self._path.parent)
            write_whole(self._path, msgspec.json.encode(_File(table.name)))
        except OSError as error:
            raise StorageError(
                f"the choice of the product can't be kept in {self._path}: {error.strerror}"
            ) from None

    def states(self) -> tuple[ProductState, ...]:
        return tuple(
            ProductState(
                table.name,
                table is self.active,
                table.model,
                table.version,
                table.policy,
                self.fault(table) or None,
            )
            for table in self._tables.values()
        )
