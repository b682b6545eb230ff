"""Honest answers, sent badly: resets, cuts, hangs, drips, bombs. Knows the socket below the HTTP server."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import SEEK_END
from typing import BinaryIO, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from heatpipe.sandbox.faults import Delivery, Place

BLOCK_BYTES = 1 << 20
PIECE_BYTES = 1 << 18
DRIP_BYTES = 4
UNASKED = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"series":[]}'


class Protocol(H11Protocol):
    """The HTTP server's side of a connection; tells the application which connection that is."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let every request on it know its transport."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class Written(Response):
    """An answer whose body is in a file: while it waits for its reader, one piece of it is in memory.

    Parameters
    ----------
    body : BinaryIO
        At its start; closed when the answer is sent.
    """

    def __init__(self, body: BinaryIO, status: int, headers: Mapping[str, str]) -> None:
        self._body = body
        self._size_bytes = body.seek(0, SEEK_END)
        body.seek(0)
        super().__init__(None, status, {"Content-Length": str(self._size_bytes), **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the server's call
        """Send it, as fast as it is read."""
        with self._body:
            await self._start(send, self._size_bytes)
            await self._copy(send, self._size_bytes)
            await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send, size_bytes: int | None) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        if size_bytes is not None:
            headers.append((b"content-length", str(size_bytes).encode()))
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})

    async def _copy(self, send: Send, size_bytes: int) -> None:
        """Send so many bytes of the body, and leave the answer open."""
        while size_bytes and (piece := self._body.read(min(PIECE_BYTES, size_bytes))):
            size_bytes -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})


class BadlySent(Written):
    """An answer that does not arrive as it should.

    Parameters
    ----------
    body : BinaryIO
        As it would be sent.
    delivery : Delivery
        How it is sent.
    place : Place
        How far it gets.
    """

    def __init__(
        self, body: BinaryIO, status: int, headers: Mapping[str, str], delivery: Delivery, place: Place
    ) -> None:
        super().__init__(body, status, headers)
        self._delivery = delivery
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as far as it is sent at all."""
        with self._body:
            await self._misbehave(scope, receive, send)

    async def _misbehave(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = cast("asyncio.Transport", scope["state"]["transport"])
        match self._delivery.name:
            case "reset":
                _reset(transport)
            case "hang":
                await _hung_up(receive, self._delivery.for_s)
                transport.close()
            case "cut":
                await self._start(send, self._size_bytes)
                await self._copy(send, self._place.cut(self._size_bytes))
                transport.close()
            case "drip":
                await self._drip(receive, send)
                return
            case "gzip cut":
                short = self._place.cut(self._size_bytes)
                await self._start(send, short)
                await self._copy(send, short)
                await send({"type": "http.response.body", "body": b""})
                return
            case "bomb":
                await self._swell(transport, send)
                return
            case "left over":
                await self._start(send, self._size_bytes)
                await self._copy(send, self._size_bytes)
                transport.write(UNASKED)
                transport.close()
            case "key encoding":
                await super().__call__(scope, receive, send)
                return
            case name:
                raise ValueError(f"the sandbox knows no way to send {name!r}")
        # The server takes the application's return for its answer's end: not before the connection is gone.
        await _hung_up(receive, None)

    async def _drip(self, receive: Receive, send: Send) -> None:
        """Send a few bytes every while, and in the end the rest at once."""
        await self._start(send, self._size_bytes)
        bits = max(0, (self._size_bytes - 1) // DRIP_BYTES)
        if self._delivery.for_s < bits * self._delivery.pause_s:
            bits = int(self._delivery.for_s / self._delivery.pause_s)
        for _ in range(bits):
            await self._copy(send, DRIP_BYTES)
            if await _hung_up(receive, self._delivery.pause_s):
                return
        await self._copy(send, self._size_bytes)
        await send({"type": "http.response.body", "body": b""})

    async def _swell(self, transport: asyncio.Transport, send: Send) -> None:
        await self._start(send, None)
        packed = self.headers.get("Content-Encoding") == "gzip"
        data = self._body.read()
        text = gzip.decompress(data) if packed else data
        for piece in _bomb(text, self._delivery.size_bytes) if packed else _padded(text, self._delivery.size_bytes):
            if transport.is_closing():
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # `send` waits for nobody while there is room in the socket
        await send({"type": "http.response.body", "body": b""})


def _reset(transport: asyncio.Transport) -> None:
    """End the connection with an RST: what is not sent yet is thrown away."""
    connection = transport.get_extra_info("socket")
    with suppress(OSError):  # whoever asked has gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _hung_up(receive: Receive, within_s: float | None) -> bool:
    """Wait until the client has hung up, no longer than so; return whether it has."""
    try:
        async with asyncio.timeout(within_s):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


def _padded(text: bytes, size_bytes: int) -> Iterator[bytes]:
    """Blow a JSON document up with white space: it stays the document that it is."""
    yield text[:-1]
    for _ in range(size_bytes // BLOCK_BYTES):
        yield b" " * BLOCK_BYTES
    yield text[-1:]


def _bomb(text: bytes, size_bytes: int) -> Iterator[bytes]:
    """Compress the padded document: a sound gzip stream, a thousandth as long. Needs the memory of one block."""
    yield gzip.compress(b"", mtime=0)[:10]
    blank = b" " * BLOCK_BYTES
    block = _deflated(blank)
    crc = zlib.crc32(text[:-1])
    yield _deflated(text[:-1])
    for _ in range(size_bytes // BLOCK_BYTES):
        crc = zlib.crc32(blank, crc)
        yield block
    crc = zlib.crc32(text[-1:], crc)
    length = len(text) + size_bytes // BLOCK_BYTES * BLOCK_BYTES
    last = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    yield last.compress(text[-1:]) + last.flush() + struct.pack("<II", crc, length % 2**32)


def _deflated(data: bytes) -> bytes:
    """Deflate a block that can stand after any other."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush(zlib.Z_FULL_FLUSH)
