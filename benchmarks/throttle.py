"""A link that limits each connection, as many registries and long ways do: a proxy in front of the registry."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

_PIECE = 64 << 10  # bytes


class Throttle:
    """Passes connections on to `host` (address:port), in a thread of its own, alive within its `with` block.

    Each connection carries at most `rate` bytes a second to the client, and what the client says arrives `delay`
    seconds later. `host` is then its own address.
    """

    def __init__(self, host: str, *, rate: float, delay: float) -> None:
        self._address, _, port = host.rpartition(":")
        self._port = int(port)
        self._rate = rate
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = started.result()
        self.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._address, self._port)
        await asyncio.gather(
            self._pass_on(reader, server_writer, self._delay, 0.0),
            self._pass_on(server_reader, writer, 0.0, _PIECE / self._rate),
            return_exceptions=True,
        )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, pace: float
    ) -> None:
        due = 0.0
        try:
            while piece := await reader.read(_PIECE):
                now = self._loop.time()
                due = max(due, now) + pace * len(piece) / _PIECE
                await asyncio.sleep(max(due - now, delay))
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()
