"""A quota is divided, divided again as devices deliver, and never exceeded, whatever is lost, late or offline."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_server.fleet.campaign_shares import Holder, divide


@dataclass
class Device:
    """A device and the server's row of it; messages in both directions may wait, in order, and reports may be lost."""

    name: str
    share: int = 0
    taken: int = 0
    version: int = 0
    inbox: list[tuple[int, int]] = field(default_factory=list)
    row_share: int = 0
    row_held: int = 0
    row_taken: int = 0
    row_version: int = 0
    row_acked: bool = True
    row_gave: bool = False

    def receive(self) -> None:
        if self.inbox:
            self.version, self.share = self.inbox.pop(0)

    def take(self) -> None:
        if self.taken < self.share:
            self.taken += 1

    def report(self) -> None:
        self.row_taken = max(self.row_taken, self.taken)
        if self.version >= self.row_version:
            self.row_acked = True
            self.row_held = max(self.row_share, self.taken)

    def holder(self) -> Holder:
        return Holder(self.name, self.row_share, self.row_held, self.row_taken, self.row_acked, self.row_gave)

    def tell(self, share: int) -> None:
        self.row_gave = share < self.row_share
        self.row_share, self.row_version, self.row_acked = share, self.row_version + 1, False
        self.row_held = max(self.row_held, share)
        self.inbox.append((self.row_version, share))


def server(quota: int, devices: list[Device], **how: int | bool) -> dict[str, int]:
    new = divide(quota, [device.holder() for device in devices], **how)  # type: ignore[arg-type]
    for device in devices:
        if device.name in new:
            device.tell(new[device.name])
    return new


@settings(max_examples=300)
@given(
    st.integers(0, 40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from(["receive", "take", "report", "divide", "turn"]), st.integers(0, 4)), max_size=120),
)
def test_the_quota_is_never_exceeded(quota: int, count: int, unit: int, low: int, steps: list[tuple[str, int]]) -> None:
    devices = [Device(f"d{n}") for n in range(count)]
    for what, number in steps:
        device = devices[number % count]
        if what in ("divide", "turn"):
            server(quota, devices, unit=unit, low=low, turn=what == "turn")
        else:
            getattr(device, what)()
        assert sum(d.taken for d in devices) <= quota
        assert sum(d.holder().bound for d in devices) <= quota


def run_for(rounds: int, quota: int, devices: list[Device], finds: set[str], online: set[str]) -> int:
    messages = 0
    for number in range(rounds):
        messages += len(server(quota, devices, turn=number % 50 == 49))
        for device in devices:
            if device.name in online:
                while device.inbox:
                    device.receive()
                if device.name in finds:
                    device.take()
                device.report()
    return messages


@given(st.integers(1, 60), st.integers(1, 8), st.data())
@settings(max_examples=60)
def test_one_device_that_finds_frames_brings_the_whole_quota(quota: int, count: int, data: st.DataObject) -> None:
    devices = [Device(f"d{n}") for n in range(count)]
    names = {device.name for device in devices}
    finds = data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1))
    run_for(40 * quota + 20 * count, quota, devices, finds, names)
    assert sum(device.taken for device in devices) == quota


def test_what_an_offline_device_may_still_act_upon_is_not_given_to_others() -> None:
    devices = [Device("a"), Device("b")]
    run_for(1, 20, devices, set(), {"a", "b"})
    held = devices[1].share
    assert held > 0
    run_for(600, 20, devices, {"a"}, {"a"})
    assert devices[0].taken == 20 - held
    for _ in range(held):
        devices[1].take()
    run_for(600, 20, devices, {"a"}, {"a", "b"})
    assert devices[0].taken + devices[1].taken == 20


def test_devices_that_find_nothing_are_not_told_something_new_all_the_time() -> None:
    devices = [Device(f"d{n}") for n in range(6)]
    names = {device.name for device in devices}
    run_for(100, 30, devices, set(), names)
    assert run_for(40, 30, devices, set(), names) == 0


def test_the_first_shares_are_equal_and_leave_something_for_those_who_find() -> None:
    new = divide(200, [Holder(f"d{n}") for n in range(10)])
    assert set(new.values()) == {10}


def test_without_devices_nothing_is_divided() -> None:
    assert divide(10, []) == {}
