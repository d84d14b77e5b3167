"""What tells one machine from another, and what the C library is told about huge pages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bowerbird_agent.tuning.hardware import (
    BEGAN_AGAIN,
    TUNABLES,
    Hardware,
    environment_to_begin_again,
    has_huge_pages,
    memory_class_gb,
    with_huge_pages,
)
from bowerbird_models.processor import parse_cpuinfo

X86 = """processor\t: 0
model name\t: AMD EPYC 9B14
flags\t\t: fpu avx2 avx512_bf16

processor\t: 1
model name\t: AMD EPYC 9B14
flags\t\t: fpu avx2 avx512_bf16
"""
BIG_LITTLE = """processor\t: 0
Features\t: fp asimd asimdhp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 4
Features\t: fp asimd asimdhp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
MACHINE = Hardware("x86_64", "", "AMD EPYC 9B14", "0" * 12, 2, 32, "", {"onnxruntime": "1.32.0"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, ("AMD EPYC 9B14", "avx2 avx512_bf16 fpu")),
        (BIG_LITTLE, ("implementer 0x41 part 0xd05 + implementer 0x41 part 0xd0b", "asimd asimdhp fp")),
        ("", ("", "")),
    ],
)
def test_the_processor_is_named_the_same_however_many_cores_are_listed(text: str, expected: tuple[str, str]) -> None:
    assert parse_cpuinfo(text) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "another"},
        {"flags_digest": "1" * 12},
        {"cores": 4},
        {"memory_gb": 16},
        {"gpu": "a card"},
        {"stack": {"onnxruntime": "1.33.0"}},
        {"stack": {"onnxruntime": "1.32.0", "openvino": "2026.0"}},
    ],
)
def test_whatever_a_measurement_depends_on_changes_the_key(change: dict[str, object]) -> None:
    assert replace(MACHINE, **change).key != MACHINE.key  # type: ignore[arg-type]  # fields by name
    assert replace(MACHINE).key == MACHINE.key


@pytest.mark.parametrize(("total_bytes", "gigabytes"), [(900 * 2**20, 1), (2**30, 1), (7.6 * 2**30, 8), (24.1 * 2**30, 32)])
def test_memory_is_compared_by_class(total_bytes: float, gigabytes: int) -> None:
    assert memory_class_gb(int(total_bytes)) == gigabytes


@pytest.mark.parametrize(
    ("before", "on", "off"),
    [
        (None, "glibc.malloc.hugetlb=1", None),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=2"),
        ("glibc.malloc.hugetlb=2:glibc.rtld.nns=4", "glibc.rtld.nns=4:glibc.malloc.hugetlb=1", "glibc.rtld.nns=4"),
    ],
)
def test_huge_pages_are_switched_without_touching_other_tunables(before: str | None, on: str, off: str | None) -> None:
    environment = {"PATH": "/bin"} | ({} if before is None else {TUNABLES: before})
    assert with_huge_pages(environment, wanted=True) == {"PATH": "/bin", TUNABLES: on}
    assert with_huge_pages(environment, wanted=False).get(TUNABLES) == off
    assert has_huge_pages({TUNABLES: on})
    assert not has_huge_pages({} if off is None else {TUNABLES: off})


def test_a_process_begins_again_at_most_once() -> None:
    environment = environment_to_begin_again({"PATH": "/bin"})
    if environment is not None:  # this kernel and C library know huge pages
        assert has_huge_pages(environment)
        assert environment_to_begin_again(environment) is None
    assert environment_to_begin_again({BEGAN_AGAIN: "1"}) is None
    assert environment_to_begin_again({TUNABLES: "glibc.malloc.hugetlb=1"}) is None
