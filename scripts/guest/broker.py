"""The broker that the virtual machines publish to: it keeps what it has acknowledged."""
import json
import socket
import struct
import threading


class Broker:
    """As much of an MQTT 3.1.1 broker as the agent asks for. Records, then acknowledges."""

    def __init__(self):
        self.received = []  # CloudEvents in the order of their PUBACKs
        self.ids = set()
        self.reachable = True
        self.connections = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            if not self.reachable:
                connection.close()
                continue
            self.connections.add(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def leave(self):
        self.reachable = False
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve(self, connection):
        stream = connection.makefile("rb")
        try:
            while packet := self.read(stream):
                self.answer(connection, *packet)
        except OSError:
            pass
        self.connections.discard(connection)
        connection.close()

    @staticmethod
    def read(stream):
        if not (head := stream.read(1)):
            return None
        length = shift = 0
        while True:
            if not (byte := stream.read(1)):
                return None
            length |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                break
        body = stream.read(length)
        return (head[0], body) if len(body) == length else None

    def answer(self, connection, head, body):
        kind = head >> 4
        if kind == 1:  # CONNECT
            connection.sendall(b"\x20\x02\x00\x00")
        elif kind == 3:  # PUBLISH
            topic = struct.unpack_from(">H", body)[0]
            at = 2 + topic
            if head & 0b0110:
                packet = body[at:at + 2]
                at += 2
            if b"/events/" in body[2:2 + topic]:
                event = json.loads(body[at:])
                self.received.append(event)
                self.ids.add(event["id"])
            if head & 0b0110:
                connection.sendall(b"\x40\x02" + packet)
        elif kind == 8:  # SUBSCRIBE: one filter or more, each with its QoS
            at, granted = 2, b""
            while at < len(body):
                at += 2 + struct.unpack_from(">H", body, at)[0]
                granted += body[at:at + 1]
                at += 1
            connection.sendall(bytes([0x90, 2 + len(granted)]) + body[:2] + granted)
        elif kind == 12:  # PINGREQ
            connection.sendall(b"\xd0\x00")
