"""Measures zonevault beside its peers, by fio over vhost-user: no virtual machine, nothing but the backends.

Every backend runs on a core of its own, the client on another. Each round takes every backend once, so that what else
the machine does falls on all alike; of the rounds the median counts, least and greatest stand beside it. Absolute
figures belong to one machine; what can be compared is a ratio within one run.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import backends
import client
import report
from backends import Failure, Site

HERE = Path(__file__).parent
# (rounds, seconds a cell) of a full run and of a quick one.
FULL, QUICK = (5, 3.0), (3, 0.5)
# MiB of each disk: as much as the default tag cache has room for the slots of.
SIZE = 1024
QUICK_BACKENDS = ("gcm", "xts", "qsd-native", "qsd-io_uring", "qsd-luks", "file")
TMPFS = "/dev/shm"
# A cell in which others took more of a core than this is done again, so often in a full run.
DISTURBED, ATTEMPTS = 0.1, 3


def options():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    names = [w.name for w in client.WORKLOADS]
    parser.add_argument("--quick", action="store_true", help="fewer of everything: under two minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds (default {FULL[0]})")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"seconds a cell (default {FULL[1]:g})")
    parser.add_argument(
        "--only", action="append", metavar="WORKLOAD", choices=names, help="this one; repeatable: " + ", ".join(names)
    )
    parser.add_argument("--backend", action="append", metavar="NAME", help="this one; repeatable: gcm, xts, qsd-native,"
                        " qsd-io_uring, qsd-threads, qsd-luks, file")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="MIB", help=f"size of each disk (default {SIZE})")
    parser.add_argument("--zone-size", default="64M", metavar="SIZE", help="of the zoned disk (default 64M)")
    parser.add_argument("--disk", metavar="DIR", help="images there, past the page cache, instead of on a tmpfs;"
                        " direct.json, .md and .svg instead of result")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="result.json, .md and .svg go there (default: they are not kept"
                        " unless everything was measured in full; then tests/bench)")  # fmt: skip
    parser.add_argument("--add", action="store_true", help="keep the workloads of an earlier result there")
    return parser.parse_args()


def first_line(path, key):
    lines = Path(path).read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")


def machine(site):
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout
    own = subprocess.run([site.zonevault, "--version"], capture_output=True, text=True).stdout
    return {
        "cpu": first_line("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": first_line("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "virtual": "hypervisor" in first_line("/proc/cpuinfo", "flags").split(),
        "versions": [f"{own.strip()} ({commit.strip()})", *(site.tools / "version").read_text().split()],
        "images": "on a disk, O_DIRECT" if site.direct else "on a tmpfs, page cache",
        "disk_mib": site.size >> 20,
        "zone_size": site.zone_size,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "load_before": os.getloadavg()[0],
    }


def stolen():
    """Ticks that a hypervisor kept for others, of all ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def median_of(rounds):
    """Each figure's median, least and greatest."""
    return {
        key: [statistics.median(values), min(values), max(values)]
        for key in rounds[0]
        for values in [[one[key] for one in rounds]]
    }


def fill(backend, cores, site):
    """Every block written once, in order: reads shall find data."""
    whole = next(w for w in client.WORKLOADS if w.name == "w128")
    client.of_fio(client.run(client.fio(backend, whole, cores.of(whole)[0], None, site), 0))


def calm_cell(backend, workload, cores, seconds, site, attempts):
    """The cell's figures from the attempt that others disturbed least; the first undisturbed one is enough."""
    tries = []
    while len(tries) < attempts and not any(one["others"] < DISTURBED for one in tries):
        tries.append(client.cell(backend, workload, cores, seconds, site))
    return min(tries, key=lambda one: one["others"])


def measure(chosen, workloads, cores, pace, site):
    """Workload -> backend -> figures."""
    rounds, seconds, attempts = pace
    results = {}
    for workload in workloads:
        suited = [backend for backend in chosen if client.suits(workload, backend)]
        if workload.kind == "idle":
            note(f"idle: {', '.join(backend.name for backend in suited)}")
            idle = client.watch_idle(suited, cores, site)
            results[workload.name] = {name: median_of([figures]) for name, figures in idle.items()}
            continue
        found = {backend.name: [] for backend in suited}
        for number in range(rounds):
            # Nobody is always first.
            for backend in suited[number % max(1, len(suited)) :] + suited[: number % max(1, len(suited))]:
                note(f"{workload.name}, round {number + 1} of {rounds}: {backend.name}")
                found[backend.name].append(calm_cell(backend, workload, cores, seconds, site, attempts))
        beside_file(found)
        results[workload.name] = {name: median_of(cells) for name, cells in found.items()}
    note("")
    return results


def beside_file(found):
    """Each backend's speed as a part of what the file gave in the same round: a disk is not as fast in every one."""
    for cells in found.values():
        for cell, file in zip(cells, found.get("file", []), strict=False):
            cell["to_file"] = cell["iops"] / file["iops"]


def note(text):
    """Where it is; on a terminal, in one line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
    elif text:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def pick(arguments, site):
    everyone = backends.all_of(site)
    wanted = arguments.backend or (QUICK_BACKENDS if arguments.quick else [b.name for b in everyone])
    unknown = set(wanted) - {backend.name for backend in everyone}
    if arguments.backend and unknown:
        raise Failure(f"no backend {', '.join(unknown)} here")
    usual = client.ON_DISK if arguments.disk else [w.name for w in client.WORKLOADS]
    names = arguments.only or (client.QUICK if arguments.quick else usual)
    workloads = [w for w in client.WORKLOADS if w.name in names]
    return [b for b in everyone if b.name in wanted], workloads


def prepared(arguments, work):
    size = (arguments.size or SIZE) << 20
    free = shutil.disk_usage(work).free
    if free < backends.needed_space(size):
        raise Failure(f"{work} has {free >> 20} MiB free; {backends.needed_space(size) >> 20} are needed (see --size)")
    tools = Path(os.environ["BENCH_TOOLS"])
    o_direct = backends.grants_o_direct(work)
    return Site(work, tools, os.environ["ZONEVAULT"], size, arguments.zone_size, bool(arguments.disk), o_direct)


def bench(arguments, work):
    site = prepared(arguments, work)
    chosen, workloads = pick(arguments, site)
    cores = client.Cores()
    rounds, seconds = QUICK if arguments.quick else FULL
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    pace = rounds, seconds, 1 if arguments.quick else ATTEMPTS
    result = {"machine": machine(site), "rounds": rounds, "seconds": seconds}
    result["backends"] = {b.name: {"title": b.title, "ours": b.ours, "serves": b.serves} for b in chosen}
    result["workloads"] = {w.name: {"title": w.title, "kind": w.kind, "block": w.block} for w in workloads}
    stolen_before, ticks_before = stolen()
    try:
        filled = set()
        for backend in chosen:
            note(f"filling {backend.name}")
            backend.create()
            backend.start(cores.of(workloads[0])[1])
            # Several backends serve the same raw image.
            if backend.image not in filled:
                fill(backend, cores, site)
                filled.add(backend.image)
        result["figures"] = measure(chosen, workloads, cores, pace, site)
    finally:
        for backend in chosen:
            backend.stop()
    stolen_after, ticks_after = stolen()
    share = 100 * (stolen_after - stolen_before) / max(1, ticks_after - ticks_before)
    result["machine"]["stolen_percent"] = round(share, 2)
    return result


def keep(result, arguments):
    """Writes the files, if these figures are to be kept."""
    whole = not (arguments.quick or arguments.only or arguments.backend or arguments.size)
    if not arguments.output and not whole:
        return
    directory = Path(arguments.output or HERE)
    directory.mkdir(parents=True, exist_ok=True)
    name = "direct" if arguments.disk else "result"
    path = directory / f"{name}.json"
    if arguments.add and path.exists():
        result = report.merged(json.loads(path.read_text()), result)
    path.write_text(json.dumps(report.rounded(result), indent=1) + "\n")
    (directory / f"{name}.md").write_text(report.markdown(result))
    (directory / f"{name}.svg").write_text(report.plot(result))
    print(f"written to {directory}: {name}.json, {name}.md, {name}.svg")


def main():
    arguments = options()
    # The end by a signal, too, ends the backends and removes the images.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with tempfile.TemporaryDirectory(prefix="zonevault-bench.", dir=arguments.disk or TMPFS) as work:
            result = bench(arguments, Path(work))
    except Failure as failure:
        note("")
        sys.exit(f"tests/bench/run: {failure}")
    print(report.markdown(result))
    keep(result, arguments)


main()
