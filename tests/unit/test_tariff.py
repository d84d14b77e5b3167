"""Quiet hours over midnight, time zones and clock steps; metered interfaces from the kernel's tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.budget.tariff import DAY_S, QuietHours, Tariff, default_interfaces, quiet_left_s

HOUR_S = 3600.0
NIGHT = QuietHours.parse("22:00-06:00")
HEADER = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def route(interface: str, metric: int, destination: str = "00000000", mask: str = "00000000", flags: str = "0003") -> str:
    return f"{interface}\t{destination}\t0102A8C0\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


def route6(interface: str, metric: int, flags: str = "00450003", prefix: str = "00") -> str:
    zeros = "0" * 32
    return f"{zeros} {prefix} {zeros} 00 fe80{'0' * 27}1 {metric:08x} 00000001 00000000 {flags} {interface:>8}\n"


@pytest.mark.parametrize(
    ("hour", "left_h"), [(21.99, 0.0), (22.0, 8.0), (23.0, 7.0), (0.0, 6.0), (5.5, 0.5), (6.0, 0.0), (12.0, 0.0)]
)
def test_a_range_over_midnight_is_quiet_on_both_sides_of_it(hour: float, left_h: float) -> None:
    assert quiet_left_s([NIGHT], hour * HOUR_S, 0.0) == pytest.approx(left_h * HOUR_S)


def test_local_ranges_move_with_the_time_zone_and_utc_ranges_do_not() -> None:
    noon_utc = 12 * HOUR_S
    assert quiet_left_s([QuietHours.parse("14:00-15:00")], noon_utc, 2 * HOUR_S) == HOUR_S
    assert quiet_left_s([QuietHours.parse("14:00-15:00 UTC")], noon_utc, 2 * HOUR_S) == 0.0
    assert quiet_left_s([QuietHours.parse("12:00-13:00 UTC")], noon_utc, 2 * HOUR_S) == HOUR_S


def test_ranges_that_touch_are_one() -> None:
    ranges = [QuietHours.parse("10:00-12:00"), QuietHours.parse("12:00-13:00")]
    assert quiet_left_s(ranges, 11 * HOUR_S, 0.0) == 2 * HOUR_S


def test_a_whole_day_of_quiet_ends_the_search_after_a_day() -> None:
    assert quiet_left_s([QuietHours.parse("00:00-24:00")], 5 * HOUR_S, 0.0) == DAY_S


_times = st.builds(
    lambda begin, end, utc: f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}{' UTC' if utc else ''}",
    st.integers(0, 1439),
    st.integers(0, 1439),
    st.booleans(),
)


@given(st.lists(_times, max_size=4), st.integers(0, 10**7), st.sampled_from((-12, -3.5, 0, 5.75, 14)))
def test_quiet_lasts_exactly_as_long_as_is_said(texts: list[str], minute: int, zone_h: float) -> None:
    ranges = [QuietHours.parse(text) for text in texts if text[:5] != text[6:11]]
    offset_s, wall_s = zone_h * HOUR_S, minute * 60.0

    def is_quiet(at_s: float) -> bool:
        seconds = [(each, (at_s + (0 if each.is_utc else offset_s)) % DAY_S) for each in ranges]
        return any(
            each.begin_s <= s < each.end_s if each.begin_s < each.end_s else s >= each.begin_s or s < each.end_s
            for each, s in seconds
        )

    left_s = quiet_left_s(ranges, wall_s, offset_s)
    assert (left_s > 0) == is_quiet(wall_s)
    assert all(is_quiet(wall_s + at_s) for at_s in range(0, int(left_s), 600))
    if left_s < DAY_S:
        assert not is_quiet(wall_s + left_s)


@pytest.mark.parametrize(
    "text", ["22-6", "25:00-06:00", "22:60-06:00", "08:00-08:00", "00:00-00:00", "24:00-06:00", "22:00-06:00 CET"]
)
def test_what_is_no_time_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"\d\d:\d\d|hours go to 23"):
        QuietHours.parse(text)


def test_the_default_route_with_the_lowest_metric_counts_in_each_family() -> None:
    ipv4 = HEADER + route("wwan0", 700) + route("eth0", 100) + route("br0", 0, "000011AC", "0000FFFF")
    assert default_interfaces(ipv4, "") == ("eth0",)
    assert default_interfaces(HEADER, route6("wwan0", 1024)) == ("wwan0",)
    assert default_interfaces(ipv4, route6("wwan0", 1024)) == ("eth0", "wwan0")
    assert default_interfaces(ipv4, route6("eth0", 1024)) == ("eth0",)


def test_routes_that_are_down_or_reject_are_none() -> None:
    assert default_interfaces(HEADER + route("wwan0", 1, flags="0002"), route6("wwan0", 1, flags="00200201")) == ()
    assert default_interfaces(HEADER + route("wwan0", 1), route6("lo", 1)) == ("wwan0",)
    assert default_interfaces(HEADER, route6("eth0", 1, prefix="40")) == ()


def test_the_tables_are_read_again_after_ten_seconds_and_on_a_new_link(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(HEADER + route("eth0", 0))
    tariff = Tariff((), ["wwan*"], proc_net=tmp_path)
    assert not tariff.is_metered(0.0)
    (tmp_path / "route").write_text(HEADER + route("wwan1", 0))
    assert not tariff.is_metered(9.0)
    assert tariff.is_metered(10.0)
    (tmp_path / "route").write_text(HEADER + route("eth0", 0))
    tariff.link_changed()
    assert not tariff.is_metered(10.5)
    tariff.metered_interfaces = ("eth0",)
    assert tariff.is_metered(10.6)


@pytest.mark.parametrize("text", [None, HEADER + "wwan0\t00000000\t0\tXX\t0\t0\t0\t00000000\n"])
def test_a_table_that_cannot_be_read_makes_the_uplink_metered(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "route").write_text(text)
    assert Tariff((), ["ppp0"], proc_net=tmp_path).is_metered(0.0)
    assert not Tariff((), (), proc_net=tmp_path).is_metered(0.0), "nobody asked"


def test_this_machines_own_tables_are_understood() -> None:
    if not Path("/proc/net/route").exists():
        pytest.skip("no Linux")
    default_interfaces(Path("/proc/net/route").read_text("ascii"), "")


def test_a_clock_that_was_never_set_is_quiet_when_there_are_quiet_hours() -> None:
    noon = 12 * HOUR_S
    assert Tariff([NIGHT], clock_ok=lambda: False, wall_s=lambda: noon).quiet_left_s() > 0
    assert Tariff([], clock_ok=lambda: False, wall_s=lambda: noon).quiet_left_s() == 0
    assert Tariff([NIGHT], wall_s=lambda: noon, utc_offset_s=lambda _: 0.0).quiet_left_s() == 0
    assert Tariff([NIGHT], wall_s=lambda: noon, utc_offset_s=lambda _: 11 * HOUR_S).quiet_left_s() == 7 * HOUR_S
