"""collect.py STAGE OUT PROGRAM... : copies programs from an unpacked package tree, with their libraries.

Programs go to OUT/bin, libraries to OUT/lib, the loader among them. Prints the names of what was
copied, one path a line, relative to OUT. A library that no package brought is an error.
"""

import os
import re
import shutil
import subprocess
import sys

LOADER = "ld-linux-x86-64.so.2"
PROGRAM_DIRS = ("usr/bin", "usr/sbin", "bin", "sbin")


def library_index(stage):
    """File name -> path, for every file in a library directory of the tree."""
    index = {}
    for top in ("usr/lib", "lib", "lib64", "usr/lib64"):
        for folder, _, names in os.walk(os.path.join(stage, top)):
            if "gconv" in folder:
                continue
            for name in names:
                index.setdefault(name, os.path.join(folder, name))
    return index


def needed(path):
    listing = subprocess.run(["readelf", "-d", path], capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", listing)


def find_program(stage, name):
    for folder in PROGRAM_DIRS:
        path = os.path.join(stage, folder, name)
        if os.path.lexists(path):
            real = os.path.realpath(path)
            # An absolute link means a place inside the tree.
            return real if os.path.exists(real) else os.path.join(stage, os.readlink(path).lstrip("/"))
    sys.exit(f"no program {name} in {stage}: the package that had it has changed")


def copy(source, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy(os.path.realpath(source), target)
    os.chmod(target, 0o755)


def main():
    stage, out, programs = sys.argv[1], sys.argv[2], sys.argv[3:]
    index = library_index(stage)
    copied, pending = set(), [LOADER]
    for name in programs:
        source = find_program(stage, name)
        copy(source, os.path.join(out, "bin", name))
        copied.add(f"bin/{name}")
        pending += needed(source)
        # Libraries that are opened by name at run time do not show among the needed ones.
        if name == "cryptsetup":
            pending.append("libgcc_s.so.1")
    while pending:
        name = pending.pop()
        if f"lib/{name}" in copied:
            continue
        if name not in index:
            sys.exit(f"no library {name} in {stage}: its package is not among those downloaded")
        copy(index[name], os.path.join(out, "lib", name))
        copied.add(f"lib/{name}")
        pending += needed(index[name])
    print(*sorted(copied), sep="\n")


main()
