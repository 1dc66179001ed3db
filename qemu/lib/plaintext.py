"""plaintext.py IMAGE MARKER: demands that a disk image holds MARKER nowhere and looks like noise.

Reads only what the sparse file really stores. Prints what it found, and the entropy of the 4 KiB
blocks that are not all zeroes: 8 bits a byte would be ideal noise, of which 4096 bytes measure 7.95.
"""

import collections
import math
import os
import statistics
import sys

BLOCK = 4096
# Below this the median block is no ciphertext; headers and zone records are too few to matter.
MINIMUM = 7.9
# Enough for a steady median; measuring every block would take longer than the rest of the demo.
SAMPLES = 4000
CHUNK = 16 << 20


def data_extents(file):
    """(start, end) of each stretch that the file system has stored."""
    size, end = os.fstat(file.fileno()).st_size, 0
    while end < size:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, end


def occurrences(file, extents, marker):
    found = 0
    for start, end in extents:
        kept = b""
        for at in range(start, end, CHUNK):
            file.seek(at)
            chunk = kept + file.read(min(CHUNK, end - at))
            found += chunk.count(marker)
            # One that lies across two chunks is found in the second; none is counted twice.
            kept = chunk[len(chunk) - len(marker) + 1 :]
    return found


def entropy(block):
    counts = collections.Counter(block).values()
    return -sum(n / len(block) * math.log2(n / len(block)) for n in counts)


def median_entropy(file, extents):
    places = [at for start, end in extents for at in range(start, end - BLOCK + 1, BLOCK)]
    measured = []
    for at in places[:: max(1, len(places) // SAMPLES)]:
        file.seek(at)
        block = file.read(BLOCK)
        if block.strip(b"\0"):
            measured.append(entropy(block))
    return statistics.median(measured)


def main():
    marker = sys.argv[2].encode()
    with open(sys.argv[1], "rb") as file:
        extents = list(data_extents(file))
        stored = sum(end - start for start, end in extents)
        if not stored:
            sys.exit("the image holds no data at all")
        found = occurrences(file, extents, marker)
        median = median_entropy(file, extents)
    print(f"{stored >> 20} MiB are stored; the guest's marker is in them {found} times")
    print(f"entropy of the stored blocks: {median:.3f} bits a byte (noise: 7.95)")
    if found:
        sys.exit("the image holds the guest's plaintext")
    if median < MINIMUM:
        sys.exit("the image does not look encrypted")


main()
