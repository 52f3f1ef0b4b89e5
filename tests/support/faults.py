"""What can go wrong between a registry and its client: the faults that a `FaultProxy`'s rules inflict.

Offsets count from the beginning of the answer's body, which is not the blob's where a range was asked for.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from email.utils import formatdate
from time import time

from tests.support.answers import Answer, document, error
from tests.support.faulty_proxy import Exchange, Fault, Framing

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><h1>Welcome to the hotel</h1></body></html>\n"


# The connection.


def drop() -> Fault:
    """It is closed before any byte of an answer."""

    async def strike(exchange: Exchange) -> None:
        exchange.writer.close()

    return Fault("drop", strike)


def reset(after: int | None = None) -> Fault:
    """It is reset after so many bytes of the body; None: before the answer begins."""

    async def strike(exchange: Exchange) -> None:
        if after is not None:
            await exchange.send(await exchange.upstream(), upto=after)
        await exchange.reset()

    return Fault(f"reset({after})", strike)


def cut(after: int, framing: Framing = "length") -> Fault:
    """It is closed in an orderly way after so many bytes of the body, however the end of that is to be told."""

    async def strike(exchange: Exchange) -> None:
        await exchange.send(await exchange.upstream(), upto=after, framing=framing)
        exchange.writer.close()

    return Fault(f"cut({after}, {framing})", strike)


def stall(after: int | None = None) -> Fault:
    """It stays open and silent after so many bytes of the body; None: before the answer begins."""

    async def strike(exchange: Exchange) -> None:
        if after is not None:
            await exchange.send(await exchange.upstream(), upto=after)
        await exchange.stall()

    return Fault(f"stall({after})", strike)


def stall_in_headers() -> Fault:
    """It falls silent in the middle of the headers."""

    async def strike(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        await exchange.stall()

    return Fault("stall_in_headers", strike)


def refuse(seconds: float) -> Fault:
    """It is closed before any byte, and for so long no new one can be made."""

    async def strike(exchange: Exchange) -> None:
        exchange.proxy.refuse(seconds)
        exchange.writer.close()

    return Fault(f"refuse({seconds})", strike)


def hang_up(*, announced: bool) -> Fault:
    """It is closed after a good answer, with `Connection: close` if announced."""

    async def strike(exchange: Exchange) -> None:
        answer = await exchange.upstream()
        await exchange.send(answer.but({"Connection": "close"}) if announced else answer)
        exchange.writer.close()

    return Fault(f"hang_up(announced={announced})", strike)


def drip(pause: float, piece: int, *, ranged: bool = True) -> Fault:
    """The body comes in small pieces with pauses (seconds) in between; that of the whole blob, if it is not ranged."""

    async def strike(exchange: Exchange) -> None:
        await exchange.send(await exchange.upstream(ranged=ranged), pause=pause, piece=piece)

    return Fault(f"drip({pause}, {piece}, ranged={ranged})", strike)


def trickle_headers(pause: float) -> Fault:
    """The headers come a few bytes at a time."""

    async def strike(exchange: Exchange) -> None:
        answer = await exchange.upstream()
        await exchange.send_head(answer, pause=pause)
        exchange.writer.write(answer.body)
        exchange.sent = len(answer.body)

    return Fault(f"trickle_headers({pause})", strike)


def garbage() -> Fault:
    """Something answers, and not by HTTP."""

    async def strike(exchange: Exchange) -> None:
        exchange.writer.write(b"220 mail.example ESMTP ready\r\n")
        exchange.writer.close()

    return Fault("garbage", strike)


# The answer.


def answer(status: int, reason: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Fault:
    """This one, made up."""
    return _made(f"answer({status} {reason} {headers or ''})", lambda: Answer(status, reason, headers or {}, body))


def page(status: int, reason: str) -> Fault:
    """A web page, as a proxy or a hotel's network shows."""
    return answer(status, reason, {"Content-Type": "text/html; charset=utf-8"}, PAGE)


def refusal(status: int, reason: str, code: str, headers: Mapping[str, str] | None = None) -> Fault:
    """An error in the distribution-spec's form."""
    return _made(f"refusal({status} {code} {headers or ''})", lambda: error(status, reason, code).but(headers or {}))


def refusal_until(status: int, reason: str, seconds: float) -> Fault:
    """An error whose Retry-After is the date in so many seconds."""

    def make() -> Answer:
        date = formatdate(time() + seconds, usegmt=True)
        return document(status, reason, {}).but({"Retry-After": date})

    return _made(f"refusal_until({status}, {seconds})", make)


def redirect(location: str, status: int = 307) -> Fault:
    """To another place: `{storage}` and `{registry}` stand for address:port, `{path}` for the request's path."""

    async def strike(exchange: Exchange) -> None:
        proxy = exchange.proxy
        target = location.format(storage=proxy.storage, registry=proxy.host, path=exchange.path)
        await exchange.send(Answer(status, "Redirected", {"Location": target}))

    return Fault(f"redirect({location}, {status})", strike)


def corrupt(at: int) -> Fault:
    """One byte of the body is another one; if that is shorter, the last."""

    def change(answer: Answer) -> Answer:
        body = bytearray(answer.body)
        if body:  # of a HEAD there is none
            body[min(at, len(body) - 1)] ^= 0xFF
        return answer._replace(body=bytes(body))

    return _changed(f"corrupt({at})", change)


def headers(changes: Mapping[str, str | None]) -> Fault:
    """These in place of the true ones; None takes one away."""
    return _changed(f"headers({dict(changes)})", lambda answer: answer.but(changes))


def longer(count: int) -> Fault:
    """So many bytes more than the blob has, and a Content-Length that says so."""

    def change(answer: Answer) -> Answer:
        body = answer.body + bytes(count)
        return answer._replace(body=body).but({"Content-Length": str(len(body))})

    return _changed(f"longer({count})", change)


def shorter(count: int) -> Fault:
    """So many bytes fewer than the blob has, and a Content-Length that says so."""

    def change(answer: Answer) -> Answer:
        body = answer.body[:-count]
        return answer._replace(body=body).but({"Content-Length": str(len(body))})

    return _changed(f"shorter({count})", change)


def framed(framing: Framing) -> Fault:
    """A good answer without Content-Length."""

    async def strike(exchange: Exchange) -> None:
        await exchange.send(await exchange.upstream(), framing=framing)

    return Fault(f"framed({framing})", strike)


def compressed() -> Fault:
    """`Content-Encoding: gzip` around the body, which nobody had asked for."""

    def change(answer: Answer) -> Answer:
        body = gzip.compress(answer.body)
        return answer._replace(body=body).but({"Content-Encoding": "gzip", "Content-Length": str(len(body))})

    return _changed("compressed", change)


def mislabelled(encoding: str = "gzip") -> Fault:
    """The blob as it is, and a Content-Encoding that calls its own compression one of the way's."""
    return headers({"Content-Encoding": encoding})


def ignore_range() -> Fault:
    """200 and the whole blob, whatever was asked for."""

    async def strike(exchange: Exchange) -> None:
        await exchange.send(await exchange.upstream(ranged=False))

    return Fault("ignore_range", strike)


def refuse_range() -> Fault:
    """416 to a request with a Range."""

    async def strike(exchange: Exchange) -> None:
        if "range" in exchange.headers:
            await exchange.send(Answer(416, "Range Not Satisfiable", {"Content-Range": "bytes */*"}))
        else:
            await exchange.send(await exchange.upstream())

    return Fault("refuse_range", strike)


def shift_range(count: int) -> Fault:
    """206 with a Content-Range that begins so many bytes later than the bytes that follow it."""

    def change(answer: Answer) -> Answer:
        first, rest = answer.header("Content-Range").removeprefix("bytes ").split("-", 1)
        return answer.but({"Content-Range": f"bytes {int(first) + count}-{rest}"})

    return _changed(f"shift_range({count})", change)


def pass_through() -> Fault:
    """Nothing."""
    return _changed("pass_through", lambda answer: answer)


def _changed(name: str, change: Callable[[Answer], Answer]) -> Fault:
    async def strike(exchange: Exchange) -> None:
        await exchange.send(change(await exchange.upstream()))

    return Fault(name, strike)


def _made(name: str, make: Callable[[], Answer]) -> Fault:
    async def strike(exchange: Exchange) -> None:
        await exchange.send(make())

    return Fault(name, strike)
