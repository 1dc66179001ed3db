"""Prints the named Debian packages and the library packages that they need, one line each.

Asks apt-cache, under whatever APT_CONFIG is in force. Follows only packages whose name starts with
"lib" (zlib1g aside): programs that a package depends on (an interpreter, a service manager) are not wanted here.
"""

import re
import subprocess
import sys

LIBRARY = re.compile(r"z?lib")
# Libraries whose users in these packages are graphical tools or log-in modules, which stay behind.
UNWANTED = re.compile(r"lib(gtk|gdk|pam|systemd-shared|adwaita)")


def dependencies(roots):
    """Package -> the packages it depends on, the first of each list of alternatives."""
    skip = [f"--no-{kind}" for kind in "recommends suggests conflicts breaks replaces enhances".split()]
    listing = subprocess.run(
        ["apt-cache", "depends", "--recurse", *skip, *roots], check=True, capture_output=True, text=True
    ).stdout
    graph, package, chosen = {}, None, False
    for line in listing.splitlines():
        if not line.startswith(" "):
            package, chosen = line, False
            graph.setdefault(package, [])
        elif found := re.match(r" ([ |])(?:Pre)?Depends: (\S+)", line):
            if not chosen:
                graph[package].append(found[2])
            chosen = found[1] == "|"
    return graph


def main():
    roots = sys.argv[1:]
    graph = dependencies(roots)
    wanted, pending = set(), list(roots)
    while pending:
        package = pending.pop()
        if package in wanted or package not in graph:
            continue
        wanted.add(package)
        pending += [name for name in graph[package] if LIBRARY.match(name) and not UNWANTED.match(name)]
    missing = set(roots) - wanted
    if missing:
        sys.exit("no such package: " + " ".join(sorted(missing)))
    print(*sorted(wanted), sep="\n")


main()
