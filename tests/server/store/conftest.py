"""What tests of the store share."""

from workers import departed

__all__ = ["departed"]
