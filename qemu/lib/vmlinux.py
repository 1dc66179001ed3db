"""vmlinux.py BZIMAGE OUT: the uncompressed ELF kernel out of a bzImage.

QEMU starts an ELF kernel directly (PVH); without hardware virtualisation that saves the seconds
that the kernel's own decompressor would take. The offsets are those of the x86 boot protocol.
"""

import lzma
import struct
import subprocess
import sys

SETUP_SECTS, HEADER_MAGIC, PAYLOAD = 0x1F1, 0x202, 0x248


def decompress(payload):
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the length, appended by the kernel's build.
        return subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE).stdout
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    sys.exit(f"kernel payload starts with {payload[:6].hex()}: a compression not known here")


def main():
    image = open(sys.argv[1], "rb").read()
    if image[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        sys.exit(f"{sys.argv[1]} is no bzImage")
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTS] or 4) + 1) * 512 + offset
    kernel = decompress(image[start : start + length])
    if not kernel.startswith(b"\x7fELF"):
        sys.exit(f"{sys.argv[1]} holds no ELF kernel")
    with open(sys.argv[2], "wb") as out:
        out.write(kernel)


main()
