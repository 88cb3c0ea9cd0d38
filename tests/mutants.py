"""Break the serializer and the registry on purpose, one line at a time: the tests must notice.

    python -m tests.mutants

runs the unit tests of messages once for each mutant, in a process of its own, and prints which test
has noticed it. One that none notices is an error, and so is one whose line is no longer there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest

#: The tests that must notice, of each module; the likeliest first: the first failure ends a run.
TESTS = {
    "codec": ("values", "message_limits", "upcasting", "messages", "value_properties"),
    "markers": ("values", "message_limits"),
    "sameness": ("values", "aggregate_state", "value_properties"),
    "forms": ("values", "message_limits", "value_properties"),
    "serializer": ("messages", "message_limits", "upcasting", "compression", "values"),
    "registry": ("messages", "upcasting"),
    "compression": ("compression",),
}

#: Seconds for the tests of one mutant.
TIMEOUT_S = 600


class Mutant(NamedTuple):
    """A change of one place.

    Attributes:
        module: of `cqrs_celery.messages`, or the script.
        old: the text that is there once.
        new: what takes its place.
    """

    module: str
    old: str
    new: str


MUTANTS = (
    # What a codec checks when it writes.
    Mutant("codec", "copy = self._decode(data)\n            if", "copy = message\n            if"),
    Mutant("codec", "if form.may_be_deep and is_too_deep(data, MADE_LEVELS):", "if False:"),
    Mutant("codec", "is_too_deep(data, MADE_LEVELS)", "is_too_deep(data, MADE_LEVELS + 1)"),
    Mutant("codec", "if not is_same:", "if False:"),
    Mutant(
        "codec", "if found is not None:\n            raise", "if found is None:\n            raise"
    ),
    Mutant("codec", "if form.may_have_marked and has_marked_object(data):", "if False:"),
    Mutant("codec", "for name in form.compared:", "for name in ():"),
    Mutant("codec", "for name in form.times:", "for name in ():"),
    Mutant("codec", "if name is None:\n        return why", "if True:\n        return why"),
    Mutant("markers", "if one.keys() == MARKERS:", "if one.keys() >= MARKERS:"),
    Mutant("markers", "waiting += one.values()", "pass"),
    Mutant("markers", "waiting += one\n", "pass\n"),
    Mutant("codec", "            is_same = False\n", "            is_same = True\n"),
    Mutant(
        "codec",
        "builtin_types=(), str_keys=True)\n        keeps",
        "builtin_types=())\n        keeps",
    ),
    Mutant("codec", "self._read_all if keeps else self._decode", "self._decode"),
    Mutant("codec", "self._convert_all if keeps else self._convert", "self._convert"),
    Mutant("codec", "if name not in known}", "if name in known}"),
    Mutant("codec", "**_rest(message)}", "}"),
    Mutant("codec", "if codec is None or codec.cls is not cls:", "if codec is None:"),
    Mutant(
        "codec",
        "    except NameError:\n        cls.__codec__ = None",
        "    except ZeroDivisionError:\n        cls.__codec__ = None",
    ),
    Mutant("codec", '        if entry.kind != "query":\n', "        if False:\n"),
    Mutant(
        "codec",
        "except RecursionError as error:\n            raise self._too_deep",
        "except ZeroDivisionError as error:\n            raise self._too_deep",
    ),
    # What is the same.
    Mutant("sameness", "if exact and not is_same_type:", "if False:"),
    Mutant("sameness", 'not exact or b"bytearray" not in', 'True or b"" not in'),
    Mutant("sameness", "(isinstance(sent, _NARROWED) and _is_equal(sent.value, back))", "False"),
    Mutant("sameness", "if isinstance(sent, list) is not isinstance(back, list):", "if False:"),
    Mutant("sameness", "isinstance(sent, _NARROWED) and _is_equal(sent, back)", "False"),
    Mutant("sameness", "same = isinstance(sent, _NARROWED) and _is_equal", "same = _is_equal"),
    Mutant("sameness", "if (sent.tzinfo is None) is not (back.tzinfo is None):", "if False:"),
    Mutant("sameness", "if sent.utcoffset() != back.utcoffset():", "if False:"),
    Mutant("sameness", "sent.replace(tzinfo=None) != back.replace(tzinfo=None)", "sent != back"),
    Mutant("sameness", "return bool(sent.fold == back.fold)", "return True"),
    Mutant("sameness", "return not exact or bool(", "return True or bool("),
    Mutant("sameness", "if str(sent) == str(back) else", "if sent == back else"),
    Mutant(
        "sameness",
        "    if len(sent) != len(back):\n        return Difference(path, sent, back)\n    # Mem",
        "    # Mem",
    ),
    Mutant("sameness", "back if other is _MISSING else (other,)", "(other,)"),
    Mutant("sameness", "return (*fields, UNKNOWN) if getattr", "return fields if getattr"),
    Mutant("sameness", "fields = tuple(cls.__struct_fields__)", "fields = ()"),
    Mutant("sameness", "for field in dataclasses.fields(cls))", "for field in ())"),
    # What a class may hold.
    Mutant("forms", "if name in annotated or name.startswith", "if True or name.startswith"),
    Mutant("forms", "if is_mutable(default):\n            raise", "if False:\n            raise"),
    Mutant("forms", 'if getattr(cls, "__parameters__", ()):', "if False:"),
    Mutant(
        "forms",
        "isinstance(described, inspect.CustomType) and described.cls is not object",
        "False",
    ),
    Mutant(
        "forms",
        "is_custom or isinstance(described, (inspect.RawType, inspect.ExtType))",
        "is_custom",
    ),
    Mutant("forms", "        _check_key(cls, path, described.key_type)", "        pass"),
    Mutant("forms", "        form.may_have_marked = form.may_be_deep = True", "        pass"),
    Mutant("forms", "form.may_have_marked |= ", "_ = "),
    Mutant("forms", "elif has_own or _is_compared(one.type, []):", "elif has_own:"),
    Mutant("forms", "elif has_own or _is_compared", "elif _is_compared"),
    Mutant("forms", "if not has_own and _is_moment(one.type):", "if False:"),
    Mutant("forms", ' == {"__class__", *(one.name for one in fields)}', ""),
    Mutant("forms", 'and code.co_filename == "<string>"', ""),
    Mutant("forms", "if nested.__struct_config__.omit_defaults:", "if False:"),
    Mutant("forms", 'if getattr(nested, "__keeps_unknown__", False):', "if False:"),
    Mutant("forms", "        form.may_be_deep = True\n        return 1", "        return 1"),
    Mutant("forms", "form.may_be_deep = form.may_be_deep or levels > MADE_LEVELS", "pass"),
    # How messages are named, sealed and read.
    Mutant("serializer", "if len(data) > self.max_bytes:", "if False:"),
    Mutant("serializer", "if len(data) > self.max_bytes:", "if len(data) >= self.max_bytes:"),
    Mutant("serializer", "if not application.strip():", "if not application:"),
    Mutant("serializer", "return expansion(data, self.max_bytes)", "return expansion(data)"),
    Mutant("serializer", "if plain is not data:", "if False:"),
    Mutant("serializer", "            if plain is not None:", "            if False:"),
    Mutant("serializer", "if len(messages) == 1:", "if messages:"),
    Mutant("serializer", "(msgspec.ValidationError, UnicodeError)", "ZeroDivisionError"),
    Mutant("serializer", "(msgspec.ValidationError, UnicodeError)", "msgspec.ValidationError"),
    Mutant("serializer", "except (KeyError, TypeError) as error:", "except KeyError as error:"),
    Mutant(
        "serializer",
        "        data = self._expanded(decompress, data, kind, name, version)\n        try:",
        "        try:",
    ),
    Mutant(
        "serializer",
        "self._readers, self._converters = defaultdict(dict), {}",
        "self._converters = {}",
    ),
    Mutant(
        "serializer",
        "self._readers, self._converters = defaultdict(dict), {}",
        "self._readers = defaultdict(dict)",
    ),
    Mutant("serializer", "compress(data, self.compression))", "data)"),
    Mutant(
        "serializer", "            if isinstance(found, Upcaster):\n", "            if False:\n"
    ),
    # What is registered under which name.
    Mutant("registry", "if other and not is_same(other.cls, cls):", "if False:"),
    Mutant("registry", "for one in (name, *aliases):", "for one in (name,):"),
    Mutant("registry", "        _check_version(version, cls)\n        entry", "        entry"),
    Mutant(
        "registry",
        "type(version) is not int or version < 1",
        "type(version) is not int or version < 0",
    ),
    Mutant(
        "registry",
        "type(version) is not int or version < 1",
        "not isinstance(version, int) or version < 1",
    ),
    Mutant("registry", "        self._check_aliases(entry)\n", ""),
    Mutant(
        "registry",
        "found = self._upcasters.get(key) or self._by_key.get(key)",
        "found = self._by_key.get(key) or self._upcasters.get(key)",
    ),
    Mutant("registry", 'return name if "." in name else', "return name if False else"),
    Mutant(
        "registry",
        "            self._aliases[kind, alias] = entry\n        self._found = {}\n",
        "            self._aliases[kind, alias] = entry\n",
    ),
    Mutant(
        "registry",
        "        self._upcasters[key] = upcaster\n        self._found = {}\n",
        "        self._upcasters[key] = upcaster\n",
    ),
    Mutant("registry", "if other and not is_same(other.function, upcaster.function):", "if False:"),
    Mutant(
        "registry", "one.__module__ == other.__module__ and one.__qualname__", "one.__qualname__"
    ),
    Mutant(
        "registry",
        "one.__module__ == other.__module__ and one.__qualname__ == other.__qualname__",
        "one is other",
    ),
    Mutant("registry", "            del self._aliases[key]\n", "            pass\n"),
    Mutant("registry", 'if full_name.startswith(application + "."):', "if False:"),
    Mutant("registry", "entry is None or entry.full_name(application) in seen", "entry is None"),
    Mutant("registry", "if version < versions[-1]", "if version > versions[-1]"),
    # What is compressed.
    Mutant("compression", "if len(found) > most_bytes:", "if False:"),
    Mutant(
        "compression",
        "decompressor.decompress(packed, most_bytes + 1)",
        "decompressor.decompress(packed)",
    ),
    Mutant(
        "compression",
        "found if decompressor.eof and not decompressor.unused_data",
        "found if not decompressor.unused_data",
    ),
    Mutant("compression", "decompressor.eof and not decompressor.unused_data", "decompressor.eof"),
    Mutant("compression", "return text if len(text) < len(data) else data", "return text"),
    Mutant(
        "compression", "len(data) <= how.threshold_bytes or", "len(data) < how.threshold_bytes or"
    ),
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Load a module's source with one place changed, past every cache."""

    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        source = mutated(self.mutant, Path(self.path).read_text(encoding="utf-8"))
        return compile(source, self.path, "exec")


class _Finder:
    """Find one module of the package in its mutated form."""

    def __init__(self, mutant: Mutant, root: Path) -> None:
        self.mutant = mutant
        self._name = f"cqrs_celery.messages.{mutant.module}"
        self._path = root / "cqrs_celery" / "messages" / f"{mutant.module}.py"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the module's spec, if it is the one; None for every other."""
        if name != self._name:
            return None
        loader = _Loader(name, str(self._path))
        loader.mutant = self.mutant
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


def mutated(mutant: Mutant, source: str) -> str:
    """Return a source with the mutant's change.

    Raises:
        ValueError: its place is not there, or more than once.
    """
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.module} has {mutant.old!r} {found} times; expected once")
    return source.replace(mutant.old, mutant.new)


def run_one(mutant: Mutant | None, root: Path) -> int:
    """Run the tests in this process, which is for one mutant; returns pytest's exit code."""
    names = (
        TESTS[mutant.module]
        if mutant
        else dict.fromkeys(n for some in TESTS.values() for n in some)
    )
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant, root))
        # Before pytest has a finder of its own for the package, since that has a plugin.
        importlib.import_module(f"cqrs_celery.messages.{mutant.module}")
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "--no-header"]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *(f"tests/unit/test_{name}.py" for name in names)]))


class Program(NamedTuple):
    """A table of mutants, and how the tests are run for one.

    Attributes:
        module: what is run in the process of a mutant.
        mutants: the table.
        run_one: runs the tests; for None, without any mutant.
    """

    module: str
    mutants: Sequence[Mutant]
    run_one: Callable[[Mutant | None, Path], int]


def fate(program: str, number: int | None, root: Path) -> tuple[bool, str, float]:
    """Return whether the tests have noticed a mutant, which of them did, and the seconds."""
    began = time.monotonic()
    one = "-1" if number is None else str(number)
    command = [sys.executable, "-m", program, "--one", one]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True, "no end within the time", time.monotonic() - began
    output = done.stdout + done.stderr
    failed = re.search(
        r"^(?:FAILED|ERROR) (?:tests/(?:unit|integration)/)?(\S+)", output, re.MULTILINE
    )
    if done.returncode and not failed:
        raise RuntimeError(f"the tests of mutant {number} did not run:\n{output[-2000:]}")
    return failed is not None, failed[1] if failed else "", time.monotonic() - began


def run_program(program: Program, arguments: Sequence[str] | None, description: str) -> int:
    """Run the tests for each mutant of a table; returns 0 if all were noticed."""
    parser = argparse.ArgumentParser(prog=f"python -m {program.module}", description=description)
    parser.add_argument("--one", type=int, help="run the tests for this mutant; -1 for none")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    if options.one is not None:
        return program.run_one(None if options.one < 0 else program.mutants[options.one], root)
    is_noticed, what, _ = fate(program.module, None, root)
    if is_noticed:
        sys.stderr.write(f"error: the tests fail without any mutant: {what}\n")
        return 1
    survivors = 0
    with ThreadPoolExecutor(options.processes) as pool:
        numbers = range(len(program.mutants))
        fates = pool.map(lambda number: fate(program.module, number, root), numbers)
        for number, (mutant, (is_noticed, what, seconds)) in enumerate(
            zip(program.mutants, fates, strict=True)
        ):
            survivors += not is_noticed
            old = " ".join(mutant.old.split())[:48]
            new = " ".join(mutant.new.split())[:36] or "nothing"
            told = what if is_noticed else "SURVIVED"
            sys.stdout.write(
                f"{number:3} {mutant.module:15} {old:48} -> {new:36} {seconds:5.1f} s  {told}\n"
            )
            sys.stdout.flush()
    count = len(program.mutants)
    sys.stdout.write(f"{count} mutants, {count - survivors} noticed\n")
    return 1 if survivors else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests for each mutant; returns 0 if all were noticed."""
    program = Program("tests.mutants", MUTANTS, run_one)
    return run_program(program, arguments, (__doc__ or "").partition("\n")[0])


if __name__ == "__main__":
    sys.exit(main())
