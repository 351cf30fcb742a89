"""What tests of the store share."""

from job_workers import departed

__all__ = ["departed"]
