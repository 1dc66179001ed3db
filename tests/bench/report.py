"""Figures for people: tables in Markdown and a plot in SVG."""

from html import escape

OURS = ("gcm", "xts")
# Where requests are this large, bytes a second say more than requests a second.
LARGE = 64 << 10
# (least, greatest) further apart than this share of the median: the machine was not quiet.
NOISY = 0.15


def rounded(value):
    """Four digits are more than such a figure is good for."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def merged(old, new):
    """The new result, with what only the old one has."""
    result = {**old, **new}
    for part in ("backends", "workloads"):
        result[part] = {**old[part], **new[part]}
    result["figures"] = {
        workload: {**old["figures"].get(workload, {}), **new["figures"].get(workload, {})}
        for workload in [*old["figures"], *(w for w in new["figures"] if w not in old["figures"])]
    }
    return result


def measure_of(workload):
    """The figure that counts: key, divisor, unit."""
    return ("mib_s", 1, "MiB/s") if workload["block"] >= LARGE else ("iops", 1000, "kIOPS")


def spread(figure, divisor, digits):
    middle, least, greatest = (value / divisor for value in figure)
    noisy = " (!)" if greatest - least > NOISY * middle else ""
    return f"{middle:.{digits}f} ({least:.{digits}f}–{greatest:.{digits}f}){noisy}"


def plain(figures, key, digits):
    return f"{figures[key][0]:.{digits}f}" if key in figures else "–"


def table(header, rows):
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def busy_table(workload, cells, backends):
    key, divisor, unit = measure_of(workload)
    beside = [name for name in OURS if name in cells]
    header = ["", unit, "kIOPS" if unit == "MiB/s" else "MiB/s", "p50 us", "p99", "p99.9"]
    header += ["CPU us an I/O", "CPU s a GiB", "others %"]
    by_round = any("to_file" in figures for figures in cells.values())
    header += ["to the file, by round"] * by_round
    rows = []
    for name, figures in cells.items():
        other = plain(figures, "mib_s", 0) if key == "iops" else f"{figures['iops'][0] / 1000:.1f}"
        rows.append([
            f"**{backends[name]['title']}**" if backends[name]["ours"] else backends[name]["title"],
            spread(figures[key], divisor, 0 if divisor == 1 else 1),
            other,
            *(plain(figures, percentile, 0) for percentile in ("p50", "p99", "p99.9")),
            plain(figures, "cpu_us_io", 2),
            plain(figures, "cpu_s_gib", 2),
            f"{100 * figures['others'][0]:.0f}" if "others" in figures else "–",
            *([spread(figures["to_file"], 1, 2) if name != "file" and "to_file" in figures else ""] * by_round),
            *("" if name == one else f"{cells[one][key][0] / figures[key][0]:.2f}" for one in beside),
        ])  # fmt: skip
    return table(header + [f"{name} to it" for name in beside], rows)


def idle_table(cells, backends):
    rows = [
        [
            backends[name]["title"],
            plain(figures, "cpu_percent", 2),
            plain(figures, "wakeups_s", 1),
            plain(figures, "memory_mib", 1),
            plain(figures, "ready_ms", 0),
        ]
        for name, figures in cells.items()
    ]
    return table(["", "% of a core", "wake-ups a second", "memory, MiB", "ms to start"], rows)


def best_raw(cells):
    """The fastest way in which a peer serves the clear."""
    raw = [cell for name, cell in cells.items() if name.startswith("qsd-") and name != "qsd-luks"]
    return max(raw, key=lambda cell: cell["iops"][0], default=None)


def brief(cell, workload):
    if cell is None:
        return "–"
    key, divisor, _ = measure_of(workload)
    cpu = f" ({cell['cpu_us_io'][0]:.1f})" if "cpu_us_io" in cell else ""
    return f"{cell[key][0] / divisor:,.0f}{cpu}"


def summary(result):
    """A line a workload: ours, the peers, and the ratio."""
    header = ["", "aes-256-gcm, tags", "aes-256-xts, plain", "peer's best raw", "peer's LUKS", "file, no vhost"]
    rows = []
    for name, cells in result["figures"].items():
        workload = result["workloads"][name]
        if workload["kind"] == "idle" or not any(one in cells for one in OURS):
            continue
        # Appends are beside random writes: a disk without zones has nothing nearer.
        peers = result["figures"].get("rw32", {}) if workload["kind"] == "append" else cells
        raw, luks, file = best_raw(peers), peers.get("qsd-luks"), peers.get("file")
        ours = cells.get("gcm") or cells["xts"]
        ratios = [f"{ours['iops'][0] / peer['iops'][0]:.2f}" if peer else "–" for peer in (raw, luks, file)]
        shown = [brief(cell, workload) for cell in (cells.get("gcm"), cells.get("xts"), raw, luks, file)]
        rows.append([f"{workload['title']}, {measure_of(workload)[2]}", *shown, *ratios])
    return table([*header, "ours to raw", "to LUKS", "to file"], rows)


def scaling(result):
    """Two queues over one, where both were measured."""
    one, two = (result["figures"].get(name, {}) for name in ("rr32one", "rr32two"))
    return {name: two[name]["iops"][0] / one[name]["iops"][0] for name in two if name in one}


def conditions(result):
    m = result["machine"]
    virtual = ", virtual" if m["virtual"] else ""
    return [
        f"{m['cpu']}, {m['cores']} cores{virtual}; Linux {m['kernel']}; images {m['images']}, {m['disk_mib']} MiB each,"
        f" zones of {m['zone_size']}",
        ", ".join(m["versions"]),
        f"{m['date']}; median of {result['rounds']} rounds (least–greatest), {result['seconds']:g} s a cell;"
        f" load before {m['load_before']:.1f}, stolen by the hypervisor {m.get('stolen_percent', 0)} %",
    ]


def markdown(result):
    parts = ["\n".join(f"{line}  " for line in conditions(result)).rstrip()]
    parts.append(summary(result))
    parts.append(
        "Medians, and in brackets the backend's processor time an I/O in us. The peer is qemu-storage-daemon. Ours in"
        " the ratios is aes-256-gcm where it takes part. Appends stand beside random writes."
    )
    for name, cells in result["figures"].items():
        workload = result["workloads"][name]
        if not cells:
            continue
        parts.append(f"### {workload['title']}")
        idle = workload["kind"] == "idle"
        parts.append(
            idle_table(cells, result["backends"]) if idle else busy_table(workload, cells, result["backends"])
        )
    ratios = scaling(result)
    if ratios:
        parts.append(
            f"Two queues over one: {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())}. On a machine with"
            " fewer than four cores, one queue has one core for client and backend, two queues have two."
        )
    parts.append(
        "p50, p99, p99.9: latency as the client sees it. CPU: of the backend's process. others: how much of a core other"
        " programs took from those measured. (!): least and greatest differ by more than 15 % of the median."
    )
    return "\n\n".join(parts) + "\n"


# --- the plot: for each workload a group of bars ---

PANEL, LABEL, BAR, STEP, COLUMNS = 500, 205, 170, 20, 2
COLOURS = {True: "#0b6e4f", False: "#9aa5b1"}
INK, FAINT = "#1f2933", "#52606d"


def text(x, y, words, size=12, colour=INK, more=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'


def short(title):
    return title.replace("zonevault, ", "").replace("qemu-storage-daemon", "qemu-s-d").replace(" with tags", " + tags")


def panel(result, name, left, top):
    """The bars of one workload; the line on a bar goes from the least to the greatest."""
    workload, cells = result["workloads"][name], result["figures"][name]
    key, divisor, unit = measure_of(workload)
    scale = BAR / max(figures[key][2] for figures in cells.values())
    shapes = [text(left, top + 14, f"{workload['title']}: {unit}", 14, INK, ' font-weight="bold"')]
    for row, (backend, figures) in enumerate(cells.items()):
        y = top + 24 + row * STEP
        ours = result["backends"][backend]["ours"]
        middle, least, greatest = figures[key]
        shapes.append(text(left, y + 12, short(result["backends"][backend]["title"]), 11, INK if ours else FAINT))
        x = left + LABEL
        shapes.append(
            f'<rect x="{x}" y="{y}" width="{middle * scale:.1f}" height="{STEP - 5}" fill="{COLOURS[ours]}"/>'
        )
        shapes.append(
            f'<path d="M{x + least * scale:.1f} {y + 7.5}H{x + greatest * scale:.1f}" stroke="{INK}" stroke-width="1.5"/>'
        )
        words = f"{middle / divisor:,.0f}"
        if "cpu_us_io" in figures:
            words += f"  ({figures['cpu_us_io'][0]:.1f} us)"
        shapes.append(text(x + greatest * scale + 5, y + 12, words, 11, INK if ours else FAINT))
    return shapes, 24 + len(cells) * STEP + 16


def plot(result):
    """An SVG of all workloads that move data."""
    names = [n for n, cells in result["figures"].items() if cells and result["workloads"][n]["kind"] != "idle"]
    shapes, bottoms = [], [34] * COLUMNS
    for name in names:
        # Into the column that is shorter so far.
        column = bottoms.index(min(bottoms))
        drawn, height = panel(result, name, 16 + column * PANEL, bottoms[column])
        shapes += drawn
        bottoms[column] += height
    heading = "Bars: medians, with the backend's processor time an I/O; lines: least to greatest. Ours are green."
    shapes.insert(0, text(16, 20, heading, 12, FAINT))
    bottom = max(bottoms)
    for line in conditions(result):
        bottom += 15
        shapes.append(text(16, bottom - 8, line, 10, FAINT))
    width, height = 16 + COLUMNS * PANEL, bottom + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
