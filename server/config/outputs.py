"""The tables `[[output]]`: where verdicts go, which of them, and in what form."""

import re
from typing import Annotated, Literal

from server.config.tables import FILE, SECRET, Table, check_url, key_help
from server.errors import SettingsError
from server.values.template import TextTemplate

# The fields of a message, in the order in which a message without a template has them.
FIELDS = (
    *("stream", "seq", "redelivered", "at", "request_id", "trace_id"),
    *("camera", "part", "batch", "product", "model", "version"),
    *("label", "class_id", "probability", "verdict", "reason", "error", "cached"),
)
# Fields that may be in a topic: the others differ from message to message.
TOPIC_FIELDS = ("camera", "model", "label", "verdict")
# How a frame ended: the four verdicts of an answer, `none` without a policy, and `error` if the
# frame was refused or failed.
Outcome = Literal["pass", "fail", "unsure", "none", "error"]
TOPIC = re.compile(r"[^+#\x00]+")

Port = Annotated[int, key_help("port of the other side", ge=1, le=65535)]
MaxAge = Annotated[
    float, key_help("age beyond which a waiting message is dropped; 0: no limit", "s", ge=0)
]
Listen = Annotated[str, key_help("address to listen on", min_length=1)]
Acknowledge = Annotated[
    bool,
    key_help(
        "each result stays until the PLC has taken it, so that none is missed; false: the newest"
        " takes its place"
    ),
]
Host = Annotated[str, key_help("name or address of the other side", min_length=1)]


BrokerUser = Annotated[str, key_help("user at the broker; empty: none")]
Password = Annotated[str, key_help("its password", "", SECRET)]
Tls = Annotated[bool, key_help("TLS; the broker's certificate is checked")]
CaFile = Annotated[
    str, key_help("certificates in PEM that sign the broker's; empty: the system's", "", FILE)
]
CertificateFile = Annotated[
    str, key_help("this server's certificate in PEM, if the broker asks for one", "", FILE)
]
KeyFile = Annotated[str, key_help("the key of that certificate, in PEM", "", FILE)]
DeviceId = Annotated[int, key_help("unit identifier of the PLC", ge=0, le=255)]
Chip = Annotated[str, key_help("device of the GPIO chip", min_length=1)]


def check_login(username: str, password: str) -> None:
    """Raise SettingsError for a password of nobody."""
    if password and not username:
        raise SettingsError("password needs a username")


def check_tls(tls: bool, ca_file: str, cert_file: str, key_file: str) -> None:
    """Raise SettingsError for files that are not used, or that lack another one."""
    files = {"tls_ca_file": ca_file, "tls_cert_file": cert_file, "tls_key_file": key_file}
    for key, path in files.items():
        if path and not tls:
            raise SettingsError(f"{key} needs tls = true")
    if bool(cert_file) != bool(key_file):
        raise SettingsError("tls_cert_file and tls_key_file need each other")


class OutputTable(Table, frozen=True, kw_only=True):
    """The keys that all outputs have."""

    cameras: Annotated[tuple[str, ...], key_help("cameras whose frames are sent; empty: all")] = ()
    products: Annotated[
        tuple[str, ...], key_help("products whose frames are sent; empty: all")
    ] = ()
    models: Annotated[tuple[str, ...], key_help("models whose frames are sent; empty: all")] = ()
    verdicts: Annotated[
        tuple[Outcome, ...],
        key_help(
            "verdicts that are sent: pass, fail, unsure, none (the model has no policy), error"
            " (the frame was refused or failed); empty: all"
        ),
    ] = ()
    labels: Annotated[
        tuple[str, ...],
        key_help("best labels of frames that are sent; empty: all, also frames without a label"),
    ] = ()
    max_waiting: Annotated[
        int,
        key_help(
            "messages that wait while the other side is away; beyond, the oldest are dropped",
            "messages",
            ge=1,
            le=1_000_000,
        ),
    ] = 100_000
    max_age_s: MaxAge = 86_400.0
    heartbeat_s: Annotated[
        float,
        key_help(
            "time between two signs that the server can judge; they stop if it can't",
            "s",
            ge=0.1,
            le=60,
        ),
    ] = 1.0


class MessageOutput(OutputTable, frozen=True, kw_only=True):
    """The keys of outputs whose messages are text."""

    payload: Annotated[
        str,
        key_help(
            "template of a message, with the places $" + ", $".join(FIELDS) + "; a text that"
            " begins with { or [ is JSON, with places without quotes; empty: a JSON object of all"
        ),
    ] = ""

    def __post_init__(self) -> None:
        check_template(self.payload, FIELDS, "payload")


def check_template(text: str, known: tuple[str, ...], key: str) -> TextTemplate:
    """Return the template of a key. Raises SettingsError if it can't be used."""
    try:
        return TextTemplate(text, known, key)
    except ValueError as error:
        raise SettingsError(str(error)) from None


class MqttOutput(MessageOutput, frozen=True, kw_only=True, tag="mqtt"):
    """Publishes to an MQTT broker, with QoS 1."""

    host: Host
    port: Port = 1883
    topic: Annotated[
        str,
        key_help("topic of a verdict, with the places $" + ", $".join(TOPIC_FIELDS), min_length=1),
    ] = "lineside/$camera/verdict"
    status_topic: Annotated[
        str,
        key_help(
            "topic that says online or offline, retained; offline also if the server can't judge,"
            " and by the broker (last will) if it is gone",
            min_length=1,
        ),
    ] = "lineside/status"
    retain: Annotated[
        bool, key_help("the broker keeps the last verdict of each topic for new subscribers")
    ] = True
    username: BrokerUser = ""
    password: Password = ""
    tls: Tls = False
    tls_ca_file: CaFile = ""
    tls_cert_file: CertificateFile = ""
    tls_key_file: KeyFile = ""
    discovery_prefix: Annotated[
        str, key_help("topic prefix of Home Assistant's discovery, as homeassistant; empty: off")
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        topic = check_template(self.topic, TOPIC_FIELDS, "topic")
        if topic.is_json or not TOPIC.fullmatch(self.topic):
            raise SettingsError(f"topic can't be {self.topic!r}: a topic has no +, # or braces")
        if not TOPIC.fullmatch(self.status_topic):
            raise SettingsError(
                f"status_topic can't be {self.status_topic!r}: a topic has no + or #"
            )
        if self.discovery_prefix and not TOPIC.fullmatch(self.discovery_prefix):
            raise SettingsError(
                f"discovery_prefix can't be {self.discovery_prefix!r}: a topic has no + or #"
            )
        check_login(self.username, self.password)
        check_tls(self.tls, self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        payload = check_template(self.payload, FIELDS, "payload")
        if (
            self.discovery_prefix
            and self.payload
            and not (payload.is_json and re.search(r'"verdict"\s*:\s*\$\{?verdict\b', self.payload))
        ):
            raise SettingsError('discovery_prefix needs a payload of JSON with "verdict": $verdict')


class ModbusServerOutput(OutputTable, frozen=True, kw_only=True, tag="modbus-server"):
    """A Modbus TCP server that a PLC polls."""

    host: Listen = "127.0.0.1"
    port: Annotated[int, key_help("port to listen on", ge=1, le=65535)] = 502
    acknowledge: Acknowledge = True
    trigger_camera: Annotated[
        str,
        key_help(
            "camera of a table [[camera]] of which a frame is judged each time the PLC sets"
            " coil 0; empty: there is no coil"
        ),
    ] = ""

    def __post_init__(self) -> None:
        camera = self.trigger_camera
        filtered = self.models or self.verdicts or self.labels
        if camera and (filtered or (self.cameras and camera not in self.cameras)):
            raise SettingsError(
                "trigger_camera needs every result of this camera: name it in cameras, or leave"
                " that empty, and set no models, verdicts or labels"
            )


class ModbusClientOutput(OutputTable, frozen=True, kw_only=True, tag="modbus-client"):
    """Writes into a PLC over Modbus TCP."""

    host: Host
    port: Port = 502
    device_id: DeviceId = 1
    first_coil: Annotated[int, key_help("first of 8 coils that are written", ge=0, le=65_528)] = 0
    first_register: Annotated[
        int, key_help("first of 56 holding registers that are written", ge=0, le=65_480)
    ] = 0
    acknowledge: Acknowledge = True


class WebhookOutput(MessageOutput, frozen=True, kw_only=True, tag="webhook"):
    """Posts to a URL, signed as the webhooks of jobs are."""

    url: Annotated[
        str,
        key_help(
            "URL that takes each verdict as a POST of JSON, and answers 2xx",
            "",
            SECRET,
            pattern=r"^https?://[!-.0-9:;=A-~]+(/[!-~]*)?(?!\n)$",
            extra_json_schema={"description": "http://HOST[:PORT]/... or https://HOST[:PORT]/..."},
        ),
    ]
    secret: Annotated[
        str,
        key_help("what signs, by HMAC-SHA256, as webhook_secret; empty: not signed", "", SECRET),
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.payload and not check_template(self.payload, FIELDS, "payload").is_json:
            raise SettingsError("payload of a webhook is JSON: it begins with { or [")
        check_url(self.url)


class OpcUaOutput(OutputTable, frozen=True, kw_only=True, tag="opcua"):
    """An OPC UA server that clients read."""

    host: Listen = "127.0.0.1"
    port: Annotated[int, key_help("port to listen on", ge=1, le=65535)] = 4840
    acknowledge: Acknowledge = True


Line = Annotated[int, key_help("line of the chip that pulses for this verdict; -1: none", ge=-1)]


class GpioOutput(OutputTable, frozen=True, kw_only=True, tag="gpio"):
    """Pulses on GPIO lines."""

    chip: Chip = "/dev/gpiochip0"
    pass_line: Line = -1
    fail_line: Line = -1
    unsure_line: Line = -1
    error_line: Line = -1
    heartbeat_line: Annotated[
        int, key_help("line that changes while the server can judge; -1: none", ge=-1)
    ] = -1
    active_low: Annotated[bool, key_help("an active line is low")] = False
    pulse_ms: Annotated[float, key_help("length of a pulse", "ms", ge=1, le=1000)] = 50.0
    # A late pulse would reject another part.
    max_age_s: MaxAge = 1.0

    def __post_init__(self) -> None:
        lines = (self.pass_line, self.fail_line, self.unsure_line, self.error_line)
        used = [line for line in (*lines, self.heartbeat_line) if line >= 0]
        if not used or len(set(used)) < len(used):
            raise SettingsError("pass_line and the other lines: set one or more, all different")


Outputs = tuple[
    MqttOutput | ModbusServerOutput | ModbusClientOutput | OpcUaOutput | WebhookOutput | GpioOutput,
    ...,
]
