"""Looks in SASS for what touches the registers of a wgmma before it has been waited for.

Source code cannot keep them: ptxas allocates, and versions before 13.3 may give those of an operand away at the last
product that reads them. The host emulator has no registers to allocate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]+?)\s*;")
PREDICATE = re.compile(r"@!?U?P\w+\s+")
# The first operand may lie in shared memory.
PRODUCT = re.compile(r"HGMMA\.64x(\d+)x\d+\S* R(\d+), (?:R(\d+)|gdesc)")
LAST_OF_GROUP = "gsb0"
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d+)")

# More are not told apart: no kernel waits for all but so many.
MOST_GROUPS = 4

Code = dict[int, str]


def touched_under_way(body: str) -> list[str]:
    """Return what a kernel's code does to the registers of a product on some way from it to the next wait.

    Args:
        body: one function of ``cuobjdump -sass``.
    """
    code: Code = {int(address, 16): text for address, text in INSTRUCTION.findall(body)}
    following = dict(zip(code, list(code)[1:], strict=False))
    found: dict[str, None] = {}
    for start, product in code.items():
        match = PRODUCT.search(product)
        if match is None:
            continue
        sums, operand = _of_product(match)
        # Places, and how many groups have ended on the way there, the product's own among them.
        seen: set[tuple[int, int]] = set()
        ahead = [(start, 0)]
        while ahead:
            address, groups = ahead.pop()
            text = code[address]
            wait = WAIT.search(text)
            if (address, groups) in seen or (wait and int(wait[1]) < groups):
                continue
            seen.add((address, groups))
            if "HGMMA" in text and LAST_OF_GROUP in text:
                groups = min(groups + 1, MOST_GROUPS)
            ahead += [(after, groups) for after in _next(code, following, address)]
            if wait:
                continue
            if other := PRODUCT.search(text):
                written, read = _of_product(other)
                # Products that add to the same sums follow each other.
                written = written if written != sums else set()
            else:
                written, read = _written_and_read(text)
            if written & (sums | operand) or read & sums:
                found[f"{text} ({address:#x}) before {product} ({start:#x}) is done"] = None
            if "EXIT" in text:
                found[f"the end before {product} ({start:#x}) is done"] = None
    return list(found)


def _of_product(match: re.Match[str]) -> tuple[set[int], set[int]]:
    """Return the registers of a product's sums and of its first operand."""
    columns, first_sum, first_operand = match.groups()
    return _registers(int(first_sum), int(columns) // 2), _registers(int(first_operand), 4) if first_operand else set()


def _next(code: Code, following: dict[int, int], address: int) -> Iterator[int]:
    text = code[address]
    name = PREDICATE.sub("", text)
    if re.match(r"(CALL|RET|BRX|JMX)\b", name):
        raise ValueError(f"cannot follow {text!r}")
    if name.startswith(("BRA", "WARPSYNC.COLLECTIVE")):
        yield int(name.split()[-1], 16)
        if re.fullmatch(r"BRA 0x[0-9a-f]+", text):
            return
    if text != "EXIT" and address in following:
        yield following[address]


def _written_and_read(text: str) -> tuple[set[int], set[int]]:
    name, _, rest = PREDICATE.sub("", text).partition(" ")
    operands = re.split(r",\s*", rest)
    # Predicates that an instruction writes stand before its other result.
    place = next((i for i, operand in enumerate(operands) if not re.match(r"!?U?P[T\d]", operand)), 0)
    result = re.fullmatch(r"R(\d+)", operands[place])
    width = 4 if ".128" in name or name.endswith(".4") else 2 if re.search(r"\.64|\.WIDE|^CS2R$|^D[AFM]", name) else 1
    written = _registers(int(result[1]), width) if result and "SETP" not in name else set()
    read: set[int] = set()
    for operand in operands[place + bool(written) :]:
        # Several registers are read of a 64-bit address, and of what is stored.
        for register, suffix in re.findall(r"\bR(\d+)(\.64)?", operand):
            is_stored = name.startswith("ST") and "[" not in operand
            read |= _registers(int(register), 2 if suffix else width if is_stored else 1)
    return written, read


def _registers(first: int, count: int) -> set[int]:
    return set(range(first, first + count))
