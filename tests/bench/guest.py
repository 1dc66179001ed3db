"""From the lines that tests/guest/in/bench.sh printed: the table, and the same as JSON.

What else a machine does comes and goes, and an emulated processor feels it twice. Disks are therefore compared within
a round, seconds apart, and of the rounds' ratios the median counts.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import report

TITLES = {
    "rr32": "4K random read, QD 32",
    "rw32": "4K random write, QD 32",
    "r128": "128K sequential read, QD 16",
    "w128": "128K sequential write, QD 16",
}
# In these bytes a second say more than requests a second.
LARGE = ("r128", "w128")
OURS = {"xts": "plain, aes-256-xts", "gcm": "zoned, aes-256-gcm, tags"}
PEERS = {"threads": "virtio-blk, aio=threads", "io_uring": "virtio-blk, aio=io_uring"}
WARNING = "The guest's processor is emulated (TCG): the figures say nothing, their ratios within one run do."


def cells(lines):
    """Workload -> disk -> figure -> its value in each round."""
    found = {}
    for line in lines:
        match line.split():
            case ["cell", workload, _, disk, kib_s, iops]:
                figures = found.setdefault(workload, {}).setdefault(disk, {"iops": [], "mib_s": []})
                figures["iops"].append(float(iops))
                figures["mib_s"].append(float(kib_s) / 1024)
    return found


def spread(values):
    return [statistics.median(values), min(values), max(values)]


def ratios(disks):
    """Each of ours to the peer that is the faster: median, least and greatest of the rounds."""
    best = max((disks[name]["iops"] for name in PEERS), key=statistics.median)
    return {
        name: spread([ours / peer for ours, peer in zip(disks[name]["iops"], best, strict=True)])
        for name in OURS
        if name in disks
    }


def shown(disks, name, workload):
    if name not in disks:
        return "–"
    mib_s = statistics.median(disks[name]["mib_s"])
    iops = statistics.median(disks[name]["iops"]) / 1000
    return f"{mib_s:.0f} MiB/s, {iops:.1f} kIOPS" if workload in LARGE else f"{iops:.1f} kIOPS, {mib_s:.0f} MiB/s"


def table(figures):
    header = ["", *OURS.values(), *PEERS.values(), "xts : best virtio-blk", "gcm : best virtio-blk"]
    rows = []
    for workload, disks in figures.items():
        ratio = ratios(disks)
        row = [shown(disks, name, workload) for name in (*OURS, *PEERS)]
        row += ["{:.2f} ({:.2f}–{:.2f})".format(*ratio[name]) if name in ratio else "–" for name in OURS]
        rows.append([TITLES[workload], *row])
    return report.table(header, rows)


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--load", type=float, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--versions", nargs="+", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    figures = cells(arguments.lines.read_text().splitlines())
    machine = {
        "note": WARNING,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load_before": arguments.load,
        "versions": arguments.versions,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }
    print(f"{WARNING}\n\n{table(figures)}\n")
    print(f"{', '.join(arguments.versions)}; {machine['cores']} cores of {machine['cpu']}, load before {arguments.load}")
    if arguments.output:
        whole = {"machine": machine, "seconds": arguments.seconds, "figures": figures}
        whole["ratios"] = {workload: ratios(disks) for workload, disks in figures.items()}
        Path(arguments.output).write_text(json.dumps(report.rounded(whole), indent=1) + "\n")


main()
