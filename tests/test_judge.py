"""Programs judged from another process: what crosses the pipe, and what a verdict rests on.

What tries to forge one is in ``utils/course/chaos/hostile.toml``.
"""

import os
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple

import pytest

from utils.errors import CourseError, UsageError
from utils.evaluation.sandbox import FunctionTests, Limits, judge, judge_many, run, sandbox_available
from utils.evaluation.sandbox.inside import plain

needs_sandbox = pytest.mark.skipif(not sandbox_available(), reason=sandbox_available().reason)
QUICK = Limits(wall_seconds=3, cpu_seconds=2)


def returning(expression: str, comparison: str) -> str:
    """The result where a function returns one expression and the tests compare it."""
    return judge(f"import collections\ndef f(*given):\n    return {expression}",
                 FunctionTests("f", f"def check(candidate):\n    assert {comparison}"), limits=QUICK).result


PLAIN = [None, True, False, 0, -5, 2**40, 0.1, -0.0, float("inf"), 1e-320, 2 + 3j, "", "\u00e9\0\ud800", b"\xff\0", [],
         [1, [2.5, None]], (), (1,), ((), []), {}, {1: "a", (2, "b"): [3]}, set(), {1, "a"}, frozenset({1}),
         {True: False}, ["list", "dict"], [["int", "ff"]]]


@pytest.fixture()
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_arrive_as_they_are(pipe, value):
    plain.send(pipe[1], plain.encode(value))
    found = plain.decode(plain.receive(pipe[0]))
    assert type(found) is type(value) and found == value and repr(found) == repr(value)


def test_long_ints_arrive_too(pipe):
    for value in (2**20_000, -(2**20_000)):
        plain.send(pipe[1], plain.encode(value))
        assert plain.decode(plain.receive(pipe[0])) == value


def test_subclasses_arrive_as_what_they_hold():
    class Liar(int):
        def __eq__(self, other):
            return True
        __hash__ = int.__hash__

    class Empty(list):
        def __iter__(self):
            return iter(())

    point = namedtuple("point", "x y")
    for value, held in ((Liar(3), 3), (Empty([1]), [1]), (point(1, 2), (1, 2)), (OrderedDict(a=1), {"a": 1}),
                        (Counter("aa"), {"a": 2}), (defaultdict(int, a=1), {"a": 1}),
                        (type("S", (str,), {"__str__": lambda self: "y"})("x"), "x")):
        found = plain.decode(plain.encode(value))
        assert type(found) is type(held) and found == held and held == found


def test_what_can_be_iterated_over_arrives_as_an_iterator():
    for value in (range(3), (x for x in range(3)), {0: 1, 1: 1, 2: 1}.keys(), map(int, "012")):
        found = plain.decode(plain.encode(value))
        assert found != [0, 1, 2] and tuple(found) == (0, 1, 2)


def _nested(kind: list, depth: int = 200) -> list:
    value = list(kind)
    for _ in range(depth):
        value = [*kind, value]
    return value


@pytest.mark.parametrize("value", [object(), print, int, ValueError(), [object()], {1: print}, iter(int, 1),
                                   _nested([])])
def test_other_values_have_no_form(value):
    with pytest.raises(plain.Odd):
        plain.encode(value)


@pytest.mark.parametrize("sent", [
    1.5, {}, {"passed": True}, [], [1], ["any"], ["dict", 1], ["dict", ["list"], 1], ["int", None], ["int", 5, 5],
    ["int", "zz"], ["float", 1], ["float"], ["bytes", "f"], ["set", ["list"]], [["list"]], ["complex", "x"],
    _nested(["list"])])
def test_odd_messages_stand_for_nothing(sent):
    with pytest.raises(plain.Odd):
        plain.decode(sent)


@pytest.mark.parametrize("text", [b"\xff\xff\xff\xff", b"\0\0\0\2{]", b"\0\0\0\1\xff",
                                  b"\0\1\x86\xa0" + b"[" * 100_000])
def test_noise_is_no_message(tmp_path, text):
    (tmp_path / "noise").write_bytes(text)
    with (tmp_path / "noise").open("rb", buffering=0) as noise, pytest.raises(plain.Odd):
        plain.receive(noise.fileno())


@pytest.mark.parametrize("text", [b"", b"\0\0", b"\0\0\0\0", b"\0\0\0\5[1"])
def test_a_closed_pipe_says_nothing(tmp_path, text):
    (tmp_path / "noise").write_bytes(text)
    with (tmp_path / "noise").open("rb", buffering=0) as noise:
        assert plain.receive(noise.fileno()) is None


@needs_sandbox
def test_a_right_program_passes_and_a_wrong_one_does_not():
    tests = FunctionTests("add", "def check(candidate):\n    for x, y in (2, 3), 'ab':\n"
                                 "        assert candidate(x, y) == x + y")
    found = judge_many([(f"def add(x, y):\n    print('work')\n    return {value}", tests) for value in ("x + y", "5")])
    assert [verdict.result for verdict in found] == ["passed", "failed: AssertionError"]
    assert [verdict.passed for verdict in found] == [True, False]
    assert 0 < found[0].seconds < 60
    assert judge_many([]) == []
    with pytest.raises(UsageError, match="Expected one worker or more, got 0"):
        judge_many([("", tests)], workers=0)


@needs_sandbox
@pytest.mark.parametrize("expression, comparison, result", [
    ("given", "candidate(1, [2], {3: 4.5}) == (1, [2], {3: 4.5})", "passed"),
    ("collections.Counter('aab')", "candidate() == {'a': 2, 'b': 1}", "passed"),
    ("(x for x in 'ab')", "tuple(candidate()) == ('a', 'b')", "passed"), ("[1]", "candidate() == (1,)", None),
    ("True", "candidate() is True", "passed"), ("1", "candidate() is True", None),
    ("1.0", "candidate() == 1", "passed"), ("float('nan')", "abs(candidate() - 1) < 1e-6", None),
    ("10**400", "abs(candidate() - 1.5) < 1e-6", "failed: OverflowError: int too large to convert to float"),
    ("object()", "candidate()", "failed: a value of the type object, which is not plain data"),
    ("'x' * 2**23", "candidate()", "failed: more than 4194304 bytes"),
    ("1 / 0", "candidate()", "failed: ZeroDivisionError: division by zero")])
def test_a_value_is_judged_as_what_it_holds(expression, comparison, result):
    assert returning(expression, comparison) == (result or "failed: AssertionError")


@needs_sandbox
def test_arguments_are_the_programs_own():
    """What a program does to them in place stays with it; nothing of the tests' own can be changed."""
    tests = "def check(candidate):\n    given = [3, 1]\n    candidate(given)\n    assert given == [3, 1]"
    assert judge("def f(x):\n    x.sort()", FunctionTests("f", tests)).passed


@needs_sandbox
def test_helpers_are_the_tests_own():
    tests = FunctionTests("f", "def check(candidate):\n    assert helper(candidate(1)) == 3 and candidate is f",
                  helpers="def helper(x):\n    return x + 1\ndef f(x):\n    pass")
    assert judge("def f(x):\n    return x + 1", tests).passed
    assert not judge("helper = lambda x: 3\ndef f(x):\n    return x", tests).passed


@needs_sandbox
def test_the_programs_process_holds_nothing_of_the_tests():
    """Neither in its objects nor on its heap, nor on any descriptor; the word is in the tests and their helpers."""
    word = "sword" + "fish"
    tests = FunctionTests("f", f"def check(candidate):\n    assert candidate(1) == {word!r}", helpers=f"x = {word!r}")
    program = ("import ctypes, gc, os, re, sys\nlibc = ctypes.CDLL(None)\nlibc.sbrk.restype = ctypes.c_void_p\n"
               "def f(x):\n    end = libc.sbrk(0)\n    texts = [ctypes.string_at(end - 2**18, 2**18)]\n"
               "    texts += [repr(o).encode() for o in gc.get_objects() if type(o) is dict and len(o) < 50]\n"
               "    for fd in range(32):\n        try:\n            os.set_blocking(fd, False)\n"
               "            texts.append(os.read(fd, 10**6))\n        except OSError: pass\n"
               "    frame = sys._getframe()\n    while frame:\n        texts.append(repr(frame.f_locals).encode())\n"
               "        frame = frame.f_back\n"
               "    found = {m[0] for text in texts for m in re.finditer(rb'swordfis[h]', text)}\n"
               "    return found.pop().decode() if found else 'nothing'")
    assert judge(program, tests).result == "failed: AssertionError"
    told = FunctionTests("f", tests.text.replace("candidate(1)", f"candidate({word!r})"))
    assert judge(program, told).passed  # it would have found the word, had it been there


@needs_sandbox
def test_the_tests_may_fail_to_take_a_value():
    """Ints whose hashes are all alike keep a dictionary busy for hours."""
    program = "def f():\n    return 0\nimport sys\nsys.modules['inside.plain'].encode = lambda value: KEYS\n"
    program += "KEYS = ['dict', *(part for i in range(1, 60_000) for part in (['int', hex(i * (2**61 - 1))], 0))]"
    tests = FunctionTests("f", "def check(candidate):\n    assert candidate()")
    assert judge(program, tests, limits=QUICK).result == "timed out"


@needs_sandbox
def test_both_processes_are_gone_and_descriptors_given_back(tmp_path):
    tests = FunctionTests("f", "def check(candidate):\n    candidate()")
    judge("def f(): pass", tests)
    before = len(os.listdir("/proc/self/fd"))
    for program in ("def f(): pass", "def f():\n    while True: pass", "import os\nos._exit(0)", "1 / 0", "def f(:"):
        judge(program, tests, limits=Limits(wall_seconds=0.5), beneath=tmp_path)
        assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_sandbox_nothing_is_judged(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    sandbox_available.cache_clear()
    try:
        with pytest.raises(CourseError, match="on Linux only"):
            run.judge("def f(): pass", FunctionTests("f", "def check(candidate):\n    pass"))
    finally:
        monkeypatch.undo()
        sandbox_available.cache_clear()
