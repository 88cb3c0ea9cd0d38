"""Break the queue's scripts on purpose, one place at a time: the tests must notice.

    python -m tests.script_mutants

runs the tests of the queue once for each mutant, in a process of its own with a server of its own,
and prints which test has noticed it. One that none notices is an error, and so is one whose place
is no longer there: a script that changes takes its mutants along.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutants import Mutant, Program, mutated, run_program

#: The tests that must notice, the likeliest first: the first failure ends a run.
TESTS = (
    "exhaustive", "settling", "sequences", "taking", "recovery", "recovery_slices", "delay",
    "dead_letters", "redriving", "publishing", "shared_bodies", "wakeups", "expiry", "counting",
    "topics", "batches", "property",
)  # fmt: skip

SCRIPTS = "cqrs_celery/queue/scripts"

MUTANTS = (
    # What a settlement may end, and what becomes of the rest of its sequence.
    Mutant(
        "_settle_operations",
        "records[i] and string.match(records[i], '^%d+') == one[3]",
        "records[i]",
    ),
    Mutant("_settle_operations", "  call_with('HDEL', flight, counted)\n", ""),
    Mutant("_settle_operations", "  call_with('HDEL', flight, revoked)\n", ""),
    Mutant(
        "_settle_operations",
        "return tonumber(a.back.id) > tonumber(b.back.id)",
        "return tonumber(a.back.id) < tonumber(b.back.id)",
    ),
    Mutant("_settle_operations", "    if s then leave_sequence(s, id) end\n", ""),
    Mutant(
        "_settle_operations", "else call('LREM', key, -1, id) end", "else call('RPOP', key) end"
    ),
    Mutant("_settle_operations", "  s.n = ahead\n", "  s.n = 0\n"),
    Mutant(
        "_settle_operations", "if op == 'r' then call('HINCRBY'", "if false then call('HINCRBY'"
    ),
    Mutant("_settle_operations", "if mark ~= '' then call('HDEL'", "if false then call('HDEL'"),
    Mutant("_settle_operations", "      if body ~= '' then bodies[#bodies + 1] = body end\n", ""),
    Mutant("_settle_operations", "s.seq, s.pri, s.back ~= nil)", "s.seq, s.pri, false)"),
    Mutant("_settle_operations", "elseif first.op == 'l' then", "elseif false then"),
    Mutant("_settle_operations", "elseif first.op == 'd' then", "elseif false then"),
    # What a take brings.
    Mutant("settle_and_take", "if wanted == 0 or not is_known then", "if wanted == 0 then"),
    Mutant("settle_and_take", "if due_in == 0 then\n  promote", "if false then\n  promote"),
    Mutant("_take", "for i = #more, 1, -1 do hold", "for i = 1, #more do hold"),
    Mutant("_take", "t.pri .. '|' .. (1 + ", "t.pri .. '|' .. (0 + "),
    Mutant("_take", "(i > firsts and 1 or 0)", "0"),
    Mutant("_take", "-room - 1, -2)", "-room, -2)"),
    Mutant("_take", "redis.pcall('SADD', C .. 'idle', consumer)", "tostring(0)"),
    Mutant("_take", "if drained[i] ~= 'empty' and has_ready", "if false and has_ready"),
    # What goes back, and what is forgotten.
    Mutant("_settle", "return a > b end)", "return a < b end)"),
    Mutant("_settle", "or head > youngest then break", "then break"),
    Mutant("_settle", "call('HDEL', C .. 'seqs:' .. queue, seq)", "local _"),
    Mutant("_settle", "    call_with('HDEL', C .. 'tries', ids)\n", ""),
    Mutant("_settle", "body, -1) <= 0 then", "body, -1) < 0 then"),
    # What waits for its time.
    Mutant("_delay", "        call('HSET', C .. 'seqs:' .. queue, seq, 'r' .. pri)\n", ""),
    Mutant("_delay", "call('ZREM', delayed, unpack(members))", "local _"),
    Mutant(
        "_delay", "push_ready(queue, pri, '=' .. seq, true)", "push_ready(queue, pri, '=' .. seq)"
    ),
    Mutant("_delay", "if id ~= '' and seq ~= '' then enqueue", "if id ~= '' then enqueue"),
    # What is put in line.
    Mutant(
        "_counts",
        "call('LPUSH', seq_key(queue, seq), id)",
        "call('RPUSH', seq_key(queue, seq), id)",
    ),
    Mutant("_counts", "if call('HSETNX', seqs, seq, 'r' .. pri) == 1 then", "if true then"),
    Mutant("_common", "element) == 1 then wake(queue) end", "element) == 0 then wake(queue) end"),
    Mutant("publish", "1, 'NX', 'PX', ARGV[3])", "1, 'PX', ARGV[3])"),
    Mutant("publish", "if due then delay(", "if false then delay("),
    # Consumers that are lost.
    Mutant("beat", "if known or ARGV[4] == '1' then", "if true then"),
    Mutant("recover", "  call_with('HDEL', flight, ids_of[name])\n", ""),
    Mutant("end_consumers", "tonumber(lease_end) == tonumber(seen)", "true"),
    Mutant("end_consumers", "    call('RENAME', flight, C .. 'flight:' .. name)\n", ""),
    Mutant("recover", "if blocks(queue) then", "if not blocks(queue) then"),
    Mutant("recover", "    call('HSET', C .. 'seqs:' .. queue, seq, 'd' .. pri)\n", ""),
    Mutant("recover", "tries % LETTER >= most", "tries % LETTER > most"),
    Mutant("recover", "    call('LREM', seq_key(queue, seq), -1, first)\n", ""),
    Mutant("recover", "put_back(queue, pri, list)", "local _"),
    # Dead letters.
    Mutant("_letters", "\n    and call('LINDEX', seq_key(queue, l.seq), -1) == id", ""),
    Mutant("_letters", "  call('HSET', C .. 'tries', id, LETTER)\n", ""),
    Mutant("_letters", "    call('RPOP', seq_key(queue, l.seq))\n", ""),
    Mutant("_letters", "(old and old.times or 0) + 1", "1"),
    Mutant(
        "_letters",
        "if is_head then free_sequence(queue, l.seq, l.pri, true) else",
        "if false then else",
    ),
    Mutant("redrive", "if l.state == 't' then return 'tried' end\n", ""),
    # What a purge leaves.
    Mutant("purge", "tonumber(n or 1)", "0"),
    Mutant("purge", "  if is_done then call('ZREM', delayed, member) end\n", ""),
    Mutant(
        "purge", "if call('EXISTS', delayed) == 0 then call('ZREM'", "if false then call('ZREM'"
    ),
    Mutant("purge", "call_with('HDEL', C .. 'dead:' .. queue, ids)", "local _"),
)


def source_of(mutant: Mutant, root: Path) -> Path:
    """Return the file that a mutant changes: the one it names, or whereto its place has moved."""
    scripts = sorted((root / SCRIPTS).glob("*.lua"))
    having = [path for path in scripts if _count(path, mutant.old) == 1]
    named = root / SCRIPTS / f"{mutant.module}.lua"
    pieces = [path for path in having if path.name.startswith("_")]
    for found in ([path for path in having if path == named], pieces, having):
        if len(found) == 1:
            return found[0]
    return named


def _count(path: Path, text: str) -> int:
    return path.read_text(encoding="utf-8").count(text)


def run_one(mutant: Mutant | None, root: Path) -> int:
    """Run the tests in this process, which is for one mutant; returns pytest's exit code."""
    if mutant is not None:
        _read_mutated(mutant, source_of(mutant, root))
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line", "--no-header"]
    files = [f"tests/integration/test_queue_{name}.py" for name in TESTS]
    return int(pytest.main([*options, *files]))


def _read_mutated(mutant: Mutant, changed: Path) -> None:
    """Have the script read with its change, by whoever reads it; before the library is imported."""
    read_text, texts = Path.read_text, mutated(mutant, changed.read_text(encoding="utf-8"))

    def read(path: Path, *arguments: object, **options: object) -> str:
        return texts if path == changed else read_text(path, *arguments, **options)  # type: ignore[arg-type]

    Path.read_text = read  # type: ignore[method-assign, assignment]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests for each mutant; returns 0 if all were noticed."""
    program = Program("tests.script_mutants", MUTANTS, run_one)
    return run_program(program, arguments, (__doc__ or "").partition("\n")[0])


if __name__ == "__main__":
    sys.exit(main())
