#!/usr/bin/env python3
"""Reads a zonevault image with none of zonevault's code.

Written from the format's documentation alone (the comments of src/format, src/integrity,
src/secret.rs, src/volume/session.rs and src/zone/state.rs), with OpenSSL's AES, SHA-2 and Argon2 by
way of the package `cryptography`. So it proves that the documentation suffices, and that what lies
on disk is what it says. Reads only.

    zvread.py IMAGE --key-file FILE [--json]
    zvread.py IMAGE --key-file FILE --out DISK             the disk as the guest reads it
    zvread.py IMAGE --passphrase TEXT --zone 3 --out DATA  what zone 3 holds
    zvread.py IMAGE --key-file FILE --after-power-cut      with what tags prove behind the last flush

Exit status: 0 all is sound; 3 usable, but a block or a copy of something is damaged (see "damage");
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

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
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

HEADER = struct.Struct("<8sIIIIQQQ16sQQIIIIQQQIIIIQQ16s16x32s264x32s")
PROTECTOR = struct.Struct("<8sIIIIIIQ32s32s72s336x")
RECORD = struct.Struct("<BBHIQQQQQ32sI12s32s")
SLOT = struct.Struct("<QII16s")
BLOCK_AAD = struct.Struct("<20sI16sIIQQ")

GCM, XTS_CRC64 = 3, 4
KEY_LEN = {1: 32, 2: 64, GCM: 32, XTS_CRC64: 64}
CIPHERS = {1: "aes-128-xts", 2: "aes-256-xts", GCM: "aes-256-gcm", XTS_CRC64: "aes-256-xts+crc64"}
TAG_SLOT = {1: 0, 2: 0, GCM: 32, XTS_CRC64: 32}
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


def crc64_table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x9A6C9329AC4BC9B5 if byte & 1 else 0)
        yield byte


CRC64 = list(crc64_table())


def crc64(data):
    """CRC-64/NVMe, as NVM Express has it for its 64-bit guard."""
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC64[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFFFFFFFFFF


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
    boot: bytes
    root: bytes

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
        require(not any(area[168:184]) and not any(area[216:480]), "reserved bytes in use")
        require(not any(area[HEADER_LEN:]), "bytes behind the header")
    require(sequence % 2 == copy, "sequence number of the other copy")
    header = Header(volume, sequence, *field[11:26])
    require(header.cipher in CIPHERS, f"cipher {header.cipher}")
    require(header.model in MODELS, f"model {header.model}")
    require(header.state in OPEN_STATES, f"state {header.state}")
    require(header.block in (512, 4096), f"block size {header.block}")
    require(header.tag_slot == TAG_SLOT[header.cipher], f"tag slot of {header.tag_slot} bytes")
    require(0 < header.zone and 0 < header.disk, "no zones")
    require(0 < header.capacity <= header.zone, "capacity beyond the zone")
    require(header.conventional <= header.zones(), "too many conventional zones")
    sequential = header.model == HOST_MANAGED and header.conventional == 0
    require(sequential or not header.tag_slot, "tags in zones that are written in place")
    require(OPEN_STATES[header.state] == "clean" or not any(header.root), "root of an open disk")
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

    def __init__(self, path, kind, secret, accept_records=False):
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
        macs = []
        self.zones = [self.load(zone, macs) for zone in range(self.header.zones())]
        if self.state == "clean" and not accept_records:
            covered = self.header.uuid + b"records" + b"".join(macs)
            root = hmac.digest(self.mac_key(), covered, "sha256")
            sound = hmac.compare_digest(root, self.header.root)
            require(sound, "not the zone records with which the disk was closed")

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

    def mac_key(self):
        volume = self.header.uuid
        return hkdf(self.key, volume, b"zonevault 1 zone record mac" + volume, 64)

    def load(self, zone, macs):
        """The newer valid record of a zone; one whose records are both lost is offline."""
        found = []
        volume, mac_key = self.header.uuid, self.mac_key()
        for copy in (0, 1):
            raw = self.read(self.header.record_offset(copy, zone), RECORD_LEN)
            try:
                mac = hmac.digest(mac_key, volume + raw[:96], "sha256")
                require(hmac.compare_digest(mac, raw[96:]), "wrong MAC")
                found.append((self.decode(raw, zone), mac))
            except Refused as why:
                self.damage.append(f"zone {zone}, record {'AB'[copy]}: {why}")
        if found:
            newest, mac = max(found, key=lambda pair: pair[0]["sequence"])
            macs.append(mac)
            return newest
        macs.append(bytes(32))
        return {"zone": zone, "state": "offline", "written": 0, "durable": 0, "salt": None}

    def decode(self, raw, zone):
        kind, state, flags, index, *numbers, salt, skipped, reserved, _ = RECORD.unpack(raw)
        sequence, written, durable, generation, epoch = numbers
        require(kind == 1 and flags in (0, 1) and not any(reserved), "not of version 1")
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
            "generation": generation, "sequence": sequence, "epoch": epoch, "skipped": skipped,
            "leftovers": flags == 1,
            "salt": salt.hex(), "data_offset": self.places[zone][0],
        }  # fmt: skip

    def zone_key(self, zone, salt, generation):
        info = b"zonevault 1 zone key" + self.header.uuid
        info += struct.pack("<IQ", zone, generation)
        return hkdf(self.key, salt, info, KEY_LEN[self.header.cipher])

    def slot(self, zone, block):
        """The tag slot of a block."""
        offset, length = self.places[zone]
        return self.read(offset + up(length, PAGE) + block * SLOT.size, SLOT.size)

    def open(self, key, zone, block, generation):
        """A block of a zone, decrypted. The tweak of XTS is its number in the zone."""
        header = self.header
        data = self.read(self.places[zone][0] + block * header.block, header.block)
        if header.tag_slot:
            slot = self.slot(zone, block)
            epoch, _, flags, tag = SLOT.unpack(slot)
            require(epoch != 0, "no tag")
            require(flags == 0, "unknown flags")
            label = b"zonevault 1 block"
            place = (label, header.cipher, header.uuid, zone, flags, generation, block)
            aad = BLOCK_AAD.pack(*place)
            if header.cipher == GCM:
                try:
                    return AESGCM(key).decrypt(slot[:12], data + tag, aad)
                except InvalidTag:
                    raise Refused("wrong tag") from None
            crc = crc64(aad + slot[:12] + data).to_bytes(8, "little")
            require(tag == crc + bytes(8), "wrong CRC-64")
        tweak = block.to_bytes(16, "little")
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
        return cipher.update(data) + cipher.finalize()

    def decrypt(self, key, zone, blocks, generation):
        """The first `blocks` blocks of a zone. One that is damaged is noted, and comes as zeroes."""
        for block in range(blocks):
            try:
                yield self.open(key, zone, block, generation)
            except Refused as why:
                self.damage.append(f"zone {zone}, block {block}: {why}")
                yield bytes(self.header.block)

    def recover(self, header_damaged):
        """Moves each write pointer to where tags prove that it was before the power failed."""
        for zone, record in enumerate(self.zones):
            if record["state"] in ("offline", "not-wp"):
                continue
            # Nothing is written any more to a zone that is full or failed.
            closed = record["state"] in ("full", "read-only")
            end = record["written"] if closed else record["capacity"]
            epoch, skipped = self.header.epoch, 0
            if header_damaged or epoch == record["epoch"] or not any(self.header.boot):
                epoch, skipped = record["epoch"], record["skipped"]
            proven = record["durable"]
            while proven < end and self.proves(zone, record, proven, (epoch, proven + skipped)):
                proven += 1
            if record["state"] == "full":
                full = record["written"] < record["capacity"] or proven == end
            else:
                full = proven == record["capacity"] and record["state"] != "read-only"
            if full:
                record["state"] = "full"
            elif record["state"] != "read-only":
                record["state"] = "closed" if proven else "empty"
            record["written"] = record["durable"] = proven

    def proves(self, zone, record, block, stamp):
        """Whether a block was written under this stamp, and is whole."""
        if not self.header.tag_slot or stamp[0] == 0:
            return False
        if SLOT.unpack(self.slot(zone, block))[:2] != stamp:
            return False
        generation = record["generation"]
        key = self.zone_key(zone, bytes.fromhex(record["salt"]), generation)
        try:
            self.open(key, zone, block, generation)
        except Refused:
            return False
        return True

    def held(self, zone):
        """How many blocks of a zone hold data: of a conventional one any may, of others a prefix."""
        record = self.zones[zone]
        return record["capacity"] if record["conventional"] else record["written"]

    def dm_table(self, key, zone, device):
        """The line for dmsetup that maps a zone of the image on `device` to plaintext, key and all."""
        require(self.header.cipher != GCM, "dm-crypt has no such blocks")
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
            "records_root": header.root.hex(),
            "damage": self.damage,
            "zones": self.zones,
        }


def arguments():
    parser = argparse.ArgumentParser(description="Read a zonevault image.")
    parser.add_argument("image")
    credential = parser.add_mutually_exclusive_group(required=True)
    credential.add_argument("--key-file", type=Path)
    credential.add_argument("--passphrase")
    parser.add_argument(
        "--after-power-cut", action="store_true", help="recover zones as an opening would"
    )
    parser.add_argument(
        "--accept-records", action="store_true", help="also if a clean disk was closed with others"
    )
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
                blocks = image.decrypt(key, zone, image.held(zone), record["generation"])
                out.writelines(blocks)
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
            out.writelines(image.decrypt(key, args.zone, blocks, generation))


def main():
    args = arguments()
    if args.key_file:
        kind, secret = KEY_FILE, args.key_file.read_bytes()
    else:
        kind, secret = PASSPHRASE, args.passphrase.encode()
    try:
        image = Image(args.image, kind, secret, args.accept_records)
        if args.after_power_cut:
            image.recover(any(what.startswith("header") for what in image.damage))
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
