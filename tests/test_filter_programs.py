"""Programs: tcpdump's three ways to print them, their size, and the machine's limits."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from filter_oracle import Kernel
from judges import ask

from vsockdump import wire
from vsockdump.errors import FilterError
from vsockdump.filters import Instruction, bpf, compile, dump, pack
from vsockdump.filters.assemble import ACCEPT, assemble
from vsockdump.filters.filter import WHOLE_FRAME
from vsockdump.filters.words import FALSE, TRUE, Check, Const, Length
from vsockdump.frames import FrameBatch
from vsockdump.packets import decode

PROGRAMS = Path(__file__).with_name("golden") / "filter-programs.txt"


def golden() -> dict[str, str]:
    """The golden file: an expression behind each ``> ``, and its program below it."""
    blocks = PROGRAMS.read_text(encoding="utf-8").split("\n> ")[1:]
    return {block.split("\n", 1)[0]: block.split("\n", 1)[1].strip("\n") for block in blocks}


@pytest.mark.parametrize("text", golden())
def test_programs_are_these(text: str) -> None:
    assert dump(compile(text).bpf()) == golden()[text]


@pytest.mark.judge
@pytest.mark.parametrize("linktype", ["VSOCK", "EN10MB"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "len > 100",
        "less 100 or greater 1000",
        "link[0:4] = 5 and link[4] & 1 = 1",
        "link[20:2] = 5 or len > 0x7fffffff",
        "link[link[2:2]:2] % 5 << 3 >> 2 > 5",
        "link[0:4] ^ 0x80000000 - 5 | 3 > link[2]",
        "link[0:4] + link[4] * link[5:2] - 3 = 5 ^ link[8]",
        "link[0] << link[1] >= 4294967295 or link[3] / 0x90000000 = 1",
        "link[2] >> link[1] & link[5] = link[6] % link[7] - link[8]",
        "link[2] & 4 != 0 or link[3] | link[1] = 5",
        "len - 4294967295 > link[1] * 3000000000 + 4000000000",
        "link[4294967295] = 1",
    ],
)
def test_programs_are_printed_as_tcpdump_prints_them(text: str, linktype: str) -> None:
    for optimizer in ([], ["-O"]):
        printed = [
            ask("tcpdump", *optimizer, "-y", linktype, option, text).removesuffix("\n")
            for option in ("-d", "-dd", "-ddd")
        ]
        _, *rows = printed[2].split("\n")
        program = [Instruction(*map(int, row.split())) for row in rows]
        assert [dump(program, level) for level in (1, 2, 3)] == printed


@pytest.mark.judge
def test_tcpdump_prints_every_instruction_there_is() -> None:
    # What the test above compares is worth something only if it is all that programs hold.
    held = {code for text in golden() for code, *_ in compile(text).bpf()}
    seen = {code & 7 for code in held}
    assert seen == {bpf.LD, bpf.LDX, bpf.ST, bpf.ALU, bpf.JMP, bpf.RET, bpf.MISC}


def test_a_program_is_packed_as_the_kernel_wants_it() -> None:
    program = compile("port 1024 or op rw").bpf()
    packed = pack(program)
    assert list(map(Instruction._make, struct.iter_unpack("=HBBI", packed))) == program


def test_what_is_always_so_is_one_instruction() -> None:
    for text in (
        "",
        "1 == 1",
        "port 5 or 2 > 1",
        "not 1 == 2",
        "less 3 or not less 3 and 0 == 0 or 1 == 1",
    ):
        assert compile(text).bpf(96) == [Instruction(bpf.RET, 0, 0, 96)]
    for text in (
        "1 == 2",
        "port 5 and 1 > 2",
        "type == 70000",
        "vsock[0] > 255",
        "caplen > 300000",
    ):
        assert compile(text).bpf() == [Instruction(bpf.RET, 0, 0, 0)]


def test_without_a_snapshot_length_whole_frames_pass() -> None:
    assert WHOLE_FRAME > wire.MAX_FRAME + wire.SLL2_LEN
    assert compile("").bpf() == compile("").bpf(0) == [Instruction(bpf.RET, 0, 0, WHOLE_FRAME)]


def test_conditions_that_are_constant_need_no_test() -> None:
    assert assemble(TRUE, 5)[0].k == 5
    assert assemble(FALSE, 5)[0].k == ACCEPT
    assert len(assemble(Check(">=", Length(), Const(3)), 5)) == 4


# --- limits


def ports(count: int, joint: str = " or ") -> str:
    return joint.join(f"port {number}" for number in range(1000, 1000 + count))


def frame_to(port: int) -> bytes:
    record = bytearray(wire.HEADERS.itemsize)
    fields = wire.HEADERS.fields
    assert fields is not None
    offset = fields["dst_port"][1]
    record[offset : offset + 4] = port.to_bytes(4, "little")
    return bytes(record[: wire.HEADERS_LEN])


@pytest.mark.parametrize("count", [126, 127, 128, 129, 600])
@pytest.mark.parametrize(
    "form", ["{}", "not ({})", "op rw or ({}) and caplen > 5", "({}) and not port 1000"]
)
def test_long_programs_jump_as_far_as_they_must(count: int, form: str) -> None:
    chosen = compile(form.format(ports(count)))
    program = chosen.bpf()
    jumps = [(at, code) for at, code in enumerate(program) if code.code & 7 == bpf.JMP]
    assert all(at + 1 + max(code.jt, code.jf) < len(program) for at, code in jumps)
    frames = [frame_to(port) for port in range(990, 1010 + count, 7)]
    frames += [frame_to(port) for port in (1000 + count - 1, 1000 + count)]
    expected = chosen.mask(decode(FrameBatch.of(frames))).tolist()
    assert len(set(expected)) == 2
    with Kernel(program) as kernel:
        assert [kernel.run(frame) is not None for frame in frames] == expected


def test_far_jumps_end_the_program_or_are_jumps_of_their_own() -> None:
    near, far = (compile(f"({ports(count)}) and len > 5").bpf() for count in (100, 600))
    drop, hop = Instruction(bpf.RET, 0, 0, 0), bpf.JMP | bpf.JA
    assert [near.count(drop), far.count(drop) > 1] == [1, True]
    assert [any(code == hop for code, *_ in program) for program in (near, far)] == [False, True]


def test_far_jumps_cost_little() -> None:
    # One jump past 255 instructions serves all the tests around it.
    count = 1000
    assert len(compile(ports(count)).bpf()) < 2 * count + 2 * count / bpf.MAX_JUMP * 2 + 10


def test_the_longest_program_is_the_kernels() -> None:
    # A port costs two tests, and a jump of its own now and then.
    fits, breaks = bpf.MAX_INSTRUCTIONS // 2 - 32, bpf.MAX_INSTRUCTIONS // 2
    while breaks - fits > 1:
        middle = (fits + breaks) // 2
        try:
            compile(ports(middle)).bpf()
        except FilterError as error:
            assert str(bpf.MAX_INSTRUCTIONS) in str(error)
            breaks = middle
        else:
            fits = middle
    program = compile(ports(fits)).bpf()
    assert bpf.MAX_INSTRUCTIONS - 8 < len(program) <= bpf.MAX_INSTRUCTIONS


def test_calculations_beyond_the_machines_memory_are_refused() -> None:
    def nested(depth: int) -> str:
        return "(" * depth + "len * len" + " - len * len)" * depth + " == 1"

    compile(nested(bpf.MEM_WORDS // 2)).bpf()
    with pytest.raises(FilterError, match="scratch memory"):
        compile(nested(bpf.MEM_WORDS + 1)).bpf()


if __name__ == "__main__":
    # Writes the golden file anew, for the expressions that are in it.
    head = PROGRAMS.read_text(encoding="utf-8").split("\n> ")[0]
    entries = [f"> {text}\n{dump(compile(text).bpf())}\n" for text in golden()]
    PROGRAMS.write_text("\n".join([head, *entries]), encoding="utf-8")
