"""The program that runs inside the sandbox's process: it locks itself in, then runs what it was given.

Started by :mod:`utils.evaluation.sandbox` as ``python -I -S -B jail.py TOKEN_FD``, never imported by it for anything
but its table of machines; it uses the standard library only. The order matters: limits first, then the file system
(Landlock), then privileges, last the system calls (seccomp), after which nothing can be undone.
"""

import ctypes
import json
import os
import platform
import struct
import sys
import sysconfig

READY = b"R"  # the lock is on; what follows on the token's pipe is written by the program's side of it
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same numbers on every machine
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
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
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "getpgid": (121, 155),
    "getsid": (124, 156), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "openat": (257, 56), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59),
    "preadv": (295, 69), "pwritev": (296, 70), "renameat2": (316, 276), "getrandom": (318, 278), "statx": (332, 291),
    "rseq": (334, 293), "faccessat2": (439, 439),
}
# Calls that are let through for some values of one argument only: numbers, which argument.
IOCTL, FCNTL, KILL, TGKILL, PRLIMIT = ((16, 29), 1), ((72, 25), 1), ((62, 129), 0), ((234, 131), 0), ((302, 261), 0)
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # a terminal, its width, bytes waiting, blocking, cloexec
FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags of the descriptor and of the file; not: locks, leases, signals
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


def lock_files(libc: ctypes.CDLL, scratch: str) -> None:
    """Writing beneath `scratch` only; reading there and in Python's and the system's libraries only."""
    version = landlock_version(libc)
    handled = HANDLED | (1 << 15 if version >= 5 else 0)
    network = 3 if version >= 4 else 0  # bind and connect by TCP
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals stay within
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attribute = struct.pack("=QQQ", handled, network, scoped)[:size]
    ruleset = _must(libc.syscall(LANDLOCK_CREATE, attribute, ctypes.c_size_t(size), ctypes.c_uint32(0)), "Landlock")
    libraries = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib"),
                 *(path for path in sys.path if os.path.exists(path)), "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo",
                 "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero"}
    for path in libraries:
        _allow(libc, ruleset, path, rights=READ)
    _allow(libc, ruleset, "/dev/null", rights=READ_FILE | WRITE_FILE)
    _allow(libc, ruleset, scratch, rights=SCRATCH)
    _must(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "Landlock could not be switched on")
    os.close(ruleset)


def drop_privileges(libc: ctypes.CDLL) -> None:
    """Give up every capability: for root this is what makes limits bind and other users' files private."""
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _must(libc.capset(header, none), "Capabilities could not be dropped")


def call_filter(machine: str, process: int) -> bytes:
    """The seccomp program, in the kernel's 8-byte instructions: refuse every call but those of the tables."""
    column, architecture = MACHINES[machine]
    load, equal, give = 0x20, 0x15, 0x06
    allow, refuse, missing, kill = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000

    def instruction(code: int, value: int, if_true: int = 0, *, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    program = [instruction(load, 4), instruction(equal, architecture, 1, if_false=0), instruction(give, kill),
               instruction(load, 0)]
    for numbers in CALLS.values():
        if numbers[column] is not None:
            program += [instruction(equal, numbers[column], 0, if_false=1), instruction(give, allow)]
    program += [instruction(equal, CLONE3, 0, if_false=1), instruction(give, missing)]
    conditions = ((IOCTL, IOCTLS), (FCNTL, FCNTLS), (KILL, (process,)), (TGKILL, (process,)), (PRLIMIT, (0,)))
    for (numbers, argument), values in conditions:
        # The kernel reads these arguments as 32 bits, so their lower half is all there is to compare.
        tests = [instruction(load, 16 + 8 * argument)]
        for value in values:
            tests += [instruction(equal, value, 0, if_false=1), instruction(give, allow)]
        tests += [instruction(give, refuse)]
        program += [instruction(equal, numbers[column], 0, if_false=len(tests)), *tests]
    return b"".join([*program, instruction(give, refuse)])


def lock_calls(libc: ctypes.CDLL) -> None:
    """No network, no further process or thread, no signal to others, no change of rights, no program started."""
    program = ctypes.create_string_buffer(call_filter(platform.machine(), os.getpid()))
    length = (len(program) - 1) // 8
    filter_ = struct.pack("@HP", length, ctypes.addressof(program))
    _must(libc.prctl(PR_SET_SECCOMP, 2, filter_, 0, 0), "seccomp could not be switched on")


def lock(given: dict) -> None:
    """Everything that keeps the program in, in the only order that works."""
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "The end of the parent cannot be followed")
    if os.getppid() != given["parent"]:
        os._exit(1)  # it ended before we asked to end with it
    _must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "Privileges could not be frozen")
    lock_files(libc, given["scratch"])
    limit(given["limits"])
    drop_privileges(libc)
    lock_calls(libc)


def main(pipe: int) -> None:
    """Lock this process in, run the program that standard input describes, and tell `pipe` how far it came."""
    given = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.argv = ["program"]
    token, program, namespace = given["token"].encode(), given["program"], {"__name__": given["name"]}
    write = os.write  # the program may put anything in the module's place
    try:
        lock(given)
    except Exception as error:
        sys.exit(f"{error}")
    write(pipe, READY)
    exec(compile(program, "<program>", "exec", dont_inherit=True), namespace)
    write(pipe, token)


if __name__ == "__main__":
    main(int(sys.argv[1]))
