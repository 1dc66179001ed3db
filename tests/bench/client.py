"""What is asked of the backends: the workloads, and the clients that put them."""

import json
import os
import resource
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from backends import Failure, waits

# Seconds that a client may take beyond its run.
SLACK = 60
# Seconds for a client to connect and fall silent, and over which idleness is then watched.
SETTLE, WATCH = 2, 3
# Zones that take appends at once.
APPEND_ZONES = 8
PERCENTILES = (50, 99, 99.9)
GIB = 1 << 30


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    # fio's: randread, randwrite, read, write; or append, idle.
    kind: str
    block: int
    depth: int
    # What the client does until an answer comes: block (a guest with interrupts) or loop (one that polls).
    wait: str = "block"
    queues: int = 1
    # One pass over the whole disk instead of a time: a zoned disk takes each block only once.
    one_pass: bool = False
    # All of it on one core: what two queues on two cores are compared with where there are no more cores.
    one_core: bool = False


KIB = 1 << 10
WORKLOADS = [
    Workload("rr32", "4K random read, QD 32", "randread", 4 * KIB, 32),
    Workload("rw32", "4K random write, QD 32", "randwrite", 4 * KIB, 32),
    Workload("append32", "4K append, QD 32, 8 zones", "append", 4 * KIB, 32, one_pass=True),
    Workload("rr1", "4K random read, QD 1", "randread", 4 * KIB, 1),
    Workload("rr1poll", "4K random read, QD 1, client polls", "randread", 4 * KIB, 1, wait="loop"),
    Workload("rr32poll", "4K random read, QD 32, client polls", "randread", 4 * KIB, 32, wait="loop"),
    Workload("r128", "128K read, QD 16", "read", 128 * KIB, 16),
    Workload("w128", "128K write, QD 16", "write", 128 * KIB, 16, one_pass=True),
    Workload("rr32one", "4K random read, QD 32, 1 queue", "randread", 4 * KIB, 32, one_core=True),
    Workload("rr32two", "4K random read, QD 32 each of 2 queues", "randread", 4 * KIB, 32, queues=2),
    Workload("idle", "connected and idle", "idle", 4 * KIB, 1),
]
# On a disk; the others measure processors.
ON_DISK = ("rr32", "rw32", "append32", "rr1", "rr1poll", "rr32poll", "r128", "w128")
QUICK = ("rr32", "rw32", "rr1", "r128", "w128", "idle")


class Cores:
    """Who runs where. Cores that share their units with another count as one."""

    def __init__(self):
        seen, self.free = set(), []
        for core in sorted(os.sched_getaffinity(0)):
            siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
            unit = siblings.read_text() if siblings.exists() else core
            if unit not in seen:
                seen.add(unit)
                self.free.append(core)
        if len(self.free) < 2:
            raise Failure("two processor cores are needed: one for the client, one for the backend")

    def of(self, workload):
        """The client's cores and the backend's."""
        client, backend, *more = self.free
        roomy = len(more) >= 2
        if workload.queues == 2:
            return ([client, more[0]], [backend, more[1]]) if roomy else ([client, backend], [client, backend])
        if workload.one_core and not roomy:
            return [backend], [backend]
        return [client], [backend]


def suits(workload, backend):
    """Whether the backend can do this at all."""
    match workload.kind:
        case "randwrite":
            return not backend.zoned
        case "append":
            return backend.zoned
        case "idle":
            return backend.serves
    return backend.serves or workload.queues == 1 and not workload.one_core


def fio(backend, workload, cores, seconds, site):
    """fio's command line."""
    words = ["taskset", "-c", ",".join(map(str, cores)), site.tool("fio"), "--name=cell", "--output-format=json"]
    words += ["--thread", f"--bs={workload.block}", f"--iodepth={workload.depth}", f"--size={site.size}"]
    words += ["--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=" + ":".join(map(str, PERCENTILES))]
    if backend.serves:
        words += ["--direct=1", "--ioengine=libblkio", "--libblkio_driver=virtio-blk-vhost-user"]
        words += [f"--libblkio_path={backend.client_socket}", f"--libblkio_wait_mode={workload.wait}"]
    else:
        words += [f"--direct={int(site.o_direct)}", "--ioengine=io_uring", f"--filename={backend.image}"]
    if workload.kind == "idle":
        # A single request; then nothing until the end.
        return words + ["--rw=randread", "--thinktime=1h", "--time_based", f"--runtime={SETTLE + WATCH + SLACK}"]
    words += [f"--rw={workload.kind}", "--norandommap"]
    if not workload.one_pass:
        words.append("--time_based")
    # A zoned disk is written whole: reads shall find data everywhere.
    if not (workload.one_pass and (backend.zoned or not seconds)):
        words.append(f"--runtime={round(seconds * 1000)}ms")
    if workload.queues > 1:
        split = ",".join(map(str, cores))
        words += [f"--numjobs={workload.queues}", "--group_reporting", f"--cpus_allowed={split}"]
        words += ["--cpus_allowed_policy=split"]
    return words


def load(backend, operation, cores):
    """The command line of our own front-end."""
    words = ["taskset", "-c", ",".join(map(str, cores)), os.environ["LOAD"]]
    return words + ["--op", operation, "--socket", str(backend.socket)]


def append(backend, workload, cores):
    """The same to append until the disk is full."""
    words = load(backend, "append", cores) + ["--block", str(workload.block), "--depth", str(workload.depth)]
    return words + ["--zones", str(APPEND_ZONES), "--seconds", str(SLACK)]


def of_load(report, workload):
    """The same figures of a report of our own front-end."""
    return {
        "ios": report["requests"],
        "bytes": report["requests"] * workload.block,
        "iops": report["iops"],
        "mib_s": report["mib_s"],
        "p50": report["p50_us"],
        "p99": report["p99_us"],
        "p99.9": report["p999_us"],
    }


def run(words, seconds):
    """What the client prints, as JSON; None if that is nothing."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + SLACK)
    except subprocess.TimeoutExpired as hung:
        raise Failure(f"the client did not end: {' '.join(words)}") from hung
    if done.returncode != 0:
        raise Failure(f"{' '.join(words)}: {done.stderr.strip()[-400:]}")
    if not done.stdout:
        return None
    # Warnings may stand before the object.
    return json.loads(done.stdout[done.stdout.index("{") :])


def of_fio(report):
    """The figures of a report of fio: I/Os, bytes, I/Os and bytes a second, microseconds at each percentile."""
    job = report["jobs"][0]
    if job["error"]:
        raise Failure(f"fio ended with error {job['error']}")
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    spread = side["lat_ns"]["percentile"]
    return {
        "ios": side["total_ios"],
        "bytes": side["io_bytes"],
        "iops": side["iops"],
        "mib_s": side["bw_bytes"] / (1 << 20),
        **{f"p{p:g}": spread[f"{p:.6f}"] / 1000 for p in PERCENTILES},
    }


def watch_idle(watched, cores, site):
    """What each backend uses while a client is connected and asks for nothing; all at once, as they sleep."""
    workload = next(w for w in WORKLOADS if w.kind == "idle")
    clients = []
    try:
        for backend in watched:
            client_cores, backend_cores = cores.of(workload)
            backend.pin(backend_cores)
            words = fio(backend, workload, client_cores, None, site)
            clients.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(SETTLE)
        before = [(backend.processor_time(), waits(backend.process.pid)) for backend in watched]
        time.sleep(WATCH)
        after = [(backend.processor_time(), waits(backend.process.pid)) for backend in watched]
        if any(client.poll() is not None for client in clients):
            raise Failure("a client that was to be idle went away")
        memory = [backend.memory() for backend in watched]
    finally:
        for client in clients:
            client.terminate()
        for client in clients:
            client.wait()
    return {
        backend.name: {
            "cpu_percent": 100 * (ran - ran_before) / WATCH,
            "wakeups_s": (woken - woken_before) / WATCH,
            "memory_mib": used,
            "ready_ms": backend.ready_ms,
        }
        for backend, (ran_before, woken_before), (ran, woken), used in zip(watched, before, after, memory, strict=True)
    }


class Watch:
    """What ran on these cores: ours to measure, and everybody else's."""

    def __init__(self, backend, cores):
        self.backend, self.cores = backend, cores
        self.before = self.now()

    def now(self):
        """Seconds: of the clock, busy on the cores, of the backend, of clients that have ended."""
        lines = Path("/proc/stat").read_text().splitlines()
        columns = {line.split()[0]: [int(word) for word in line.split()[1:9]] for line in lines if line[:3] == "cpu"}
        # All but idle and waiting for a disk.
        ticks = sum(sum(columns[f"cpu{core}"]) - sum(columns[f"cpu{core}"][3:5]) for core in self.cores)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        served = self.backend.processor_time() if self.backend.serves else 0.0
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), served, ended.ru_utime + ended.ru_stime

    def end(self):
        """Seconds that the backend ran, and how much of a core others took."""
        clock, busy, served, client = (now - before for now, before in zip(self.now(), self.before, strict=True))
        return served, max(0.0, busy - served - client) / clock


def cell(backend, workload, cores, seconds, site):
    """One workload on one backend, once. Returns its figures."""
    client_cores, backend_cores = cores.of(workload)
    if backend.zoned and workload.one_pass:
        # What was written is not written again before its zone is empty.
        run(load(backend, "reset", client_cores), 0)
    backend.pin(backend_cores)
    watch = Watch(backend, {*client_cores, *backend_cores})
    if workload.kind == "append":
        figures = of_load(run(append(backend, workload, client_cores), seconds), workload)
    else:
        figures = of_fio(run(fio(backend, workload, client_cores, seconds, site), seconds))
    cpu, figures["others"] = watch.end()
    if backend.serves:
        figures["cpu_us_io"] = cpu * 1e6 / figures["ios"]
        figures["cpu_s_gib"] = cpu * GIB / figures["bytes"]
    return figures
