"""The check of the code around wgmma, of CUDA (tests/check_cuda_build.py) and Triton, on short pieces of code."""

from __future__ import annotations

import pytest
from wgmma_registers import touched_under_way

PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def as_dumped(*instructions: str) -> str:
    return "\n".join(f"        /*{16 * i:04x}*/     {text} ;   /* 0x00 */" for i, text in enumerate(instructions))


@pytest.mark.parametrize(
    "between",
    [
        "LDG.E.128 R56, desc[UR4][R2.64]",  # behind the sums
        "LDG.E.64 R2, desc[UR4][R2.64]",  # before the operand
        "STS.128 [R0], R4",  # reads the operand
        "LDGSTS.E.BYPASS.128 [R23+0xc000], desc[UR16][R18.64], !P2",
        "IMAD.WIDE.U32 R62, R23.reuse, R22, RZ",
        "ISETP.NE.AND P0, PT, R4, R5, PT",
        "HGMMA.64x64x16.F32.BF16 R24, R60, gdesc[UR8], R24, gsb0",
        "UMOV UR24, UR4",
    ],
)
def test_sound(between: str) -> None:
    body = as_dumped("MOV R4, R5", "MOV R24, RZ", PRODUCT, between, WAIT, "MOV R4, R24", "EXIT")
    assert touched_under_way(body) == []


@pytest.mark.parametrize(
    "between",
    [
        "MOV R7, RZ",
        "LDG.E.128 R0, desc[UR4][R2.64+0x10]; LDG.E.128 R1, desc[UR4][R2.64]",
        "@P0 IMAD.WIDE R54, R0, R1, R2",
        "LOP3.LUT P0, R5, R8, 0xff, RZ, 0xc0, !PT",
        "FADD R60, R61, R24",
        "STG.E.128 desc[UR4][R2.64], R52",
        "LDS R60, [R55]",
        "HGMMA.64x16x16.F32 R0, gdesc[UR8], RZ, !UPT, gsb0",  # its sums reach into the operand
        "HGMMA.64x16x16.F32 R60, R52, gdesc[UR8], R60, gsb0",  # takes the sums for its operand
        "LDG.E R60, desc[UR4][R22.64]; LDG.E R60, desc[UR4][R23.64]",
    ],
)
def test_touched(between: str) -> None:
    body = as_dumped(PRODUCT, *between.split("; "), WAIT, "EXIT")
    assert len(touched_under_way(body)) == 1


def test_every_way_is_followed() -> None:
    branch = as_dumped(PRODUCT, "@P0 BRA 0x40", WAIT, "EXIT", "MOV R4, RZ", "BRA 0x20")
    assert len(touched_under_way(branch)) == 1
    loop = as_dumped("MOV R24, RZ", PRODUCT, "@P0 BRA 0x0", WAIT, "EXIT")
    assert len(touched_under_way(loop)) == 1
    assert len(touched_under_way(as_dumped(PRODUCT, "EXIT"))) == 1
    waits_for_all_but_one = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    other = "HGMMA.64x64x16.F32.BF16 R88, gdesc[UR4], R88, gsb0"
    assert len(touched_under_way(as_dumped(PRODUCT, waits_for_all_but_one, "MOV R4, RZ", WAIT, "EXIT"))) == 1
    assert touched_under_way(as_dumped(PRODUCT, other, waits_for_all_but_one, "MOV R4, R24", WAIT, "EXIT")) == []
    assert len(touched_under_way(as_dumped(PRODUCT, other, waits_for_all_but_one, "MOV R4, R88", WAIT, "EXIT"))) == 1
    with pytest.raises(ValueError, match="cannot follow"):
        touched_under_way(as_dumped(PRODUCT, "CALL.REL.NOINC 0x0", WAIT, "EXIT"))
