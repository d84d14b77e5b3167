"""The server's configuration: one typed value per part, read once from `bowerbird.toml`.

In: a TOML file, or nothing. Out: `ServerConfig`. Unknown keys are refused and all faults are told together with their key path.
Without a file every default works: loopback, a broker of our own, data in `./bowerbird-data`.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from bowerbird_server.errors import ConfigError

CONFIG_NAME = "bowerbird.toml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WebConfig(_Part):
    """Where the pages and the API listen."""

    host: str = Field("127.0.0.1", description="Address to bind; anything but loopback needs TLS here or in front of it.")
    port: int = Field(0, ge=0, le=65535, description="0 takes a free port and keeps it for the next start.")
    tls: Literal["off", "files", "site"] = Field(
        "off", description="`files`: certificate and key below; `site`: a certificate of the site's own authority."
    )
    certificate_file: str = Field("", description="With `files`: the certificate and those between it and the root, PEM.")
    key_file: str = Field("", description="With `files`: its private key, PEM, readable by the server's user only.")
    names: list[str] = Field([], description="With `site`: names and addresses by which browsers reach the pages.")
    proxies: list[str] = Field([], description="Addresses of reverse proxies whose `X-Forwarded-…` headers are believed.")
    session_idle_h: float = Field(12.0, gt=0, description="A log-in ends after so many hours without a request.")
    session_max_h: float = Field(168.0, gt=0, description="And after so many hours in any case.")

    @model_validator(mode="after")
    def _files(self) -> Self:
        if self.tls == "files" and not (self.certificate_file and self.key_file):
            raise ValueError('tls = "files" needs certificate_file and key_file')
        return self


class BrokerConfig(_Part):
    """Which MQTT broker the devices meet the server at."""

    url: str = Field(
        "", description="`mqtts://host:8883` or `mqtt://user@host:1883` of a broker of your own; empty starts one on loopback."
    )
    password_file: str = Field("", description="File with the password for `url`, mode 0600.")
    ca_file: str = Field(
        "", description="With `mqtts://`: PEM file of the CA that signed the broker; empty: what the machine trusts."
    )
    certificate: str = Field(
        "", description="With `mqtts://`: PEM file with key and certificate, or a folder with `<client id>.pem` each."
    )
    host: str = Field("127.0.0.1", description="Address that the embedded broker binds.")
    names: list[str] = Field([], description="Host names and addresses under which devices reach this server; best first.")

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        if value and not value.startswith(("mqtt://", "mqtts://")):
            raise ValueError("must look like mqtts://host:8883, or mqtt://user@host:1883 without TLS")
        return value

    @model_validator(mode="after")
    def _tls_only(self) -> Self:
        if (self.ca_file or self.certificate) and not self.url.startswith("mqtts://"):
            raise ValueError("ca_file and certificate go with a url that begins with mqtts://")
        return self


class IdentityConfig(_Part):
    """How boards become devices."""

    host: str = Field("", description="Address that the claim listener binds; empty: the embedded broker's, `broker.host`.")
    port: int = Field(0, ge=0, le=65535, description="Its port; 0 takes a free one and keeps it, since devices renew there.")
    issuer_command: list[str] = Field(
        [],
        description="Command that signs device certificates in the own CA's place; `{device}` and `{generation}` are filled in.",
    )
    issuer_ca: str = Field("", description="PEM file with the CA certificates that `issuer_command` signs by.")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if bool(self.issuer_command) != bool(self.issuer_ca):
            raise ValueError("issuer_command and issuer_ca go together: whose certificates the command gives must be known")
        return self


class OidcConfig(_Part):
    """Log-in by OpenID Connect, beside passwords; off without an issuer."""

    issuer: str = Field("", description="The provider's issuer, `https://...`, as it calls itself. Empty: no single sign-on.")
    client_id: str = Field("", description="The id that the provider gave this server.")
    client_secret_file: str = Field("", description="File with the client's secret, mode 0600; empty for a public client.")
    redirect_url: str = Field(
        "", description="`https://NAME/login/oidc/callback`, as browsers reach it and the provider knows it."
    )
    claim: Literal["email", "preferred_username", "sub"] = Field(
        "email", description="What of the provider is the account's name."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.issuer and not (self.client_id and self.redirect_url.endswith("/login/oidc/callback")):
            raise ValueError("issuer needs client_id, and a redirect_url that ends in /login/oidc/callback")
        return self


class IngestConfig(_Part):
    """How frames are taken in."""

    workers: int = Field(1, ge=1, le=64, description="Processes that share the frames out among them.")
    stop_below_free_mib: int = Field(
        200, ge=0, description="Take nothing while the disk has less free; devices keep their frames."
    )
    go_on_above_free_mib: int = Field(300, ge=0, description="And go on when it has more than this.")

    device_frames_per_day: int | None = Field(
        None, ge=1, description="Frames that a device may send in 24 hours; none for no limit. Above it keeps them and is told."
    )
    device_mb_per_day: float | None = Field(
        None, gt=0, description="Megabytes of images that a device may send in 24 hours; none for no limit."
    )

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.go_on_above_free_mib < self.stop_below_free_mib:
            raise ValueError("go_on_above_free_mib must not be less than stop_below_free_mib")
        return self


class TrainingConfig(_Part):
    """How a challenger is trained."""

    model: str = Field("yolo11n", description="Architecture, when there is no model to start from.")
    image_size: int = Field(640, ge=32, multiple_of=32, description="Side of the network's input, pixels.")
    epochs: int = Field(60, ge=1, description="Passes over the training split.")
    batch: int = Field(16, ge=1, description="Images a step.")
    learning_rate: float = Field(0.002, gt=0, description="First learning rate of AdamW.")
    final_rate_share: float = Field(0.01, gt=0, le=1, description="Where the learning rate ends, as a share of the first.")
    warmup_epochs: float = Field(3.0, ge=0, description="Passes during which the rate rises.")
    mosaic: float = Field(0.0, ge=0, le=1, description="Share of training pictures put together from four.")
    scale_jitter: float = Field(0.5, ge=0, lt=1, description="Pictures are scaled up or down by up to this share.")
    frozen_layers: int = Field(0, ge=0, description="The first layers that keep the weights of the model trained from.")
    repeat_below: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Pictures of classes that fewer pictures show than this share are shown more often; 0: none.",
    )
    pretrained_dir: str = Field("", description="Folder where `<model>.pt` may lie, for a first model.")
    seed: int = Field(0, ge=0, description="The same seed, data and versions give the same training.")
    threads: int = Field(1, ge=1, description="CPU threads.")


class LoopConfig(_Part):
    """The loop: how many frames to ask for, and what happens by itself."""

    rounds: int | None = Field(None, ge=1, description="Stop after so many rounds; none: go on for ever.")
    frames_per_round: int = Field(400, ge=1, description="Frames asked of all devices together, a round.")
    wait_s: float = Field(
        86400.0, gt=0, description="Close a round's collection after so long with the frames that came, if any came."
    )
    holdout_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of new scenes of imported pictures that are held out; for cameras see `labelling.evaluation_share`.",
    )
    collect: bool = Field(False, description="Open rounds by itself; otherwise devices send what their budgets allow.")
    train: bool = Field(False, description="Train when a round's frames are labelled.")
    roll_out: bool = Field(False, description="Roll a promoted model out without asking.")
    training: TrainingConfig = TrainingConfig()


class LabellingConfig(_Part):
    """Which received frames go to people, what that may cost, and how it is checked that choosing pays."""

    rescore: Literal["champion", "teacher", "off"] = Field(
        "champion", description="Look at received frames again with the champion, with a teacher as well, or not at all."
    )
    teacher: str = Field("", description="With `teacher`: ONNX file of a larger model that sees more than devices do.")
    evaluation_share: float = Field(
        0.5, ge=0, le=1, description="Share of the random audit's scenes that go to the evaluation set, decided by chance."
    )
    control_share: float = Field(
        0.2, ge=0, le=1, description="Share of a batch that chance takes; the policy is measured by it."
    )
    cost_unit: Literal["frames", "boxes", "seconds"] = Field("frames", description="What a batch's cost is counted in.")
    cost_limit: float | None = Field(
        None, gt=0, description="A batch costs at most so much; none: only its frames are limited."
    )
    fall_back: bool = Field(True, description="Choose by diversity alone while the policy is no better than its control.")
    reweight: bool = Field(False, description="Believe strategies in proportion to what labels said of their frames.")
    consensus_share: float = Field(
        0.05, ge=0, le=1, description="Share of labels that a second person is asked to make as well."
    )
    enough_labels: int = Field(
        20, ge=2, description="Labelled frames that look alike from which on devices are told that there is enough of them."
    )

    @model_validator(mode="after")
    def _teacher(self) -> Self:
        if (self.rescore == "teacher") != bool(self.teacher):
            raise ValueError('rescore = "teacher" and teacher go together: the path of an ONNX file')
        return self


class RolloutConfig(_Part):
    """Who may let a rollout begin."""

    approval: Literal["none", "manual"] = Field(
        "none", description="`manual`: a rollout waits until somebody else than its starter approves it."
    )


class GateConfig(_Part):
    """When a challenger replaces the champion."""

    profile: Literal["significant", "point_estimate"] = Field(
        "significant", description="`significant` for real sites; `point_estimate` for demos and single films, not a test."
    )


class ModelsConfig(_Part):
    """Which files a package has beside the float model."""

    variants: list[Literal["int8-ort", "int8-openvino"]] = Field(
        ["int8-ort", "int8-openvino"],
        description="Quantised files that a promoted model gets: for ONNX Runtime, for OpenVINO. Empty: none.",
    )
    max_loss_points: float = Field(
        0.5, ge=0, le=100, description="A quantised file that loses more points (hundredths) of mAP50-95 is left out."
    )
    calibration_frames: int = Field(96, ge=1, le=1024, description="Frames of the training split that set the ranges of int8.")


class RetentionConfig(_Part):
    """How long frames are kept; without a number for ever."""

    unlabelled_days: float | None = Field(None, gt=0, description="Frames that nobody has labelled, from their capture.")
    rejected_days: float | None = Field(None, gt=0, description="Frames that were set aside, from that moment.")
    labelled_days: float | None = Field(None, gt=0, description="Labelled frames for training, from their newest label.")
    held_out_days: float | None = Field(
        None, gt=0, description="Labelled frames of the evaluation set; without them models can no longer be compared."
    )

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is ever deleted by age."""
        return all(days is None for days in self.model_dump().values())


class SigningConfig(_Part):
    """Who signs model packages."""

    mode: Literal["approved", "automatic"] = Field(
        "approved", description="`approved`: a person signs with an offline key; `automatic`: the server signs by itself."
    )


class DriftConfig(_Part):
    """When a camera counts as drifted, and what is done about it."""

    psi: float = Field(0.25, gt=0, description="Least population stability index of an hour against the reference.")
    ks: float = Field(0.1, gt=0, lt=1, description="Least Kolmogorov-Smirnov distance; both must be exceeded.")
    least_frames: int = Field(200, ge=1, description="Hours with fewer frames are not judged.")
    reference_hours: int = Field(24, ge=3, description="Hours of a new model before anything is judged.")
    reference_days: float = Field(7.0, gt=0, description="Hours of so many days are what counts as normal.")
    after_hours: int = Field(2, ge=1, description="Drifted hours in a row that begin an episode.")
    boost_hours: float = Field(
        24.0,
        gt=0,
        le=168,
        description="How long the device then explores that camera more, inside its caps; a new camera as well.",
    )
    boost_factor: float = Field(2.0, ge=1, le=4, description="How much more; 1 changes nothing on devices.")


class ServerConfig(_Part):
    """Everything the server can be told."""

    site: str = Field("site", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Name of the site in topics.")
    web: WebConfig = WebConfig()
    oidc: OidcConfig = OidcConfig()
    broker: BrokerConfig = BrokerConfig()
    identity: IdentityConfig = IdentityConfig()
    ingest: IngestConfig = IngestConfig()
    loop: LoopConfig = LoopConfig()
    labelling: LabellingConfig = LabellingConfig()
    rollout: RolloutConfig = RolloutConfig()
    gate: GateConfig = GateConfig()
    drift: DriftConfig = DriftConfig()
    models: ModelsConfig = ModelsConfig()
    signing: SigningConfig = SigningConfig()
    retention: RetentionConfig = RetentionConfig()


def load_config(data: Path, explicit: Path | None = None) -> ServerConfig:
    """The configuration from `explicit`, else from `bowerbird.toml` in the data folder, else the defaults.

    Raises:
        ConfigError: the file is missing, is not TOML, or has faults; all of them are listed.
    """
    path = explicit or data / CONFIG_NAME
    if not path.exists():
        if explicit is None:
            return ServerConfig()
        raise ConfigError(f"{path} does not exist; give the path of a bowerbird.toml, or leave --config out for the defaults")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    try:
        return ServerConfig.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(f"  {'.'.join(map(str, fault['loc']))}: {_fault_text(fault)}" for fault in error.errors())
        raise ConfigError(f"{path} cannot be used; put these right:\n{faults}") from error


def _fault_text(fault: ErrorDetails) -> str:
    if fault["type"] != "extra_forbidden":
        return fault["msg"].removeprefix("Value error, ").replace("Input should", "it must", 1)
    part: type[BaseModel] = ServerConfig
    for name in fault["loc"][:-1]:
        part = cast("type[BaseModel]", part.model_fields[str(name)].annotation)
    near = get_close_matches(str(fault["loc"][-1]), part.model_fields, n=1)
    return f"unknown key{f'; did you mean {near[0]!r}?' if near else ''} Known here: {', '.join(part.model_fields)}"
