"""Whom the client asks, when it asks again, and when it gives up. Its places are real servers on this machine."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web

from pullpipe.errors import NotFound, PullpipeError, TransferError, Unauthorized, UnexpectedAnswer, Unreachable
from pullpipe.oci import OCI_LAYER, Descriptor
from pullpipe.reference import Reference
from pullpipe.registry.client import Network, RegistryClient
from pullpipe.registry.hosts import Endpoint, origin
from store import Digest
from tests.cli.rig import digest_of, layout_of
from tests.conftest import PROJECT, require
from tests.support.hostile import Fault, FaultyRegistry
from tests.support.images import File, Layer
from tests.support.serving import serving

DATA = os.urandom(3 << 20)
BLOB = Descriptor(OCI_LAYER, Digest.of(DATA), len(DATA))
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module", name="layout")
def _layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and a blob beside it."""
    layout = layout_of(tmp_path_factory.mktemp("failover"), Layer([File("x", b"data")]))
    (layout / "blobs" / "sha256" / BLOB.digest.hex).write_bytes(DATA)
    return layout


class Asking:
    """A client of these hosts, mirrors first, the registry itself last; and what it said meanwhile."""

    def __init__(self, *hosts: str, tags: bool = False, retries: int = 3, timeout: float = 5) -> None:
        self.reference = Reference.parse(f"{hosts[-1]}/a/b:image")
        own = origin(self.reference, plain_http=True)
        mirrors = [
            Endpoint(host, host, "a/b", ("http",), namespace=self.reference.registry, tags=tags, mirror=True)
            for host in hosts[:-1]
        ]
        self.endpoints = [*mirrors, own]
        self.network = Network(retries=retries, timeout=timeout)
        self.notes: list[str] = []
        self.blamed: list[str] = []

    def blob(self, offset: int = 0, *, blob: Descriptor = BLOB) -> bytes:
        return asyncio.run(self.whole(offset, blob))

    def blob_twice(self) -> bytes:
        """As one does who finds the first bytes wrong."""

        async def main() -> bytes:
            async with self.client() as client:
                await read(client)
                self.blamed = client.doubt(BLOB.digest)
                return await read(client)

        return asyncio.run(main())

    async def whole(self, offset: int = 0, blob: Descriptor = BLOB) -> bytes:
        async with self.client() as client:
            return await read(client, offset, blob)

    def client(self) -> RegistryClient:
        return RegistryClient(self.reference, self.endpoints, self.network, self.notes.append)

    def resolve(self) -> Digest:
        async def main() -> Digest:
            async with self.client() as client:
                return await client.resolve("image")

        return asyncio.run(main())


async def read(client: RegistryClient, offset: int = 0, blob: Descriptor = BLOB) -> bytes:
    async with client.blob(blob, offset) as pieces:
        return b"".join([piece async for piece in pieces])


def blobs_asked(registry: FaultyRegistry) -> list[str]:
    """The ranges of the requests for blobs; empty for a whole one."""
    return [request.headers.get("Range", "") for request in registry.arrived("/blobs/")]


class TestMirrors:
    def test_blobs_come_from_the_mirror(self, layout: Path) -> None:
        with FaultyRegistry(layout) as mirror, FaultyRegistry(layout) as own:
            assert Asking(mirror.host, own.host).blob() == DATA
            assert (len(blobs_asked(mirror)), own.requests) == (1, [])

    def test_tags_do_not_unless_it_is_told(self, layout: Path) -> None:
        with FaultyRegistry(layout) as mirror, FaultyRegistry(layout) as own:
            assert str(Asking(mirror.host, own.host).resolve()) == digest_of(layout)
            assert mirror.requests == []
            own.requests.clear()
            assert str(Asking(mirror.host, own.host, tags=True).resolve()) == digest_of(layout)
            assert own.requests == []

    def test_it_is_told_whom_it_speaks_for(self, layout: Path) -> None:
        asked: list[str] = []

        async def main() -> None:
            async def handler(request: web.BaseRequest) -> web.Response:
                asked.append(request.query_string)
                return web.Response(body=DATA)

            async with serving(handler) as mirror:
                asking = Asking(mirror, "registry.test:444")
                async with (
                    RegistryClient(asking.reference, asking.endpoints) as client,
                    client.blob(BLOB, 0) as pieces,
                ):
                    assert b"".join([piece async for piece in pieces]) == DATA

        asyncio.run(main())
        assert asked == ["ns=registry.test:444"]

    def test_nobody_there(self, layout: Path) -> None:
        """At once to the next, and no second time to one that failed."""
        with FaultyRegistry(layout) as own:
            asking = Asking(NOWHERE, own.host)
            assert asking.blob_twice() == DATA
        assert [note for note in asking.notes if NOWHERE in note] == [
            f"cannot connect to {NOWHERE}: connection refused; asking {own.host}"
        ]

    @pytest.mark.parametrize(
        "fault", [Fault.NAME_UNKNOWN, Fault.HTML_ERROR, Fault.UNAUTHORIZED_WITHOUT_CHALLENGE, Fault.TOO_MANY_REQUESTS]
    )
    def test_one_that_cannot(self, layout: Path, fault: Fault) -> None:
        """Whatever it says, the registry itself may do better; nothing is waited for."""
        with FaultyRegistry(layout, {fault}) as mirror, FaultyRegistry(layout) as own:
            asking = Asking(mirror.host, own.host, tags=True)
            assert str(asking.resolve()) == digest_of(layout)
            own.requests.clear()
        assert not [note for note in asking.notes if "trying again" in note]

    def test_one_that_lacks_what_is_asked_for(self, layout: Path) -> None:
        """It may have other things, so it is asked again; that it lacks some is told once."""
        with FaultyRegistry(layout, {Fault.NAME_UNKNOWN}) as mirror, FaultyRegistry(layout) as own:
            asking = Asking(mirror.host, own.host)
            assert asking.blob_twice() == DATA
            assert len(blobs_asked(mirror)) == 2
        [note] = asking.notes
        assert re.fullmatch(rf"{mirror.host} has no blob .*; asking {own.host}", note)

    def test_one_that_breaks_off(self, layout: Path) -> None:
        """The rest comes from the next: no byte twice."""
        with FaultyRegistry(layout, {Fault.TRUNCATED_BLOB}) as mirror, FaultyRegistry(layout) as own:
            assert Asking(mirror.host, own.host).blob() == DATA
            assert blobs_asked(mirror) == [""]
            assert blobs_asked(own) == [f"bytes={len(DATA) // 2}-"]

    def test_one_that_lies(self, layout: Path) -> None:
        """When its bytes turn out to be wrong, the next place comes first, and it is known who gave them."""
        with FaultyRegistry(layout, {Fault.WRONG_BLOB}) as mirror, FaultyRegistry(layout) as own:
            assert Asking(mirror.host, own.host).blob() != DATA
            asking = Asking(mirror.host, own.host)
            assert asking.blob_twice() == DATA
            assert asking.blamed == [mirror.host]
            assert (len(blobs_asked(mirror)), len(blobs_asked(own))) == (2, 1)

    def test_a_wrong_manifest(self, layout: Path) -> None:
        """It does not have the digest; the registry's has."""

        async def main(asking: Asking) -> Digest:
            async with RegistryClient(asking.reference, asking.endpoints) as client:
                return (await client.document(digest_of(layout))).digest

        with FaultyRegistry(layout, {Fault.WRONG_MANIFEST}) as mirror, FaultyRegistry(layout) as own:
            assert str(asyncio.run(main(Asking(mirror.host, own.host)))) == digest_of(layout)

    def test_the_mirror_suffices_where_the_registry_cannot_be_reached(self, layout: Path) -> None:
        """Also when the mirror breaks off now and then."""
        with FaultyRegistry(layout, {Fault.TRUNCATED_BLOB}, times=2) as mirror:
            assert Asking(mirror.host, NOWHERE).blob() == DATA

    def test_what_all_of_them_said(self, layout: Path) -> None:
        """The registry's word is the last; the mirrors' troubles are told beside it."""
        with FaultyRegistry(layout, {Fault.HTML_ERROR}) as mirror, FaultyRegistry(layout, {Fault.NAME_UNKNOWN}) as own:
            with pytest.raises(NotFound, match=f"^{own.host} has no .*{mirror.host} answered 500.*; check the name$"):
                Asking(mirror.host, own.host, tags=True).resolve()
            assert len(own.requests) == 2  # HEAD, and GET for the reason

    def test_foreign_urls(self, layout: Path) -> None:
        """A layer that must not be pushed is had from where its descriptor says, without credentials."""
        with FaultyRegistry(layout) as elsewhere, FaultyRegistry(layout, {Fault.NAME_UNKNOWN}) as own:
            url = f"http://{elsewhere.host}/v2/x/blobs/{BLOB.digest}"
            assert Asking(own.host).blob(blob=BLOB._replace(urls=("http://127.0.0.1:1/", url))) == DATA
            with pytest.raises(NotFound):
                Asking(own.host).blob()

    @pytest.mark.parametrize(
        "url", ["http://[::1/x", "http://[zz]/x", "http://a..b/x", "http://host:99999/x", f"http://{'a' * 64}.test/x"]
    )
    def test_foreign_urls_that_there_cannot_be(self, layout: Path, url: str) -> None:
        """They are in nobody's way, and named where nobody else has the blob."""
        blob = BLOB._replace(urls=(url,))
        with FaultyRegistry(layout) as own:
            assert Asking(own.host).blob(blob=blob) == DATA
        says = re.escape(f"no such host: {url.split('/')[2]}")
        with FaultyRegistry(layout, {Fault.NAME_UNKNOWN}) as own, pytest.raises(PullpipeError, match=says):
            Asking(own.host).blob(blob=blob)

    def test_a_mirror_that_drips(self, layout: Path) -> None:
        """Each byte comes in time, and all of them in days."""

        async def drip(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = len(DATA)
            await response.prepare(request)
            for at in range(len(DATA)):
                await response.write(DATA[at : at + 1])
                await asyncio.sleep(0.05)
            return response

        async def main(own: str) -> list[str]:
            async with serving(drip) as mirror:
                asking = Asking(mirror, own, timeout=2)
                assert await asking.whole() == DATA
                return [note.replace(mirror, "mirror") for note in asking.notes]

        with FaultyRegistry(layout) as own:
            [note] = asyncio.run(main(own.host))
            assert re.fullmatch(f"mirror sends blob {BLOB.digest} byte by byte; asking {own.host}", note)
            assert [wanted for wanted in blobs_asked(own) if int(re.findall(r"\d+", wanted)[0]) > 0]

    def test_a_mirror_that_redirects_to_nowhere(self, layout: Path) -> None:
        async def astray(request: web.BaseRequest) -> web.Response:
            return web.Response(status=307, headers={"Location": "http://a..b/x"})

        async def main(own: str) -> bytes:
            async with serving(astray) as mirror:
                return await Asking(mirror, own).whole()

        with FaultyRegistry(layout) as own:
            assert asyncio.run(main(own.host)) == DATA


class TestAgain:
    @pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.HTML_ERROR])
    def test_a_registry_in_trouble(self, layout: Path, fault: Fault) -> None:
        with FaultyRegistry(layout, {fault}, times=2) as own:
            asking = Asking(own.host)
            assert str(asking.resolve()) == digest_of(layout)
        assert any(re.search(r"trying again in \d\.\d s \(1 of 3\)", note) for note in asking.notes)

    @pytest.mark.parametrize("fault", [Fault.TRUNCATED_BLOB, Fault.RESET_BLOB])
    def test_no_byte_twice(self, layout: Path, fault: Fault) -> None:
        """However often it breaks off."""
        with FaultyRegistry(layout, {fault}, times=3) as own:
            assert Asking(own.host).blob() == DATA
            begins = [int(re.findall(r"\d+", wanted)[0]) for wanted in blobs_asked(own)[1:]]
        assert len(begins) == 3
        assert begins == sorted(begins)
        assert begins[0] > 0

    def test_a_stall(self, layout: Path) -> None:
        with FaultyRegistry(layout, {Fault.STALLED_BLOB}, times=1) as own:
            assert Asking(own.host, timeout=2).blob() == DATA
            assert blobs_asked(own) == ["", f"bytes={len(DATA) // 2}-"]

    def test_an_end_to_it(self, layout: Path) -> None:
        with FaultyRegistry(layout, {Fault.HTML_ERROR}) as own:
            with pytest.raises(UnexpectedAnswer, match=r"answered 500 .* \(tried 2 times\); ") as caught:
                Asking(own.host, retries=1).blob()
            assert len(own.requests) == 2
        assert len(str(caught.value).splitlines()) == 1

    def test_no_retries(self, layout: Path) -> None:
        with FaultyRegistry(layout, {Fault.HTML_ERROR}) as own:
            with pytest.raises(UnexpectedAnswer):
                Asking(own.host, retries=0).blob()
            assert len(own.requests) == 1

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (Fault.NAME_UNKNOWN, NotFound),
            (Fault.UNAUTHORIZED_WITHOUT_CHALLENGE, Unauthorized),
            (Fault.RANGE_SHIFTED, UnexpectedAnswer),
            (Fault.SHORT_BLOB, UnexpectedAnswer),
        ],
    )
    def test_never(self, layout: Path, fault: Fault, error: type[PullpipeError]) -> None:
        """What is refused, or wrong in itself, is not asked for again."""
        with FaultyRegistry(layout, {fault}) as own:
            asking = Asking(own.host)
            with pytest.raises(error):
                asking.blob(5 if fault is Fault.RANGE_SHIFTED else 0)
            assert len(own.requests) == 1
        assert asking.notes == []

    def test_nobody_has_ever_answered(self) -> None:
        """The name may be wrong, or the machine offline: two more attempts, whatever `retries` says."""
        asking = Asking(NOWHERE, retries=9)
        with pytest.raises(Unreachable, match=rf"cannot connect to {NOWHERE}: connection refused \(tried 3 times\)"):
            asking.blob()
        assert len(asking.notes) == 2

    def test_no_such_host(self) -> None:
        """The name service has said no; it would say so again."""
        asking = Asking("nosuch.invalid")
        with pytest.raises(Unreachable, match="no such host"):
            asking.blob()
        assert asking.notes == []

    @pytest.mark.needs_root
    def test_a_name_service_that_does_not_answer(self, tmp_path: Path) -> None:
        """It may do so later: that is tried again, unlike a name that there is not."""
        require("unshare")
        command = [
            "unshare",
            "--net",
            sys.executable,
            "-m",
            "pullpipe",
            "--root",
            str(tmp_path),
            "pull",
            "registry.test/a",
        ]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 1
        assert re.search(r"no such host: registry\.test; trying again in .* \(1 of 2\)", done.stderr)
        assert re.search(r"error: no such host: registry\.test \(tried 3 times\); check .* DNS$", done.stderr.rstrip())


def _pause(note: str) -> float:
    """Seconds until the next attempt, as it was told: those that were asked for, and up to one of jitter."""
    [seconds] = re.findall(r"trying again in (\d+\.\d) s", note)
    return float(seconds)


class TestRateLimits:
    def ask(self, status: int, headers: dict[str, str], body: str = "", *, times: int = 1) -> tuple[Asking, int]:
        """Of a server that answers so for some times, and then well; and how often it was asked."""
        count = 0

        async def handler(request: web.BaseRequest) -> web.Response:
            nonlocal count
            count += 1
            return (
                web.Response(status=status, headers=headers, text=body) if count <= times else web.Response(body=DATA)
            )

        async def main() -> Asking:
            async with serving(handler) as host:
                asking = Asking(host)
                assert await asking.whole() == DATA
                return asking

        return asyncio.run(main()), count

    def test_in_seconds(self) -> None:
        asking, _ = self.ask(429, {"Retry-After": "1"})
        assert "limits the rate of requests; " in asking.notes[0]
        assert 1 <= _pause(asking.notes[0]) <= 2

    def test_by_date(self) -> None:
        """Three seconds ahead: of which the date keeps two at least."""
        asking, _ = self.ask(
            503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)}
        )
        assert 1 <= _pause(asking.notes[0]) <= 4

    def test_of_a_foreign_url(self, layout: Path) -> None:
        async def busy(request: web.BaseRequest) -> web.Response:
            return web.Response(status=503, headers={"Retry-After": "1"})

        async def main(own: str) -> list[str]:
            async with serving(busy) as elsewhere:
                asking = Asking(own, retries=1)
                with pytest.raises(PullpipeError, match="answered 503"):
                    await asking.whole(blob=BLOB._replace(urls=(f"http://{elsewhere}/x",)))
                return asking.notes

        with FaultyRegistry(layout, {Fault.NAME_UNKNOWN}) as own:
            *_, note = asyncio.run(main(own.host))
            assert "answered 503 " in note
            assert 1 <= _pause(note) <= 2

    @pytest.mark.parametrize("value", ["", "soon", "-1", "1e3", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct 2015"])
    def test_nonsense(self, value: str) -> None:
        """As if it said nothing."""
        assert self.ask(429, {"Retry-After": value} if value else {})[1] == 2

    @pytest.mark.parametrize("status", [403, 400, 429])
    def test_in_disguise(self, status: int) -> None:
        body = '{"errors": [{"code": "TOOMANYREQUESTS", "message": "too fast"}]}'
        asking, _ = self.ask(status, {}, body)
        assert "limits the rate of requests (too fast)" in asking.notes[0]

    @pytest.mark.parametrize(
        ("seconds", "says"), [(301, "5 min"), (3600, "60 min"), (7200, "2 h"), (10**8, "1157 days")]
    )
    def test_longer_than_anyone_waits(self, seconds: int, says: str) -> None:
        """It gives up at once, and says how long it would have been."""
        message = f"limits the rate of requests and asks to wait {says}; try again later, or authenticate$"
        with pytest.raises(TransferError, match=message):
            self.ask(429, {"Retry-After": str(seconds)})

    def test_the_other_place_does_not_ask_for_so_long(self) -> None:
        """So it is asked again in a moment, and who is left alone is not."""
        asked: list[str] = []

        async def main() -> tuple[bytes, list[str]]:
            async def own(request: web.BaseRequest) -> web.Response:
                asked.append("own")
                return web.Response(status=429, headers={"Retry-After": "7200"})

            async def mirror(request: web.BaseRequest) -> web.Response:
                asked.append("mirror")
                return web.Response(body=DATA) if len(asked) > 2 else web.Response(status=503)

            async with serving(mirror) as first, serving(own) as second:
                asking = Asking(first, second)
                return await asking.whole(), asking.notes

        data, notes = asyncio.run(main())
        assert data == DATA
        assert asked == ["mirror", "own", "mirror"]
        assert "and asks to wait 2 h; trying again in 0." in notes[1]


class TestNotes:
    """Several blobs at once suffer from the same: one note is enough."""

    async def at_once(self, asking: Asking) -> list[bytes | BaseException]:
        async with asking.client() as client:
            return await asyncio.gather(*(read(client) for _ in range(4)), return_exceptions=True)

    def test_nobody_there(self) -> None:
        asking = Asking(NOWHERE, retries=2)
        for error in asyncio.run(self.at_once(asking)):
            assert "connection refused (tried 3 times)" in str(error)
        rounds = [re.sub(r"in \d\.\d s", "", note) for note in asking.notes]
        cause = f"cannot connect to {NOWHERE}: connection refused"
        assert rounds == [f"{cause}; trying again  (1 of 2)", f"{cause}; trying again  (2 of 2)"]

    def test_the_next_place(self, layout: Path) -> None:
        with FaultyRegistry(layout) as own:
            asking = Asking(NOWHERE, own.host)
            assert asyncio.run(self.at_once(asking)) == [DATA] * 4
        assert asking.notes == [f"cannot connect to {NOWHERE}: connection refused; asking {own.host}"]

    def test_again(self) -> None:
        """What has gone well meanwhile is worth another note when it fails again."""
        arrived = 0

        async def main() -> Asking:
            async def handler(request: web.BaseRequest) -> web.Response:
                nonlocal arrived
                arrived += 1
                return web.Response(status=429) if arrived in (1, 3) else web.Response(body=DATA)

            async with serving(handler) as host:
                asking = Asking(host)
                async with asking.client() as client:
                    assert (await read(client), await read(client)) == (DATA, DATA)
                return asking

        assert len(asyncio.run(main()).notes) == 2
