"""Stands for Flower's flwr-serverapp at a server: a stranger's own program is refused.

Flower lets whoever reaches its port start a run, and would start the program that comes with it.
"""

from importlib import import_module

from convert.federation.site.process import install_ours_only


def main() -> None:
    """Run flwr-serverapp with the check before its installation of what a run brought."""
    from flwr.superlink.cli import flwr_serverapp

    # Its package has a function of that name.
    install_ours_only(import_module("flwr.superlink.runtime.run_serverapp"), "server")
    flwr_serverapp()
