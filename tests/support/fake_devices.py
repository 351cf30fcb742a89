"""The committed Grafana dashboards."""

import msgspec
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.models.dashboard import Dashboard, RowPanel
from grafana_foundation_sdk.models.prometheus import Dataquery
from server_process import ROOT

GRAFANA = ROOT / "deploy" / "grafana"
# By dashboard: title and expression of each query of its panels.
Queries = dict[str, list[tuple[str, str]]]


def boards() -> dict[str, Dashboard]:
    """The committed dashboards as the SDK's types, by file name."""
    plugins.register_default_plugins()
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {
        file.name: Dashboard.from_json(msgspec.json.decode(file.read_bytes())) for file in files
    }


def panel_queries() -> Queries:
    """Every query of every panel."""
    found: Queries = {}
    for name, board in boards().items():
        found[name] = [
            (panel.title or "", query.expr)
            for panel in board.panels or []
            if not isinstance(panel, RowPanel)
            for query in panel.targets or []
            if isinstance(query, Dataquery)
        ]
    return found
