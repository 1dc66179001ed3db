"""What is measured: the daemon and its peers, each with an image of its own, and what they cost."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import zones

# Seconds for a backend to listen, and to end.
PATIENCE = 20
MIB = 1 << 20
# Virtqueues that every backend offers; the client takes one or two of them.
QUEUES = 2
# Parts of an image that its header and tags take at most, for one that data takes.
OVERHEAD = 1 / 16


class Failure(Exception):
    """Nothing could be measured; says why."""


@dataclass
class Site:
    """Where everything lies."""

    # Images, keys, sockets; goes away at the end.
    work: Path
    # fio, qemu-storage-daemon and qemu-img.
    tools: Path
    zonevault: str
    # Bytes of each disk.
    size: int
    # Of the zoned disk, as its daemon reads it: 64M.
    zone_size: str
    # Past the page cache, on a disk; otherwise through it, on a tmpfs.
    direct: bool
    # Whether the file system grants O_DIRECT; tmpfs does from Linux 6.6 on.
    o_direct: bool

    def tool(self, name):
        return str(self.tools / name)


def command(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def secret(path, data):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)


def allocate(path):
    """Gives a sparse file its space, so that writing measures writing."""
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def processor_time(pid):
    """Seconds that all threads of a process ran, those too that have ended (workers go with their client)."""
    # How Linux numbers the clock of another process: see clock_getcpuclockid(3).
    return time.clock_gettime((~pid << 3) | 2)


def waits(pid):
    """How often the threads of a process gave the processor up to wait."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end while it is looked at.
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return total


class Backend:
    """A process that serves an image at a socket."""

    ours = False
    # Written in order only, every place once: a zoned disk.
    zoned = False
    # A process that a client connects to; without, the client works on the file.
    serves = True

    def __init__(self, name, title, site):
        self.name, self.title, self.site = name, title, site
        self.image = site.work / f"{name}.img"
        self.socket = site.work / f"{name}.sock"
        self.client_socket = self.socket
        self.process = None
        # Milliseconds from the latest start until it listened.
        self.ready_ms = 0.0

    def create(self):
        raise NotImplementedError

    def arguments(self):
        raise NotImplementedError

    def start(self, cores):
        self.socket.unlink(missing_ok=True)
        log = open(self.site.work / f"{self.name}.log", "ab")
        pinned = ["taskset", "-c", ",".join(map(str, cores)), *self.arguments()]
        self.process = subprocess.Popen(pinned, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        begun = time.monotonic()
        deadline = begun + PATIENCE
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Failure(f"{self.name} does not listen; its log ends: {self.last_words()}")
            time.sleep(0.002)
        self.ready_ms = 1000 * (time.monotonic() - begun)

    def last_words(self):
        return (self.site.work / f"{self.name}.log").read_text(errors="replace")[-600:].strip()

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def pin(self, cores):
        """All its threads, also those that it has already."""
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            try:
                os.sched_setaffinity(int(task), cores)
            except ProcessLookupError:
                pass

    def processor_time(self):
        return processor_time(self.process.pid)

    def memory(self):
        """MiB of its own: the client's memory, which it maps, is not counted."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


class Zonevault(Backend):
    ours = True

    def __init__(self, name, title, site, options):
        super().__init__(name, title, site)
        self.options = options
        self.zoned = "--plain" not in options
        self.key = site.work / "key"
        if self.zoned:
            self.client_socket = site.work / f"{name}.client"
            zones.start(str(self.client_socket), str(self.socket))

    def create(self):
        if not self.key.exists():
            secret(self.key, os.urandom(64))
        self.image.unlink(missing_ok=True)
        size = f"{self.site.size // MIB}M"
        command(
            self.site.zonevault, "create", str(self.image), "--key-file", str(self.key), "--size", size, *self.options
        )
        allocate(self.image)

    def arguments(self):
        cache = "direct" if self.site.direct else "writeback"
        words = ["--socket", self.socket, "--key-file", self.key, "--queues", QUEUES, "--cache", cache]
        # The peer's own default: images that have their space keep it.
        words += ["--discard", "ignore"]
        return [self.site.zonevault, "serve", str(self.image), *map(str, words)]


class Qemu(Backend):
    """qemu-storage-daemon: its blocks taken from a file in one of three ways, in the clear or with LUKS."""

    def __init__(self, name, title, site, aio, luks):
        super().__init__(name, title, site)
        self.aio, self.luks = aio, luks
        self.image = site.work / ("luks.img" if luks else "raw.img")
        self.secret = site.work / "passphrase"

    def create(self):
        # The raw ways have one image in common.
        if self.image.exists():
            return
        if not self.luks:
            self.image.touch()
            os.truncate(self.image, self.site.size)
        else:
            secret(self.secret, b"a passphrase")
            # The image's derivation of the key is slow on purpose; nobody attacks this one.
            options = "key-secret=s,iter-time=10,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64"
            command(
                self.site.tool("qemu-img"), "create", "-q", "-f", "luks",
                "--object", f"secret,id=s,file={self.secret}", "-o", options,
                str(self.image), f"{self.site.size // MIB}M",
            )  # fmt: skip
        allocate(self.image)

    def arguments(self):
        # The way "native" takes nothing else than O_DIRECT; on a tmpfs, others are as fast with it as without.
        cache = f"cache.direct={'on' if self.site.o_direct else 'off'}"
        file = f"driver=file,node-name=file,filename={self.image},aio={self.aio},{cache},locking=off"
        disk = "driver=luks,key-secret=s" if self.luks else "driver=raw"
        place = f"addr.type=unix,addr.path={self.socket}"
        words = [self.site.tool("qemu-storage-daemon")]
        if self.luks:
            words += ["--object", f"secret,id=s,file={self.secret}"]
        return words + [
            "--blockdev", file, "--blockdev", f"{disk},node-name=disk,file=file",
            "--export", f"vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={QUEUES},{place}",
        ]  # fmt: skip


class File(Backend):
    """No backend at all: the client's own io_uring on the file. What is there to be reached without a disk between."""

    serves = False

    def __init__(self, name, title, site):
        super().__init__(name, title, site)
        self.image = site.work / "raw.img"

    def create(self):
        if not self.image.exists():
            self.image.touch()
            os.truncate(self.image, self.site.size)
            allocate(self.image)

    def start(self, cores):
        pass

    def pin(self, cores):
        pass


def all_of(site):
    qemu = "qemu-storage-daemon"
    native = site.o_direct
    backends = [
        # The front-end that appends goes on to the next zone while the end of the last one is in flight.
        Zonevault("gcm", "zonevault, zoned, aes-256-gcm with tags", site,
                  ["--zone-size", site.zone_size, "--max-open", "0", "--max-active", "0"]),  # fmt: skip
        Zonevault("xts", "zonevault, plain, aes-256-xts", site, ["--plain"]),
        Qemu("qsd-native", f"{qemu}, raw, aio=native", site, "native", False),
        Qemu("qsd-io_uring", f"{qemu}, raw, aio=io_uring", site, "io_uring", False),
        Qemu("qsd-threads", f"{qemu}, raw, aio=threads", site, "threads", False),
        Qemu("qsd-luks", f"{qemu}, LUKS aes-xts-plain64", site, "native" if native else "io_uring", True),
        File("file", "fio's io_uring on the file, no vhost", site),
    ]
    return [backend for backend in backends if native or backend.name != "qsd-native"]


def needed_space(size):
    """Bytes that all the images take: two of ours, raw, LUKS."""
    return int(4 * size * (1 + OVERHEAD))


def grants_o_direct(directory):
    path = directory / "o_direct"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT))
        return True
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
