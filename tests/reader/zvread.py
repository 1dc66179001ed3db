#!/usr/bin/env python3
"""Reads a zonevault image with none of zonevault's code.

Written from the format's documentation alone (the comments of src/format, src/secret.rs and
src/zone/state.rs), with OpenSSL's AES, SHA-2 and Argon2 by way of the package `cryptography`. So it
proves that the documentation suffices, and that what lies on disk is what it says. Reads only.

    zvread.py IMAGE --key-file FILE [--json]
    zvread.py IMAGE --key-file FILE --out DISK             the disk as the guest reads it
    zvread.py IMAGE --passphrase TEXT --zone 3 --out DATA  what zone 3 holds

Exit status: 0 all is sound; 3 usable, but a copy of something is damaged (see "damage");
1 not usable; 2 wrong usage.

A tool for tests: it takes passphrases as arguments and prints keys when asked to.
"""

import argparse
import hmac
import json
import struct
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

PAGE = 4096
HEADER_LEN = 512
PROTECTOR_SLOTS = 8
PROTECTORS_START = 2 * PAGE
RECORDS_START = 64 << 10
RECORD_LEN = 128
DATA_ALIGN = 64 << 10
MAX_TAG_SLOT = 64

HEADER = struct.Struct("<8sIIIIQQQ16sQQIIIIQQQIIIIQQ16s312x32s")
PROTECTOR = struct.Struct("<8sIIIIIIQ32s32s72s336x")
RECORD = struct.Struct("<BBHIQQQQQ32s16s32s")

KEY_LEN = {1: 32, 2: 64}
CIPHERS = {1: "aes-128-xts", 2: "aes-256-xts"}
HOST_MANAGED, PLAIN = 1, 2
MODELS = {HOST_MANAGED: "host-managed", PLAIN: "plain"}
OPEN_STATES = {1: "clean", 2: "open", 3: "in-doubt"}
PASSPHRASE, KEY_FILE = 1, 2
ZONE_STATES = {
    1: "not-wp", 2: "empty", 3: "implicit-open", 4: "explicit-open",
    5: "closed", 6: "full", 7: "read-only", 8: "offline",
}  # fmt: skip
NOT_WP, READ_ONLY, OFFLINE = 1, 7, 8


class Refused(Exception):
    """Something of the image cannot be believed, and why."""


def crc32c(data):
    """CRC-32C (Castagnoli), RFC 3720 appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def hkdf(ikm, salt, info, length):
    return HKDF(hashes.SHA512(), length, salt, info).derive(ikm)


def require(condition, why):
    if not condition:
        raise Refused(why)


def up(value, step):
    return -(-value // step) * step


@dataclass
class Header:
    """What a verified header says; sizes in bytes."""

    uuid: bytes
    sequence: int
    cipher: int
    model: int
    block: int
    tag_slot: int
    disk: int
    zone: int
    capacity: int
    conventional: int
    max_open: int
    max_active: int
    state: int
    max_append: int
    epoch: int

    def zones(self):
        return -(-self.disk // self.zone)

    def is_conventional(self, zone):
        return self.model == PLAIN or zone < self.conventional

    def zone_bytes(self, zone):
        """Capacity of a zone, in bytes: of a plain disk's last zone, what is left of the disk."""
        if not self.is_conventional(zone):
            return self.capacity
        return min(self.zone, self.disk - zone * self.zone)

    def record_offset(self, copy, zone):
        area = up(self.zones() * RECORD_LEN, PAGE)
        return RECORDS_START + copy * area + zone * RECORD_LEN

    def extents(self):
        """(offset, length) of the data of every zone, then the end of the image."""
        at = up(self.record_offset(2, 0), DATA_ALIGN)
        places = []
        for zone in range(self.zones()):
            data = self.zone_bytes(zone)
            tags = -(-data // self.block) * self.tag_slot
            places.append((at, data))
            at += up(data, PAGE) + up(tags, PAGE)
        return places, at


def preamble(area):
    """Checks what means the same in every version; returns (uuid, sequence number)."""
    require(area[:8] == b"ZONEVLT\0", "no magic")
    version, length, crc = struct.unpack_from("<III", area, 8)
    require(length % 8 == 0 and 72 <= length <= PAGE, f"header length {length}")
    require(crc32c(area[:16] + bytes(4) + area[20:length]) == crc, "wrong CRC")
    require(version == 1, f"version {version}")
    require(length == HEADER_LEN, f"header length {length}")
    require(area[20:24] == bytes(4), "reserved bytes in use")
    incompatible = struct.unpack_from("<Q", area, 40)[0]
    require(incompatible == 0, f"unknown features {incompatible:#x}")
    return area[48:64], struct.unpack_from("<Q", area, 64)[0]


def verify_header(area, volume_key, copy):
    """The header in `area`, after its MAC was found to be right."""
    volume, sequence = preamble(area)
    key = hkdf(volume_key, volume, b"zonevault 1 header mac" + volume, 64)
    covered = area[:16] + bytes(4) + area[20:480]
    mac = hmac.digest(key, covered, "sha256")
    require(hmac.compare_digest(mac, area[480:512]), "wrong MAC")
    field = HEADER.unpack(area[:HEADER_LEN])
    if field[5] == 0 and field[6] == 0:
        require(not any(area[168:480]), "reserved bytes in use")
        require(not any(area[HEADER_LEN:]), "bytes behind the header")
    require(sequence % 2 == copy, "sequence number of the other copy")
    header = Header(volume, sequence, *field[11:24])
    require(header.cipher in CIPHERS, f"cipher {header.cipher}")
    require(header.model in MODELS, f"model {header.model}")
    require(header.state in OPEN_STATES, f"state {header.state}")
    require(header.block in (512, 4096), f"block size {header.block}")
    require(header.tag_slot <= MAX_TAG_SLOT, f"tag slot of {header.tag_slot} bytes")
    require(0 < header.zone and 0 < header.disk, "no zones")
    require(0 < header.capacity <= header.zone, "capacity beyond the zone")
    require(header.conventional <= header.zones(), "too many conventional zones")
    return header


def unwrap(slot, number, volume, kind, secret):
    """The volume key from a protector slot, or None if it is free, of another kind or not ours."""
    if not any(slot):
        return None
    magic, crc, its_kind, memory, passes, lanes, _, _, _, salt, wrapped = PROTECTOR.unpack(
        slot[:HEADER_LEN]
    )
    require(magic == b"ZVPROTEC", "no magic")
    require(crc32c(slot[:8] + bytes(4) + slot[12:HEADER_LEN]) == crc, "wrong CRC")
    require(not any(slot[176:]), "reserved bytes in use")
    if its_kind != kind:
        return None
    if kind == PASSPHRASE:
        secret = Argon2id(
            salt=salt, length=64, iterations=passes, lanes=lanes, memory_cost=memory
        ).derive(secret)
    bound = slot[:8] + bytes(4) + slot[12:104]
    info = b"zonevault 1 protector" + volume + struct.pack("<I", number) + bound
    try:
        return aes_key_unwrap(hkdf(secret, salt, info, 32), wrapped)
    except InvalidUnwrap:
        return None


class Image:
    """An unlocked image. `damage` lists what was not sound and had a sound twin, or had none."""

    def __init__(self, path, kind, secret):
        self.file = open(path, "rb")
        self.damage = []
        copies = [self.read(copy * PAGE, PAGE) for copy in (0, 1)]
        sound = {}
        for copy, area in enumerate(copies):
            try:
                sound[copy] = preamble(area)
            except Refused as why:
                self.damage.append(f"header {'AB'[copy]}: {why}")
        require(sound, "no header: " + "; ".join(self.damage))
        self.key = self.unlock({volume for volume, _ in sound.values()}, kind, secret)
        headers = []
        for copy in sound:
            try:
                headers.append(verify_header(copies[copy], self.key, copy))
            except Refused as why:
                self.damage.append(f"header {'AB'[copy]}: {why}")
        require(headers, "no header: " + "; ".join(self.damage))
        self.header = max(headers, key=lambda header: header.sequence)
        # The lost copy may have been the newer one.
        self.state = OPEN_STATES[self.header.state] if len(headers) == 2 else "open"
        self.places, end = self.header.extents()
        length = self.file.seek(0, 2)
        require(length >= end, f"image of {length} bytes, its header says {end}")
        self.zones = [self.load(zone) for zone in range(self.header.zones())]

    def read(self, offset, length):
        self.file.seek(offset)
        data = self.file.read(length)
        require(len(data) == length, f"the image ends before {offset + length}")
        return data

    def unlock(self, volumes, kind, secret):
        for number in range(PROTECTOR_SLOTS):
            slot = self.read(PROTECTORS_START + number * PAGE, PAGE)
            for volume in volumes:
                try:
                    key = unwrap(slot, number, volume, kind, secret)
                except Refused as why:
                    self.damage.append(f"protector {number}: {why}")
                    break
                if key is not None:
                    return key
        raise Refused("wrong key or passphrase")

    def load(self, zone):
        """The newer valid record of a zone; one whose records are both lost is offline."""
        found = []
        volume = self.header.uuid
        mac_key = hkdf(self.key, volume, b"zonevault 1 zone record mac" + volume, 64)
        for copy in (0, 1):
            raw = self.read(self.header.record_offset(copy, zone), RECORD_LEN)
            try:
                mac = hmac.digest(mac_key, volume + raw[:96], "sha256")
                require(hmac.compare_digest(mac, raw[96:]), "wrong MAC")
                found.append(self.decode(raw, zone))
            except Refused as why:
                self.damage.append(f"zone {zone}, record {'AB'[copy]}: {why}")
        if found:
            return max(found, key=lambda record: record["sequence"])
        return {"zone": zone, "state": "offline", "written": 0, "durable": 0, "salt": None}

    def decode(self, raw, zone):
        kind, state, flags, index, *numbers, salt, reserved, _ = RECORD.unpack(raw)
        sequence, written, durable, generation, epoch = numbers
        require(kind == 1 and flags == 0 and not any(reserved), "not of version 1")
        require(index == zone, f"record of zone {index}")
        require(state in ZONE_STATES, f"state {state}")
        conventional = self.header.is_conventional(zone)
        fits = conventional or state != NOT_WP
        if conventional:
            fits = state in (NOT_WP, READ_ONLY, OFFLINE)
        require(fits, f"state {ZONE_STATES[state]} in this type of zone")
        capacity = self.header.zone_bytes(zone) // self.header.block
        require(durable <= written <= capacity, "write pointers out of order")
        return {
            "zone": zone, "conventional": conventional, "state": ZONE_STATES[state],
            "written": written, "durable": durable, "capacity": capacity,
            "generation": generation, "sequence": sequence, "epoch": epoch,
            "salt": salt.hex(), "data_offset": self.places[zone][0],
        }  # fmt: skip

    def zone_key(self, zone, salt, generation):
        info = b"zonevault 1 zone key" + self.header.uuid
        info += struct.pack("<IQ", zone, generation)
        return hkdf(self.key, salt, info, KEY_LEN[self.header.cipher])

    def decrypt(self, key, zone, blocks):
        """The first `blocks` blocks of a zone. The tweak is the block's number in the zone."""
        size = self.header.block
        for block in range(blocks):
            tweak = block.to_bytes(16, "little")
            cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
            data = self.read(self.places[zone][0] + block * size, size)
            yield cipher.update(data) + cipher.finalize()

    def held(self, zone):
        """How many blocks of a zone hold data: of a conventional one any may, of others a prefix."""
        record = self.zones[zone]
        return record["capacity"] if record["conventional"] else record["written"]

    def dm_table(self, key, zone, device):
        """The line for dmsetup that maps a zone of the image on `device` to plaintext, key and all."""
        offset, length = self.places[zone]
        options = "" if self.header.block == 512 else " 2 sector_size:4096 iv_large_sectors"
        table = f"0 {length // 512} crypt aes-xts-plain64 {key.hex()} 0"
        return f"{table} {device} {offset // 512}{options}"

    def facts(self):
        header = self.header
        return {
            "uuid": str(uuid.UUID(bytes=header.uuid)),
            "sequence": header.sequence,
            "state": self.state,
            "cipher": CIPHERS[header.cipher],
            "model": MODELS[header.model],
            "block_size": header.block,
            "disk_size": header.disk,
            "zone_size": header.zone,
            "zone_capacity": header.capacity,
            "conventional": header.conventional,
            "max_open": header.max_open,
            "max_active": header.max_active,
            "max_append": header.max_append,
            "epoch": header.epoch,
            "damage": self.damage,
            "zones": self.zones,
        }


def arguments():
    parser = argparse.ArgumentParser(description="Read a zonevault image.")
    parser.add_argument("image")
    credential = parser.add_mutually_exclusive_group(required=True)
    credential.add_argument("--key-file", type=Path)
    credential.add_argument("--passphrase")
    parser.add_argument("--json", action="store_true", help="facts and zones as JSON")
    parser.add_argument("--zone", type=int, help="the zone that the options below mean")
    parser.add_argument("--out", type=Path, help="decrypt the zone (or the disk) into this file")
    parser.add_argument("--dm-table", metavar="DEVICE", help="print the zone as dm-crypt's table")
    parser.add_argument("--whole", action="store_true", help="decrypt past what was written")
    parser.add_argument("--salt", type=bytes.fromhex, help="take this, not the record's")
    parser.add_argument("--generation", type=int, help="take this, not the record's")
    args = parser.parse_args()
    extra = args.dm_table or args.whole or args.salt or args.generation is not None
    if args.zone is None and extra:
        parser.error("--dm-table, --whole, --salt and --generation need --zone")
    return args


def write_disk(image, path):
    """The disk as the guest reads it: zeroes where no zone holds data."""
    with open(path, "wb") as out:
        for zone, record in enumerate(image.zones):
            if record["state"] != "offline":
                key = image.zone_key(zone, bytes.fromhex(record["salt"]), record["generation"])
                out.seek(zone * image.header.zone)
                out.writelines(image.decrypt(key, zone, image.held(zone)))
        out.truncate(image.header.disk)


def read_zone(image, args):
    require(0 <= args.zone < len(image.zones), f"no zone {args.zone}")
    record = image.zones[args.zone]
    require(record["state"] != "offline", f"zone {args.zone} is offline")
    salt = args.salt or bytes.fromhex(record["salt"])
    generation = record["generation"] if args.generation is None else args.generation
    key = image.zone_key(args.zone, salt, generation)
    if args.dm_table:
        print(image.dm_table(key, args.zone, args.dm_table))
    if args.out:
        blocks = record["capacity"] if args.whole else image.held(args.zone)
        with open(args.out, "wb") as out:
            out.writelines(image.decrypt(key, args.zone, blocks))


def main():
    args = arguments()
    if args.key_file:
        kind, secret = KEY_FILE, args.key_file.read_bytes()
    else:
        kind, secret = PASSPHRASE, args.passphrase.encode()
    try:
        image = Image(args.image, kind, secret)
        if args.zone is not None:
            read_zone(image, args)
        elif args.out:
            write_disk(image, args.out)
    except Refused as why:
        print(f"zvread: {args.image}: {why}", file=sys.stderr)
        return 1
    if args.json:
        json.dump(image.facts(), sys.stdout, indent=1)
        print()
    elif args.zone is None and not args.out:
        for name, value in image.facts().items():
            if name not in ("zones", "damage"):
                print(f"{name:13} {value}")
        for record in image.zones:
            generation = record.get("generation", "lost")
            print(
                f"zone {record['zone']:4} {record['state']:13} written {record['written']:8}"
                f" durable {record['durable']:8} generation {generation}"
            )
    for what in image.damage:
        print(f"zvread: damage: {what}", file=sys.stderr)
    return 3 if image.damage else 0


if __name__ == "__main__":
    sys.exit(main())
