"""/v1/products: what the line makes, and the change to another product by one call."""

import msgspec

from server.api.audit import Auditor
from server.api.models import NoOptions, change_route, read_change
from server.http.routes import KNOWN, route
from server.line.products import Products, ProductState


class ProductList(msgspec.Struct, frozen=True):
    """The products of the settings, in their order. active: the one of frames that name neither
    product nor model, null if there is none."""

    active: str | None
    products: tuple[ProductState, ...]


class ProductRoutes:
    """Answers `products`, and activates one by `auditor`."""

    def __init__(self, products: Products, auditor: Auditor) -> None:
        self._products = products
        self._auditor = auditor

    def _active(self) -> str | None:
        active = self._products.active
        return active.name if active else None

    @route("GET", "/v1/products", rights=KNOWN)
    def read(self) -> ProductList:
        """Return each product: its model, version and policy, and whether its frames are judged."""
        return ProductList(self._active(), self._products.states())

    @change_route("/v1/products/<name>/activate", body=NoOptions)
    def activate(self, name: str) -> ProductList:
        """Judge frames by this product from the next one on, also after a restart."""
        read_change(NoOptions)
        table = self._products.find(name)
        self._auditor.make(
            "product",
            table.model,
            lambda: self._products.activate(name),
            table.version or None,
            product=self._active,
        )
        return self.read()
