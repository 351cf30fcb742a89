"""Every setting once: name, type, default, unit, help, and what is derived from it."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import force_setattr

from server.config.cameras import Cameras
from server.config.image_health import CameraLimits
from server.config.outputs import Outputs
from server.config.products import Products, Votes, check_cameras, check_votes
from server.config.triggers import Triggers
from server.errors import SettingsError
from server.recognition.engines.engine import EngineOptions
from server.recognition.images.header import (
    DEFAULT_FORMATS,
    FORMATS,
    MAX_SIGNIFICANT_BITS,
    MIN_SIGNIFICANT_BITS,
    Limits,
)
from server.recognition.manifest import EngineChoice, Recipe
from server.system.resources import available_cores

# MB a minute; SQLite writes whole pages, for which less would not be enough.
MIN_WRITE_MB_PER_MINUTE = 0.1


def _help(text: str, unit: str = "", **bounds: Any) -> Meta:
    return Meta(description=text, extra={"unit": unit}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server's settings; `describe_settings` lists them with their help."""

    host: Annotated[str, _help("address to listen on", min_length=1)] = "127.0.0.1"
    port: Annotated[int, _help("port to listen on", ge=1, le=65535)] = 8080
    grpc_port: Annotated[
        int,
        _help(
            "port of the Open Inference Protocol over gRPC, at the same address; needs the extra"
            " `grpc`; 0: off",
            ge=0,
            le=65535,
        ),
    ] = 0
    tls_certificate: Annotated[
        str,
        _help(
            "certificate of the server, PEM, its chain after it: HTTPS in place of HTTP; read anew"
            " when the file changes"
        ),
    ] = ""
    tls_key: Annotated[str, _help("private key of tls_certificate, PEM, without a password")] = ""
    tls_client_ca: Annotated[
        str,
        _help(
            "certificates, PEM, of which one has to sign each client's; empty: clients need none"
        ),
    ] = ""
    models: Annotated[str, _help("folder of bundles, NAME/VERSION/ in it", min_length=1)] = "models"
    model: Annotated[
        str,
        _help(
            "bundle that answers when a request names none; if the folder holds only one, that one"
        ),
    ] = "parts"
    version: Annotated[
        int, _help("only version of `model` that may serve; 0: the newest that verifies", ge=0)
    ] = 0
    preload: Annotated[
        tuple[str, ...], _help("models loaded at the start beside `model`; others on first use")
    ] = ()
    models_memory_mb: Annotated[
        float, _help("all models together; the least recently used go; 0: no limit", "MB", ge=0)
    ] = 0.0
    watch_models_s: Annotated[
        float,
        _help("time between looks for newer versions; 0: only on request", "s", ge=0, le=86_400),
    ] = 0.0
    golden_check_s: Annotated[
        float,
        _help(
            "time between checks of golden frames by each model that serves; 0: off",
            "s",
            ge=0,
            le=604_800,
        ),
    ] = 3600.0
    data: Annotated[
        str, _help("folder of what outlives a request: jobs, journal, samples", min_length=1)
    ] = "data"
    journal: Annotated[
        bool, _help("one row an answer in journal.db of the folder `data`, for /v1/journal")
    ] = True
    journal_days: Annotated[
        float, _help("age beyond which rows go; 0: no limit", "days", ge=0, le=36_500)
    ] = 30.0
    journal_mb: Annotated[
        float, _help("size of the journal beyond which its oldest rows go", "MB", ge=1)
    ] = 256.0
    journal_write_mb_per_minute: Annotated[
        float, _help("most that the journal writes, for SD cards; 0: no limit", "MB/minute", ge=0)
    ] = 0.0
    cache: Annotated[
        bool,
        _help("identical frames are answered from the cache; /api/recognize_cached always does"),
    ] = False
    cache_s: Annotated[
        int,
        _help(
            "time for which an answer is kept in the cache; by /api/recognize_cached always 60 s",
            "s",
            ge=1,
            le=2_592_000,
        ),
    ] = 60
    cache_mb: Annotated[
        float, _help("memory of the cache; the least recently used go", "MB", gt=0)
    ] = 16.0
    cache_url: Annotated[
        str,
        _help(
            "Redis that keeps the cache, such as redis://host:6379/0; empty: this process's memory",
            pattern="^((rediss?|unix)://.+)?$",
        ),
    ] = ""
    broker_url: Annotated[
        str,
        _help(
            "Redis through which workers on other machines run jobs, redis://HOST:PORT/0; empty:"
            " this machine's own, in `data`"
        ),
    ] = ""
    job_workers: Annotated[
        int,
        _help(
            "workers that the server starts with the first job; 0: only those of scripts/worker",
            "processes",
            ge=0,
            le=64,
        ),
    ] = 1
    job_max_pending: Annotated[
        int, _help("jobs that may wait or run; beyond, 503 JOBS_FULL", "jobs", ge=1, le=1_000_000)
    ] = 1000
    job_max_mb: Annotated[
        float, _help("frames of all jobs that wait or run; beyond, 503 JOBS_FULL", "MB", gt=0)
    ] = 256.0
    job_result_ttl: Annotated[
        float, _help("time for which a finished job's results are kept", "s", ge=1)
    ] = 3600.0
    webhook_hosts: Annotated[
        tuple[str, ...],
        _help("hosts that a job's webhook may name, as in image_url_hosts; none: webhooks are off"),
    ] = ()
    webhook_secret: Annotated[
        str, _help("what signs webhooks, by HMAC-SHA256; empty: they are not signed")
    ] = ""
    webhook_attempts: Annotated[
        int, _help("most deliveries tried of a webhook, 1, 2, 4 ... s apart", ge=1, le=20)
    ] = 8
    recipe: Annotated[
        Recipe | None,
        _help(
            "how a bare model.tflite or model.onnx without bundle.json is fed, as a table of"
            " bundle.json"
        ),
    ] = None
    bundle_keys: Annotated[
        tuple[str, ...],
        _help(
            "files of public keys (Ed25519, PEM): only versions that one of them signed by"
            " `python -m convert sign` serve; none: any does"
        ),
    ] = ()
    interpreters: Annotated[
        int, _help("interpreters a model; 0: one a core", "interpreters", ge=0, le=256)
    ] = 0
    threads_per_interpreter: Annotated[
        int, _help("threads of each interpreter", "threads", ge=1, le=64)
    ] = 1
    wide_interpreter: Annotated[
        bool, _help("one interpreter more, over all cores, for a frame that comes alone")
    ] = True
    engine: Annotated[
        EngineChoice,
        _help(
            "what runs the models whose files it can run; auto: as bundle.json says, or `bench`"
            " found, or the usual engine of the file"
        ),
    ] = "auto"
    delegate: Annotated[
        str,
        _help(
            "library of a LiteRT delegate, such as libedgetpu.so.1, that runs a model.tflite; if it"
            " fails, the CPU does"
        ),
    ] = ""
    delegate_options: Annotated[
        tuple[str, ...], _help("options of the delegate, NAME=VALUE each")
    ] = ()
    onnx_providers: Annotated[
        tuple[str, ...],
        _help(
            "execution providers for a model.onnx, first choice first, such as CUDA, OpenVINO; the"
            " rest runs on the CPU"
        ),
    ] = ()
    openvino_device: Annotated[
        Literal["CPU", "GPU", "NPU", "AUTO"],
        _help("what OpenVINO computes on; AUTO: the best that there is"),
    ] = "CPU"
    frames_at_once: Annotated[
        int, _help("frames worked on at once; 0: as many as interpreters", "frames", ge=0, le=512)
    ] = 0
    max_waiting: Annotated[
        int, _help("frames that may wait while all interpreters are busy", "frames", ge=0, le=1024)
    ] = 32
    max_wait_ms: Annotated[
        float, _help("deadline of a frame that comes without deadline_ms", "ms", gt=0, le=600_000)
    ] = 5000.0
    max_clock_skew_ms: Annotated[
        float,
        _help(
            "most that a camera's clock may be ahead in captured_at, if deadline_ms is asked",
            "ms",
            ge=0,
        ),
    ] = 2000.0
    latest_only: Annotated[
        bool, _help("a camera's newer frame takes the place of its waiting one")
    ] = False
    max_body_mb: Annotated[float, _help("largest request body", "MB", gt=0, le=1024)] = 16.0
    bodies_mb: Annotated[
        float,
        _help(
            "all requests' bodies in memory together, of which one of max_body_mb may always come;"
            " beyond, 503 OVERLOADED",
            "MB",
            gt=0,
        ),
    ] = 256.0
    body_timeout: Annotated[
        float, _help("time in which a request's body has to come", "s", gt=0, le=600)
    ] = 10.0
    max_bundle_mb: Annotated[
        float, _help("largest version that may be uploaded", "MB", gt=0, le=4096)
    ] = 128.0
    max_pixels: Annotated[
        int, _help("most pixels, width times height, of an image", "pixels", ge=1)
    ] = 50_000_000
    max_form_parts: Annotated[
        int, _help("most fields and files of a form", "parts", ge=1, le=10_000)
    ] = 100
    max_side: Annotated[int, _help("longest side of an image", "pixels", ge=1, le=65_535)] = 16_384
    image_formats: Annotated[
        tuple[str, ...],
        _help("image formats that are taken: JPEG, PNG, BMP, WEBP, TIFF, PPM; others are 415"),
    ] = DEFAULT_FORMATS
    significant_bits: Annotated[
        int,
        _help(
            "bits that cameras fill of samples stored in 16, the lowest: 12 for Mono12; 0: all 16",
            "bits",
            ge=0,
            le=MAX_SIGNIFICANT_BITS,
        ),
    ] = 0
    max_batch: Annotated[
        int, _help("most images in one request to a route that takes several", "files", ge=1)
    ] = 32
    image_url_hosts: Annotated[
        tuple[str, ...],
        _help(
            "hosts that image_url may name: NAME, ADDRESS or NETWORK/BITS, each with :PORT if it"
            " is not 80 or 443; a private address counts only if it is listed itself; none:"
            " image_url is off"
        ),
    ] = ()
    image_url_timeout: Annotated[
        float, _help("longest time that fetching one image_url may take", "s", gt=0, le=60)
    ] = 5.0
    default_top_k: Annotated[
        int, _help("labels in an answer when a request asks for no number", "labels", ge=1, le=1000)
    ] = 5
    auth: Annotated[
        Literal["auto", "required", "off"],
        _help(
            "keys or tokens: `auto` asks for them if other machines can reach the server, or if"
            " there are any"
        ),
    ] = "auto"
    keys_file: Annotated[
        str, _help("API keys, made by `python -m server key add`", min_length=1)
    ] = "keys.jsonl"
    jwt_algorithm: Annotated[
        Literal["", "HS256", "RS256"], _help("of bearer tokens that are taken; empty: none are")
    ] = ""
    jwt_key_file: Annotated[
        str, _help("the secret (HS256, 32 bytes or more) or the public key in PEM (RS256)")
    ] = ""
    jwt_issuer: Annotated[str, _help("`iss` that a token must have")] = ""
    jwt_audience: Annotated[str, _help("`aud` that a token must have")] = ""
    rate_per_key: Annotated[
        str, _help("most requests of a key or token, such as 100/second; empty: no limit")
    ] = ""
    rate_per_address: Annotated[
        str, _help("most requests of an address, such as 200/second; empty: no limit")
    ] = ""
    cors_origins: Annotated[
        tuple[str, ...], _help("origins whose pages may call this server; empty: none but its own")
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        _help(
            "names by which clients without a key may ask for this server beside its own, such as"
            " lineside.example, *.example or *; IP addresses need no entry"
        ),
    ] = ()
    url_prefix: Annotated[
        str,
        _help(
            "path under which a proxy serves this server, such as /line4, for addresses in answers;"
            " empty: the proxy's X-Forwarded-Prefix, if any",
            pattern="^(/[A-Za-z0-9._~-]+)*$",
            max_length=128,
        ),
    ] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        _help(
            "ADDRESS or NETWORK/BITS of proxies whose X-Forwarded-For, -Proto and -Prefix count;"
            " if any are listed, those headers of all others are ignored"
        ),
    ] = ()
    max_cameras: Annotated[
        int, _help("cameras with metrics of their own; the others share `other`", "cameras", ge=0)
    ] = 64
    fail_run: Annotated[
        int,
        _help("frames of a camera in a row with `fail` that count as a run, for an alert", ge=1),
    ] = 5
    image_health: Annotated[
        Literal["off", "on"],
        _help(
            "judge each camera's pictures by its first ones: too dark, blurred, frozen, shifted...;"
            " a frame with a problem is never `pass`"
        ),
    ] = "off"
    image_health_frames: Annotated[
        int,
        _help("frames of a camera that its usual values are learned from", "frames", ge=10, le=200),
    ] = 50
    image_health_limits: Annotated[
        tuple[CameraLimits, ...],
        _help("limits that are set and not learned, in tables [[image_health_limits]]"),
    ] = ()
    samples: Annotated[
        Literal["auto", "on", "off"],
        _help(
            "keep frames for a person to look at; `auto`: only if keys are asked for at the start"
        ),
    ] = "auto"
    samples_mb: Annotated[
        float, _help("most disk that kept frames take; the oldest go; 0: none are kept", "MB", ge=0)
    ] = 500.0
    samples_per_minute: Annotated[
        int, _help("most frames kept in any minute", "frames", ge=1, le=100_000)
    ] = 10
    samples_below: Annotated[
        float, _help("frames whose best probability is below it are kept", ge=0, le=1)
    ] = 0.5
    samples_margin: Annotated[
        float,
        _help("frames as near as this to the verdict's least probability are kept", ge=0, le=1),
    ] = 0.1
    samples_share: Annotated[
        float, _help("share of all other frames that is kept, at random", ge=0, le=1)
    ] = 0.001
    samples_labels: Annotated[
        tuple[str, ...], _help("frames whose best label is one of these are kept")
    ] = ()
    product: Annotated[Products, _help("products that the line makes, in tables [[product]]")] = ()
    vote: Annotated[
        Votes, _help("one verdict for several frames of a part, in tables [[vote]]")
    ] = ()
    camera: Annotated[Cameras, _help("cameras that the server reads, in tables [[camera]]")] = ()
    output: Annotated[
        Outputs, _help("where verdicts go beside the answer, in tables [[output]]")
    ] = ()
    trigger: Annotated[
        Triggers,
        _help("what asks for frames of those cameras, in tables [[trigger]]"),
    ] = ()
    drift_window_s: Annotated[
        float, _help("the last frames that are compared with the bundle's baseline", "s", ge=1)
    ] = 3600.0
    drift_min_frames: Annotated[
        int, _help("least frames of that time for which drift is reported", "frames", ge=1)
    ] = 300
    stop_timeout: Annotated[
        int, _help("time that frames in hand have to finish after SIGTERM", "s", ge=3, le=600)
    ] = 30
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _help("least severe line that is logged")
    ] = "info"
    log_format: Annotated[Literal["json", "text"], _help("shape of a log line")] = "json"
    log_repeats: Annotated[
        int,
        _help(
            "lines a minute of requests that fail alike, by route and code; 0: all", "lines", ge=0
        ),
    ] = 30

    def __post_init__(self) -> None:
        """Raises SettingsError for what no type can check. Formats are taken in any case."""
        if self.grpc_port == self.port:
            raise SettingsError(
                f"grpc_port can't be {self.port}, which is `port`: name another one"
            )
        check_cameras(self.camera, self.product)
        check_votes(self.vote, self.product)
        formats = tuple(dict.fromkeys(name.upper() for name in self.image_formats))
        unknown = [name for name in self.image_formats if name.upper() not in FORMATS]
        if unknown or not formats:
            raise SettingsError(
                f"image_formats can't be {', '.join(unknown) or 'empty'}: name one or more of"
                f" {', '.join(FORMATS)}"
            )
        force_setattr(self, "image_formats", formats)
        if 0 < self.significant_bits < MIN_SIGNIFICANT_BITS:
            raise SettingsError(
                f"significant_bits can't be {self.significant_bits}: say"
                f" {MIN_SIGNIFICANT_BITS} to {MAX_SIGNIFICANT_BITS}, or 0 for all"
            )
        if 0 < self.journal_write_mb_per_minute < MIN_WRITE_MB_PER_MINUTE:
            raise SettingsError(
                f"journal_write_mb_per_minute can't be {self.journal_write_mb_per_minute:g}: say"
                f" {MIN_WRITE_MB_PER_MINUTE:g} or more, or 0 for no limit"
            )

    @property
    def image_limits(self) -> Limits:
        """The limits of the images that are taken."""
        return Limits(self.max_pixels, self.max_side, self.image_formats, self.significant_bits)

    @property
    def engine_options(self) -> EngineOptions:
        """Return the settings of the engines that run models."""
        return EngineOptions(
            self.engine,
            self.onnx_providers,
            self.openvino_device,
            self.delegate,
            self.delegate_options,
        )

    @property
    def measures_images(self) -> bool:
        """Return True if answers have the figures by which the health of a picture is judged."""
        return self.image_health == "on"

    @property
    def pool_size(self) -> int:
        """Interpreters a model: as set, or one a granted core. A further one brought no more
        frames a second, and takes 12 MB with a model of 4 MB."""
        return self.interpreters or available_cores()

    @property
    def slots(self) -> int:
        """Frames worked on at once: as set, or one an interpreter."""
        return self.frames_at_once or self.pool_size
