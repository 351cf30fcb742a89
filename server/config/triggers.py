"""The tables `[[trigger]]`: what asks for frames of cameras, beside the time and a request."""

from typing import Annotated, Literal

from server.config.outputs import (
    TOPIC,
    BrokerUser,
    CaFile,
    CertificateFile,
    Chip,
    DeviceId,
    Host,
    KeyFile,
    Password,
    Port,
    Tls,
    check_login,
    check_tls,
)
from server.config.tables import Table, key_help
from server.errors import SettingsError


class TriggerTable(Table, frozen=True, kw_only=True):
    """The keys that all triggers have."""

    camera: Annotated[
        str, key_help("camera of a table [[camera]], of which one frame is judged", min_length=1)
    ]


class MqttTrigger(TriggerTable, frozen=True, kw_only=True, tag="mqtt"):
    """A message of an MQTT broker."""

    host: Host
    port: Port = 1883
    topic: Annotated[
        str,
        key_help(
            "topic; each message triggers, unless it is retained or its id came before; it is"
            " empty, or a JSON object with part, product, batch and id",
            min_length=1,
        ),
    ]
    username: BrokerUser = ""
    password: Password = ""
    tls: Tls = False
    tls_ca_file: CaFile = ""
    tls_cert_file: CertificateFile = ""
    tls_key_file: KeyFile = ""

    def __post_init__(self) -> None:
        if not TOPIC.fullmatch(self.topic):
            raise SettingsError(f"topic can't be {self.topic!r}: a topic has no + or #")
        check_login(self.username, self.password)
        check_tls(self.tls, self.tls_ca_file, self.tls_cert_file, self.tls_key_file)


class ModbusTrigger(TriggerTable, frozen=True, kw_only=True, tag="modbus-client"):
    """A bit of a PLC, which is polled over Modbus TCP."""

    host: Host
    port: Port = 502
    device_id: DeviceId = 1
    bit: Annotated[
        Literal["coil", "discrete-input"], key_help("what triggers when it changes from 0 to 1")
    ] = "coil"
    address: Annotated[int, key_help("address of that bit", ge=0, le=65_535)]
    part_register: Annotated[
        int,
        key_help(
            "first of 16 holding registers with the part, 32 bytes of UTF-8 that zeros end;"
            " -1: none",
            ge=-1,
            le=65_520,
        ),
    ] = -1
    poll_s: Annotated[
        float,
        key_help(
            "time between two looks; a pulse that is shorter than that and the PLC's answer may be"
            " missed",
            "s",
            ge=0.001,
            le=10,
        ),
    ] = 0.02


class GpioTrigger(TriggerTable, frozen=True, kw_only=True, tag="gpio"):
    """An edge on a GPIO line."""

    chip: Chip = "/dev/gpiochip0"
    line: Annotated[int, key_help("line of the chip", ge=0)]
    edge: Annotated[Literal["rising", "falling"], key_help("edge that triggers")] = "rising"
    bias: Annotated[
        Literal["as-is", "pull-up", "pull-down", "disabled"], key_help("resistor at the line")
    ] = "as-is"
    debounce_ms: Annotated[
        float,
        key_help("time for which the line has to stay as it is; 0: none", "ms", ge=0, le=1000),
    ] = 5.0


Triggers = tuple[MqttTrigger | ModbusTrigger | GpioTrigger, ...]
