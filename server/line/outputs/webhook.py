"""Verdicts to a URL of the operator's, one POST each, signed as the webhooks of jobs are."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from server.config.outputs import FIELDS, WebhookOutput, check_template
from server.line.outputs.base import OutputError
from server.line.outputs.messages import Message, payload_of
from server.system.webhook import WebhookClient
from server.values.trace import trace_headers

# The operator has named the URL, so it may lead to any address.
ANYWHERE = ("0.0.0.0/0", "::/0")


class Webhook:
    """The receiver of `table`. A message counts as delivered with an answer of 2xx."""

    window = 1

    def __init__(self, table: WebhookOutput) -> None:
        self._url = table.url
        self._payload = check_template(table.payload, FIELDS, "payload") if table.payload else None
        place = urlsplit(table.url).netloc
        self._client = WebhookClient((place, *ANYWHERE), table.secret, "url", "output")
        self._where = f"the receiver {place}"
        self.connected = True

    def open(self) -> None:
        """Do nothing: each message has its own connection."""

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        (message,) = messages
        headers = trace_headers(message.event.trace)
        reason = self._client.send(self._url, payload_of(message, self._payload), headers)
        self.connected = not reason
        if reason:
            raise OutputError(f"{self._where} did not take a message: {reason}")
        return message.seq

    def beat(self, ready: bool) -> None:
        """Do nothing: a receiver that is called only for verdicts gets no sign of life."""

    def close(self) -> None:
        """Do nothing."""
