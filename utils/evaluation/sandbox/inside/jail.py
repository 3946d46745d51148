"""The lock that a process of the sandbox puts on itself, before the first line of what it runs.

The order matters: limits and the file system first (Landlock), then privileges, then the calls that take a path (which
the process outside answers: :mod:`utils.evaluation.sandbox.paths`), last all other system calls (seccomp), after which
nothing can be undone. It uses the standard library only.
"""

import _socket  # the module behind `socket`, without what that imports
import ctypes
import os
import struct

LISTENER, READY, REFUSED = b"L", b"R", b"E"  # the calls' listener comes along; the lock is on; it is not, and why
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every machine
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP = (317, 277)  # the call, by machine
SIGKILL = 9

# Landlock's rights on files, by the bit they stand at.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = (1 << bit for bit in (0, 1, 2, 3, 5, 8, 14))
HANDLED = (1 << 15) - 1  # every right of ABI 3; devices' ioctl joins at ABI 5
READ = READ_FILE | READ_DIR
SCRATCH = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE  # plain files only: no folders, links, pipes, devices

# What a Python program with one thread and its files needs; every other call is refused. Numbers: x86_64, aarch64.
CALLS = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "pause": (34, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "wait4": (61, 260), "uname": (63, 160), "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None), "unlink": (87, None),
    "readlink": (89, None), "umask": (95, 166), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "gettid": (186, 178),
    "time": (201, None), "futex": (202, 98), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "exit_group": (231, 94), "openat": (257, 56), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59),
    "preadv": (295, 69), "pwritev": (296, 70), "renameat2": (316, 276), "getrandom": (318, 278), "statx": (332, 291),
    "rseq": (334, 293), "faccessat2": (439, 439),
}
# Calls that take paths: for each path, which argument is the folder that it starts from (if any), and which the path.
PATH_CALLS = {
    "open": ((None, 0),), "stat": ((None, 0),), "lstat": ((None, 0),), "access": ((None, 0),), "chdir": ((None, 0),),
    "unlink": ((None, 0),), "readlink": ((None, 0),), "rename": ((None, 0), (None, 1)), "openat": ((0, 1),),
    "newfstatat": ((0, 1),), "statx": ((0, 1),), "faccessat": ((0, 1),), "faccessat2": ((0, 1),),
    "unlinkat": ((0, 1),), "readlinkat": ((0, 1),), "renameat": ((0, 1), (2, 3)), "renameat2": ((0, 1), (2, 3)),
}
# Calls that are let through for some values of one argument only: numbers, which argument, the values; None stands
# for the process's own number.
CONDITIONS = {
    "ioctl": ((16, 29), 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # terminal, width, waiting, flags
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # duplicate, flags; not: locks, leases, signals, a pipe's size
    "kill": ((62, 129), 0, (None,)), "tgkill": ((234, 131), 0, (None,)), "prlimit64": ((302, 261), 0, (0, None)),
    "getpgid": ((121, 155), 0, (0, None)), "getsid": ((124, 156), 0, (0, None)),
    "sched_getaffinity": ((204, 123), 0, (0, None)),
    # The system's clocks and one's own; a clock of another process would show whether it is there.
    "clock_gettime": ((228, 113), 0, tuple(range(12))), "clock_getres": ((229, 114), 0, tuple(range(12))),
    "clock_nanosleep": ((230, 115), 0, tuple(range(12))),
}
CLONE3 = 435  # answered with "not implemented", upon which the C library takes the older call, which is refused
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the numbers, the kernel's name of it


def landlock_version(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    return max(0, libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def _must(value: int, what: str) -> int:
    if value < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return value


def limit(limits: dict) -> None:
    """Limits of the process; each is hard, so that it cannot be raised again once the privileges are gone."""
    import resource  # where it does not exist, this file is only looked at

    mib = 2**20
    for kind, value in ((resource.RLIMIT_AS, limits["memory_mib"] * mib), (resource.RLIMIT_CPU, limits["cpu_seconds"]),
                        (resource.RLIMIT_FSIZE, limits["file_mib"] * mib), (resource.RLIMIT_NOFILE, 32),
                        (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (lowest, lowest))
    os.nice(10)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, *, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a path that this machine does not have needs no right
    if not os.path.isdir(path):
        rights &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
    rule = struct.pack("=Qi", rights, folder)
    _must(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"Landlock refused a rule for {path}")
    os.close(folder)


def lock_files(libc: ctypes.CDLL, given: dict) -> None:
    """Writing beneath the scratch folder only, if there is one; reading there and in the libraries given."""
    version = landlock_version(libc)
    handled = HANDLED | (1 << 15 if version >= 5 else 0)
    network = 3 if version >= 4 else 0  # bind and connect by TCP
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals stay within
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attribute = struct.pack("=QQQ", handled, network, scoped)[:size]
    ruleset = _must(libc.syscall(LANDLOCK_CREATE, attribute, ctypes.c_size_t(size), ctypes.c_uint32(0)), "Landlock")
    for path in given["readable"]:
        _allow(libc, ruleset, path, rights=READ)
    for path in given["listable"]:
        _allow(libc, ruleset, path, rights=READ_DIR)
    _allow(libc, ruleset, os.devnull, rights=READ_FILE | WRITE_FILE)
    if given["scratch"]:
        _allow(libc, ruleset, given["scratch"], rights=SCRATCH)
    _must(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "Landlock could not be switched on")
    os.close(ruleset)


def drop_privileges(libc: ctypes.CDLL) -> None:
    """Give up every capability: for root this is what makes limits bind and other users' files private."""
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _must(libc.capset(header, none), "Capabilities could not be dropped")


ALLOW, ASK, REFUSE, MISSING, KILL_IT = 0x7FFF0000, 0x7FC00000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000
LOAD, EQUAL, GIVE = 0x20, 0x15, 0x06  # of the kernel's 8-byte instructions


def _instruction(code: int, value: int, if_true: int = 0, *, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _each(numbers: list[int], answer: int) -> list[bytes]:
    """One answer to each of these calls, whose number is loaded."""
    return [part for number in numbers
            for part in (_instruction(EQUAL, number, 0, if_false=1), _instruction(GIVE, answer))]


def path_filter(machine: str) -> bytes:
    """The seccomp program that has the calls which take a path answered from outside."""
    column = MACHINES[machine][0]
    numbers = [CALLS[name][column] for name in PATH_CALLS if CALLS[name][column] is not None]
    return b"".join([_instruction(LOAD, 0), *_each(numbers, ASK), _instruction(GIVE, ALLOW)])


def call_filter(machine: str, process: int) -> bytes:
    """The seccomp program that refuses every call but those of the tables."""
    column, architecture = MACHINES[machine]
    numbers = [pair[column] for pair in CALLS.values() if pair[column] is not None]
    program = [_instruction(LOAD, 4), _instruction(EQUAL, architecture, 1, if_false=0), _instruction(GIVE, KILL_IT),
               _instruction(LOAD, 0), *_each(numbers, ALLOW), *_each([CLONE3], MISSING)]
    for call, argument, values in CONDITIONS.values():
        # The kernel reads these arguments as 32 bits, so their lower half is all there is to compare.
        allowed = [process if value is None else value for value in values]
        tests = [_instruction(LOAD, 16 + 8 * argument), *_each(allowed, ALLOW), _instruction(GIVE, REFUSE)]
        program += [_instruction(EQUAL, call[column], 0, if_false=len(tests)), *tests]
    return b"".join([*program, _instruction(GIVE, REFUSE)])


def _filter(program: bytes) -> tuple[bytes, object]:
    """The structure that the kernel takes, and what must live as long as it."""
    kept = ctypes.create_string_buffer(program)
    return struct.pack("@HP", len(program) // 8, ctypes.addressof(kept)), kept


def lock_paths(libc: ctypes.CDLL, machine: str, control: int) -> None:
    """Hand the calls that take a path to whoever holds the other end of the socket `control`."""
    structure, _kept = _filter(path_filter(machine))
    listener = _must(libc.syscall(SECCOMP[MACHINES[machine][0]], 1, 8, structure),
                     "The calls that take a path could not be handed over")
    channel = _socket.socket(fileno=control)
    channel.sendmsg([LISTENER], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", listener))])
    channel.detach()
    os.close(listener)  # who holds it answers: not we


def lock_calls(libc: ctypes.CDLL, machine: str) -> None:
    """No network, no further process or thread, no signal to others, no change of rights, no program started."""
    structure, _kept = _filter(call_filter(machine, os.getpid()))
    _must(libc.prctl(PR_SET_SECCOMP, 2, structure, 0, 0), "seccomp could not be switched on")


def _lock(given: dict, control: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "The end of the parent cannot be followed")
    if os.getppid() != given["parent"]:
        os._exit(1)  # it ended before we asked to end with it
    _must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "Privileges could not be frozen")
    lock_files(libc, given)
    limit(given["limits"])
    drop_privileges(libc)
    lock_paths(libc, given["machine"], control)
    lock_calls(libc, given["machine"])


def lock(given: dict, control: int) -> None:
    """Everything that keeps the program in, in the only order that works; returns when told to go on by `control`."""
    try:
        _lock(given, control)
    except Exception as error:
        os.write(control, REFUSED + f"{error}".encode())
        os._exit(1)
    os.write(control, READY)
    if not os.read(control, 1):
        os._exit(1)  # nobody answers our calls any more
    os.close(control)
