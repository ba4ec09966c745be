"""Programs that attack the sandbox they run in, each bounded by itself too: what works anyway is small and ends."""

from __future__ import annotations

FORK_BOMB = """
import os, sys, time
made = 0
for _ in range(int(sys.argv[1])):
    try:
        if os.fork() == 0:
            time.sleep(0.5)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made)
"""

MEMORY_BOMB = """
import os, sys, time
processes, mebibytes = int(sys.argv[1]), int(sys.argv[2])
for _ in range(processes - 1):
    if os.fork() == 0:
        break
try:
    block = bytearray(mebibytes * 2**20)
    for at in range(0, len(block), 4096):
        block[at] = 1
    print("filled", flush=True)
except MemoryError:
    print("refused", flush=True)
time.sleep(0.6 if processes > 1 else 0)
"""

HIDDEN_MEMORY = """
import ctypes, mmap, os
def attempt(name, action):
    try:
        action()
        print(name)
    except OSError:
        pass
def shmget():
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.shmget(0, 4096, 0o1600)
    if made < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmctl(made, 0, None)
attempt("memfd", lambda: os.memfd_create("x"))
attempt("shm", shmget)
def grow_stdin():
    os.ftruncate(os.open("/proc/self/fd/0", os.O_RDWR), 4096)
attempt("stdin", grow_stdin)
"""

SHARED_MEMORY = """
import mmap, sys, time
block = mmap.mmap(-1, int(sys.argv[1]) * 2**20)
for at in range(0, len(block), 4096):
    block[at] = 1
print("filled", flush=True)
time.sleep(0.5)
"""

MEMORY_UNDER_A_NAME = (
    """
import ctypes
ctypes.CDLL(None).prctl(15, b"RssAnon: 0 kB", 0, 0, 0)
"""
    + MEMORY_BOMB
)

LOOP = "while True: pass"

OUTPUT = """
import sys
for _ in range(int(sys.argv[1])):
    sys.stdout.write("x" * 2**20)
"""

SECRETS = """
import os, sys
harness, *paths = sys.argv[1:]
for path in [*paths, f"/proc/{harness}/environ", f"/proc/{os.getppid()}/environ", "/etc/shadow", "/etc/passwd"]:
    try:
        content = open(path, "rb").read(200)
        if content:
            print(path)
    except OSError:
        pass
for name, value in os.environ.items():
    if "secret" in value:
        print("environment")
for path in paths:
    try:
        if os.path.basename(path) in os.listdir(os.path.dirname(path)):
            print("listed", path)
    except OSError:
        pass
"""

OTHERS = """
import os
try:
    names = os.listdir("/proc")
except OSError:
    names = []
print(len([name for name in names if name.isdecimal()]))
"""

NETWORK = """
import ctypes, socket, sys
tcp, udp, abstract, path = sys.argv[1:]
def attempt(name, action):
    try:
        action()
        print(name)
    except OSError:
        pass
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", int(tcp)), 1))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"escaped", ("127.0.0.1", int(udp))))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + abstract))
attempt("path", lambda: socket.socket(socket.AF_UNIX).connect(path))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
def io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 4, ctypes.create_string_buffer(256)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring")
attempt("io_uring", io_uring)
a, b = socket.socketpair()
a.send(b"x")
"""

PLANT = """
import os, socket, sys
secret = sys.argv[1]
os.symlink(secret, "link.txt")
os.symlink(os.path.dirname(secret), "linked")
os.mkfifo("fifo.txt")
open("real.txt", "w").write("real")
os.mkdir("sub")
os.symlink(secret, "sub/link.txt")
open("sub/real.txt", "w").write("below")
open("big.bin", "wb").write(bytes(300_000))
try:
    os.link(secret, "hard.txt")
except OSError:
    open("one.txt", "w").write("1")
    try:
        os.link("one.txt", "hard.txt")
    except OSError:
        pass
try:
    os.mknod("device.txt", 0o20666, os.makedev(1, 5))
except OSError:
    pass
"""

DAEMON = """
import os, sys, time
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        pass
    if os.fork() == 0:
        if sys.argv[2] == "quiet":
            nowhere = os.open("/dev/null", os.O_RDWR)
            for fd in range(3):
                os.dup2(nowhere, fd)
        os.execv(sys.executable, [sys.executable, "-I", "-c", "import time; time.sleep(20)", sys.argv[1]])
    os._exit(0)
print("left", flush=True)
"""

DISK = """
import os, sys
total = 0
try:
    for number in range(int(sys.argv[1])):
        with open(f"part{number}", "wb") as file:
            for _ in range(4):
                total += file.write(b"x" * 2**18)
except OSError:
    pass
print(total, flush=True)
"""

EVERYWHERE = """
import os
wrote = []
for folder, folders, _ in os.walk("/"):
    if folder.count("/") >= 2 or folder in ("/proc", "/sys"):
        folders[:] = []
    try:
        name = os.path.join(folder, ".planted")
        open(name, "w").close()
        os.unlink(name)
        wrote.append(folder)
    except OSError:
        pass
print(*wrote)
"""

MANY_FILES = """
import sys, time
for number in range(int(sys.argv[1])):
    open(f"f{number}", "w").close()
print("made", flush=True)
time.sleep(0.3)
"""

SIGNALS = """
import os, resource, signal, sys
for name, action in {
    "signal": lambda pid: os.kill(pid, 0),
    "limit": lambda pid: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)),
    "priority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + 1),
    "memory": lambda pid: open(f"/proc/{pid}/mem", "rb"),
}.items():
    try:
        action(int(sys.argv[1]))
        print(name)
    except OSError:
        pass
"""

CHANGE_MODE = """
import os, sys
for name, action in {
    "mode": lambda path: os.chmod(path, 0o600),
    "times": lambda path: os.utime(path),
    "attribute": lambda path: os.setxattr(path, "user.x", b"1"),
}.items():
    try:
        action(sys.argv[1])
        print(name)
    except OSError:
        pass
"""

NAMESPACES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
for name, number, *arguments in (
    ("unshare", 272, CLONE_NEWUSER),
    ("clone", 56, CLONE_NEWUSER | 17, 0, 0, 0, 0),
    ("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0),
    ("keyctl", 250, 0, -3, 0),
    ("ptrace", 101, 0, 0, 0, 0),
    ("bpf", 321, 0, 0, 0),
):
    words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_ulong(a & 2**64 - 1) for a in arguments]
    got = libc.syscall(number, *words)
    if got == 0 and name == "clone":
        libc._exit(0)
    if got >= 0:
        print(name)
"""
