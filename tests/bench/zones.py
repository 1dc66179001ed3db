"""zones.py LISTEN CONNECT: lets a vhost-user client that knows no zones use a zoned disk.

A device that offered VIRTIO_BLK_F_ZONED does no I/O for a driver that did not accept it, and libblkio, which fio
measures through, knows no such feature. But reads, and writes in order, are the same requests with it and without.
This stands between the two sockets and accepts the feature in the client's name. It sees the few messages that set a
session up; requests go through shared memory and event descriptors and never pass here, so it costs them nothing.
"""

import array
import contextlib
import os
import selectors
import socket
import struct
import sys
import threading

F_ZONED = 1 << 17
SET_FEATURES = 2
# Request, flags, size of what follows.
HEADER = struct.Struct("=III")
MOST_DESCRIPTORS = 32


def receive(source):
    """One message and the descriptors that came with it; no message at the end of the session."""
    descriptors = array.array("i")
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * descriptors.itemsize)
    message, wanted = b"", HEADER.size
    while len(message) < wanted:
        part, ancillary, _, _ = source.recvmsg(wanted - len(message), room)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not part:
            return b"", descriptors
        message += part
        if len(message) == HEADER.size:
            wanted += HEADER.unpack(message)[2]
    return message, descriptors


def with_zones(message):
    request, flags, size = HEADER.unpack_from(message)
    if request != SET_FEATURES:
        return message
    features = int.from_bytes(message[HEADER.size :], "little") | F_ZONED
    return HEADER.pack(request, flags, size) + features.to_bytes(size, "little")


def forward(source, target, edit):
    """Passes one message on; false at the end of the session."""
    message, descriptors = receive(source)
    if message:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
        sent = target.sendmsg([edit(message)], rights)
        target.sendall(edit(message)[sent:])
    for descriptor in descriptors:
        os.close(descriptor)
    return bool(message)


def session(client, backend):
    with selectors.DefaultSelector() as ready:
        ready.register(client, selectors.EVENT_READ, lambda: forward(client, backend, with_zones))
        ready.register(backend, selectors.EVENT_READ, lambda: forward(backend, client, bytes))
        while all(key.data() for key, _ in ready.select()):
            pass


def serve(listener, connect):
    """One session after another, for ever."""
    while True:
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_UNIX) as backend:
            # Either side may go away, or not be there at all: for the other this is the end of the session.
            with contextlib.suppress(OSError):
                backend.connect(connect)
                session(client, backend)


def start(listen, connect):
    """Serves from a thread that ends with the program."""
    listener = socket.socket(socket.AF_UNIX)
    if os.path.exists(listen):
        os.unlink(listen)
    listener.bind(listen)
    listener.listen()
    thread = threading.Thread(target=serve, args=(listener, connect), daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    start(*sys.argv[1:]).join()
