"""Turns trained models into bundles that the server serves; runs on a workstation."""
