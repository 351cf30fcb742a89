"""Data that outlives a request."""
