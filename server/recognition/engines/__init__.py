"""Engines: runtimes that execute models, one a kind of model file."""
