"""The dashboards are made by their program, and are what Grafana's schema says."""

import subprocess
import sys
from pathlib import Path

import msgspec
from fake_devices import GRAFANA, boards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Panel, RowPanel
from prometheus_server import PROMETHEUS
from sdk_types import faults
from server_process import environ_without_coverage


def test_the_dashboards_are_those_that_the_program_makes(tmp_path: Path) -> None:
    command = [sys.executable, str(GRAFANA / "make.py"), str(tmp_path)]
    subprocess.run(command, env=environ_without_coverage(), check=True, timeout=60)
    made = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text("utf-8") for file in (GRAFANA / "dashboards").iterdir()}
    assert set(made) == {"line.json", "device.json"}
    assert made == kept, "run deploy/grafana/make.py"


def test_the_dashboards_fit_the_schema() -> None:
    """What Grafana's schema does not know is lost on the way through the SDK's types."""
    for name, board in boards().items():
        kept = msgspec.json.decode((GRAFANA / "dashboards" / name).read_bytes())
        assert msgspec.json.decode(JSONEncoder().encode(board)) == kept
        assert list(faults(board)) == []


def test_a_dashboard_that_does_not_fit_the_schema_is_found() -> None:
    board = boards()["line.json"]
    board.refresh = 30  # type: ignore[assignment]
    assert board.panels is not None
    panel = board.panels[1]
    assert isinstance(panel, Panel)
    assert panel.grid_pos is not None
    panel.grid_pos.h = "high"  # type: ignore[assignment]
    assert [fault.split(" is ")[0] for fault in faults(board)] == [
        ".refresh",
        ".panels[1].grid_pos.h",
    ]


def test_panels_are_explained_and_ask_the_chosen_source() -> None:
    """Every panel is explained and asks the chosen source."""
    for board in boards().values():
        panels = [panel for panel in board.panels or [] if not isinstance(panel, RowPanel)]
        assert len({panel.id_val for panel in board.panels or []}) == len(board.panels or [])
        for panel in panels:
            assert panel.description, panel.title
            assert panel.datasource is not None
            assert panel.datasource.uid == "$datasource"
            assert panel.grid_pos is not None


def test_the_provisioning_names_what_is_there() -> None:
    folder = GRAFANA / "provisioning"
    sources = msgspec.yaml.decode((folder / "datasources" / "prometheus.yml").read_bytes())
    (source,) = sources["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    config = msgspec.yaml.decode((PROMETHEUS / "prometheus.yml").read_bytes())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    providers = msgspec.yaml.decode((folder / "dashboards" / "lineside.yml").read_bytes())
    assert [provider["type"] for provider in providers["providers"]] == ["file"]
