"""Topics as types: `str(topic)` is what is published, `T.parse(text)` raises instead of guessing.

In: names, or a topic's text from the broker. Out: frozen topic values and subscription filters. The tree is
`bowerbird/v1/{site}/up|down/{device}/{leaf}`; what a device may publish to the server is all below `up`, what it may read all
below `down`, so one access rule in each direction covers every leaf; `bowerbird/v1/{site}/all` is for every device of a site.
Beside them lies `bowerbird/v1/{site}/local/{device}/{camera}/{leaf}`: what a device tells the other programs of its site. A reply's
topic is derived from the request's topic, never read from a message (a Response Topic would let a device aim the server's answers at
somebody else).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from bowerbird_wire.errors import TopicError

ROOT = "bowerbird"
VERSION = "v1"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

T = TypeVar("T", bound="DeviceTopic")
C = TypeVar("C", bound="CameraTopic")


def check_name(name: str, what: str = "name") -> str:
    """`name`, if it can stand in a topic: 1 to 63 of a-z, 0-9 and inner hyphens.

    Raises:
        TopicError: any other text, wildcards and separators included.
    """
    if _NAME.fullmatch(name) is None:
        raise TopicError(
            f"{what} {name[:80]!r} must be 1 to 63 characters of a-z, 0-9 and '-', not starting or ending with '-'"
        )
    return name


@dataclass(frozen=True)
class DeviceTopic:
    """A topic that belongs to one device of one site. Subclasses fix the direction and the leaf."""

    site: str
    device: str
    DIRECTION: ClassVar[str] = ""
    LEAF: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_name(self.site, "site")
        check_name(self.device, "device")

    def __str__(self) -> str:
        return f"{ROOT}/{VERSION}/{self.site}/{self.DIRECTION}/{self.device}/{self.LEAF}"

    @classmethod
    def parse(cls: type[T], topic: str) -> T:
        """The topic's site and device.

        Raises:
            TopicError: `topic` is not of this type.
        """
        levels = topic.split("/")
        if len(levels) != 6 or levels[:2] != [ROOT, VERSION] or levels[3] != cls.DIRECTION or levels[5] != cls.LEAF:
            raise TopicError(f"{topic[:200]!r} is not a {cls.__name__}: expected {cls.filter('SITE')}")
        return cls(levels[2], levels[4])

    @classmethod
    def filter(cls, site: str) -> str:
        """The subscription that matches this topic for every device of a site."""
        return f"{ROOT}/{VERSION}/{site}/{cls.DIRECTION}/+/{cls.LEAF}"


class FrameTopic(DeviceTopic):
    """A whole frame: header and image."""

    DIRECTION, LEAF = "up", "frame"


class ChunkTopic(DeviceTopic):
    """Part of a frame that is too long for its link."""

    DIRECTION, LEAF = "up", "chunk"


class OfferTopic(DeviceTopic):
    """Does the server have this frame, does it want it?"""

    DIRECTION, LEAF = "up", "offer"


class StatusTopic(DeviceTopic):
    """Retained; the will says `offline`."""

    DIRECTION, LEAF = "up", "status"


class HealthTopic(DeviceTopic):
    """Counters of the device, every so often."""

    DIRECTION, LEAF = "up", "health"


class ReportTopic(DeviceTopic):
    """What became of a model update."""

    DIRECTION, LEAF = "up", "report"


class ReportedTopic(DeviceTopic):
    """Retained; what the device made of the configuration and the campaigns that the server wants."""

    DIRECTION, LEAF = "up", "reported"


class HistogramsTopic(DeviceTopic):
    """What the cameras saw in each hour, all frames counted."""

    DIRECTION, LEAF = "up", "histograms"


class TombstonesTopic(DeviceTopic):
    """What left the spool unsent."""

    DIRECTION, LEAF = "up", "tombstones"


class FetchAnswerTopic(DeviceTopic):
    """What the device does about a wish for more of a frame."""

    DIRECTION, LEAF = "up", "fetched"


class AgentReportTopic(DeviceTopic):
    """What became of an update of the agent itself; a `Report` whose digests are release digests."""

    DIRECTION, LEAF = "up", "agent-report"


class BlockRequestTopic(DeviceTopic):
    """Which blocks of an update file the device still lacks."""

    DIRECTION, LEAF = "up", "block"


class ReferenceTopic(DeviceTopic):
    """A frame that shows what its twin shows, without its picture."""

    DIRECTION, LEAF = "up", "reference"


class ReceiptTopic(DeviceTopic):
    """Which frames are committed, which were refused and why, and which are wanted."""

    DIRECTION, LEAF = "down", "receipt"


class DesiredTopic(DeviceTopic):
    """Retained; what the server wants of the device: how many frames it has room for, its configuration, its campaigns."""

    DIRECTION, LEAF = "down", "desired"


class JobTopic(DeviceTopic):
    """Retained; which model the device should run."""

    DIRECTION, LEAF = "down", "job"


class AgentJobTopic(DeviceTopic):
    """Retained; which release of the agent the device should run: a `Job` whose digest is a release digest."""

    DIRECTION, LEAF = "down", "agent-job"


class BlocksTopic(DeviceTopic):
    """The blocks that were asked for, QoS 0."""

    DIRECTION, LEAF = "down", "blocks"


@dataclass(frozen=True)
class EchoTopic(DeviceTopic):
    """What a device says to itself, to see whether the broker passes its messages on; nobody else may write or read it."""

    DIRECTION: ClassVar[str] = "echo"
    LEAF: ClassVar[str] = "echo"


@dataclass(frozen=True)
class CameraTopic(DeviceTopic):
    """A topic of one camera of a device, for the site's own programs. Devices write, who reads for the site reads."""

    camera: str
    DIRECTION: ClassVar[str] = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.camera, "camera")

    def __str__(self) -> str:
        return f"{ROOT}/{VERSION}/{self.site}/{self.DIRECTION}/{self.device}/{self.camera}/{self.LEAF}"

    @classmethod
    def parse(cls: type[C], topic: str) -> C:
        """The topic's site, device and camera.

        Raises:
            TopicError: `topic` is not of this type.
        """
        levels = topic.split("/")
        if len(levels) != 7 or levels[:2] != [ROOT, VERSION] or levels[3] != cls.DIRECTION or levels[6] != cls.LEAF:
            raise TopicError(f"{topic[:200]!r} is not a {cls.__name__}: expected {cls.filter('SITE')}")
        return cls(levels[2], levels[4], levels[5])

    @classmethod
    def filter(cls, site: str) -> str:
        """The subscription that matches this topic for every camera of every device of a site."""
        return cls.of_device(site, "+")

    @classmethod
    def of_device(cls, site: str, device: str) -> str:
        """The subscription, or access rule, for every camera of one device."""
        return f"{ROOT}/{VERSION}/{site}/{cls.DIRECTION}/{device}/+/{cls.LEAF}"


class DetectionsTopic(CameraTopic):
    """What the model sees, as JSON (`local_detections.py`), QoS 0."""

    LEAF: ClassVar[str] = "detections"


@dataclass(frozen=True)
class CreditTopic:
    """Retained, for all devices of a site: how many bytes of frames may be on their way."""

    site: str

    def __post_init__(self) -> None:
        check_name(self.site, "site")

    def __str__(self) -> str:
        return f"{ROOT}/{VERSION}/{self.site}/all/credit"

    @classmethod
    def parse(cls, topic: str) -> CreditTopic:
        """The topic's site.

        Raises:
            TopicError: `topic` is not of this type.
        """
        levels = topic.split("/")
        if len(levels) != 5 or levels[:2] != [ROOT, VERSION] or levels[3:] != ["all", "credit"]:
            raise TopicError(f"{topic[:200]!r} is not a CreditTopic: expected {ROOT}/{VERSION}/SITE/all/credit")
        return cls(levels[2])


UP: tuple[type[DeviceTopic], ...] = (
    FrameTopic,
    ChunkTopic,
    OfferTopic,
    StatusTopic,
    HealthTopic,
    ReportTopic,
    ReportedTopic,
    AgentReportTopic,
    BlockRequestTopic,
    TombstonesTopic,
    FetchAnswerTopic,
    HistogramsTopic,
    ReferenceTopic,
)
DOWN: tuple[type[DeviceTopic], ...] = (ReceiptTopic, DesiredTopic, JobTopic, AgentJobTopic, BlocksTopic)
LOCAL: tuple[type[CameraTopic], ...] = (DetectionsTopic,)


def parse_topic(topic: str) -> DeviceTopic:
    """`topic` as the one type that it is of.

    Raises:
        TopicError: it is of none.
    """
    levels = topic.split("/")
    for kind in UP + DOWN:
        if len(levels) == 6 and levels[3] == kind.DIRECTION and levels[5] == kind.LEAF:
            return kind.parse(topic)
    for local in LOCAL:
        if len(levels) == 7 and levels[3] == local.DIRECTION and levels[6] == local.LEAF:
            return local.parse(topic)
    raise TopicError(f"{topic[:200]!r} is none of the topics of {ROOT}/{VERSION}")
