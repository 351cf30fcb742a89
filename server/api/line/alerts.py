"""GET /v1/alerts: the alerts that would fire, and the health of every part."""

import msgspec

from server.http.routes import ADMIN, route
from server.observe.alert_rules import UNSEEN
from server.observe.alerts import Alert, Alerts, Part


class AlertList(msgspec.Struct, frozen=True):
    """The alerts that hold now, those that fire first. parts: the health of every part. unseen: the
    alerts that only Prometheus can see. reach_s: seconds of the past that rates are judged by; what
    they are over is up to 15 minutes, and known from the first question on."""

    alerts: tuple[Alert, ...]
    parts: tuple[Part, ...]
    unseen: tuple[str, ...]
    reach_s: float


class AlertRoutes:
    """Answers what `alerts` finds."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts

    @route("GET", "/v1/alerts", rights=ADMIN, quiet=True)
    def read(self) -> AlertList:
        """Return the alerts of deploy/prometheus that would fire by this server's own metrics, and
        the health of every part."""
        alerts, parts, reach = self._alerts.find()
        return AlertList(tuple(alerts), tuple(parts), UNSEEN, round(reach, 1))
