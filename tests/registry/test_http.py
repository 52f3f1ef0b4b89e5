"""Requests as such: redirects, Unix sockets, certificates, proxies. All servers are real ones on this machine."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from pullpipe.errors import BadConfiguration, TransferError, UnexpectedAnswer, Unreachable
from pullpipe.registry.hosts import Endpoint, Tls
from pullpipe.registry.http import Http
from pullpipe.registry.proxies import Proxies
from tests.conftest import require
from tests.support.registry import Authority
from tests.support.serving import serving

HEADERS = {"Authorization": "Bearer secret", "Range": "bytes=1-"}


def endpoint(host: str, *, tls: Tls = Tls(), unix: str = "") -> Endpoint:  # noqa: B008 - it is immutable
    return Endpoint("", host, "", tls=tls, socket=unix, headers={"X-Key": "secret"})


async def get(url: str, where: Endpoint, proxies: Proxies = Proxies()) -> tuple[int, bytes]:  # noqa: B008
    async with (
        Http(proxies, timeout=10) as http,
        http.request("GET", url, headers=HEADERS, endpoint=where) as response,
    ):
        return response.status, await response.read()


class Heard:
    """Answers 200, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(request)
        return web.Response(text="answer")


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_to_another_host(self, status: int) -> None:
        """It gets no authorization, and no header that was set for the first one; but the range."""
        heard = Heard()

        async def main() -> None:
            async with serving(heard, "127.0.0.2") as store:

                async def away(request: web.BaseRequest) -> web.Response:
                    assert request.headers["Authorization"] == "Bearer secret"
                    assert request.headers["X-Key"] == "secret"
                    return web.Response(status=status, headers={"Location": f"http://{store}/x?signed=a%2Fb%3D"})

                async with serving(away) as host:
                    assert await get(f"http://{host}/v2/", endpoint(host)) == (200, b"answer")

        asyncio.run(main())
        [request] = heard.requests
        assert "secret" not in str(request.headers)
        assert request.headers["Range"] == "bytes=1-"
        assert request.raw_path == "/x?signed=a%2Fb%3D", "a signature is not quoted anew"

    @pytest.mark.parametrize("location", ["/other", "other"])
    def test_on_the_same_host(self, location: str) -> None:
        """Authorization goes along; a relative place is understood."""

        async def handler(request: web.BaseRequest) -> web.Response:
            if request.path.endswith("/other"):
                return web.Response(text=request.headers["Authorization"])
            return web.Response(status=307, headers={"Location": location})

        async def main() -> None:
            async with serving(handler) as host:
                assert await get(f"http://{host}/v2/", endpoint(host)) == (200, b"Bearer secret")

        asyncio.run(main())

    @pytest.mark.parametrize(
        "location", ["/", "ftp://host/", "file:///etc/passwd", "http://", "http://[", "http://host:port/"]
    )
    def test_nonsense(self, location: str) -> None:
        """Circles, and what is no place to go to: one line that names who sends us there."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(status=302, headers={"Location": location})

        async def main() -> None:
            async with serving(handler) as host:
                with pytest.raises(UnexpectedAnswer, match=f"{host} redirects"):
                    await get(f"http://{host}/", endpoint(host))

        asyncio.run(main())

    def test_a_name_and_password_in_the_place(self) -> None:
        """They are not sent, and stand in no error."""
        heard = Heard()

        async def main() -> None:
            async with serving(heard, "127.0.0.2") as store:

                async def away(request: web.BaseRequest) -> web.Response:
                    return web.Response(status=302, headers={"Location": f"http://user:word@{store}/"})

                async with serving(away) as host:
                    await get(f"http://{host}/", endpoint(host))

        asyncio.run(main())
        assert "Authorization" not in heard.requests[0].headers


@pytest.fixture(scope="module", name="authority")
def _authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require("openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


def client_of(authority: Authority) -> Tls:
    """Trusts the authority, and has a certificate of it."""
    certificate, key = authority.issue("client")
    return Tls(ca=(str(authority.path),), certificate=str(certificate), key=str(key))


class TestTls:
    def ask(self, authority: Authority, tls: Tls, *, clients: ssl.VerifyMode = ssl.CERT_NONE) -> tuple[int, bytes]:
        async def main() -> tuple[int, bytes]:
            async with serving(Heard(), tls=authority.server_context(clients)) as host:
                return await get(f"https://{host}/", endpoint(host, tls=tls))

        return asyncio.run(main())

    def test_an_authority_of_our_own(self, authority: Authority) -> None:
        assert self.ask(authority, Tls(ca=(str(authority.path),)))[0] == 200

    def test_an_unknown_authority(self, authority: Authority) -> None:
        with pytest.raises(Unreachable, match=r"certificate of 127\.0\.0\.1:\d+ is not trusted.*registries\.md"):
            self.ask(authority, Tls())

    def test_unverified(self, authority: Authority) -> None:
        assert self.ask(authority, Tls(verify=False))[0] == 200

    def test_a_certificate_of_ours(self, authority: Authority) -> None:
        tls = client_of(authority)
        assert self.ask(authority, tls, clients=ssl.CERT_REQUIRED)[0] == 200
        with pytest.raises(TransferError):
            self.ask(authority, tls._replace(certificate="", key=""), clients=ssl.CERT_REQUIRED)

    @pytest.mark.parametrize("broken", ["ca", "certificate", "key"])
    @pytest.mark.parametrize("content", [None, b"nonsense"])
    def test_files_that_cannot_be_used(
        self, authority: Authority, tmp_path: Path, broken: str, content: bytes | None
    ) -> None:
        bad = tmp_path / "bad.pem"
        if content is not None:
            bad.write_bytes(content)
        tls = {
            "ca": Tls(ca=(str(bad),)),
            "certificate": Tls(certificate=str(bad)),
            "key": client_of(authority)._replace(key=str(bad)),
        }[broken]
        with pytest.raises(BadConfiguration, match=r"cannot use .* for TLS"):
            self.ask(authority, tls)

    def test_the_certificate_stays_with_its_host(self, authority: Authority) -> None:
        """A host that we are sent to is not told who we are; that it is trusted goes along."""
        heard = Heard()

        async def main() -> None:
            async with serving(heard, tls=authority.server_context(ssl.CERT_OPTIONAL)) as store:

                async def away(request: web.BaseRequest) -> web.Response:
                    return web.Response(status=307, headers={"Location": f"https://{store}/"})

                where = client_of(authority)
                async with serving(away, tls=authority.server_context(ssl.CERT_REQUIRED)) as host:
                    assert (await get(f"https://{host}/", endpoint(host, tls=where)))[0] == 200

        asyncio.run(main())
        assert heard.requests[0].get_extra_info("peercert") in (None, {})


class TestUnixSockets:
    def test_in_place_of_the_host(self, tmp_path: Path) -> None:
        heard = Heard()

        async def main() -> None:
            async with serving(heard, unix=str(tmp_path / "socket")) as path:
                assert (await get("http://some.registry/v2/", endpoint("some.registry", unix=path)))[0] == 200

        asyncio.run(main())
        assert heard.requests[0].headers["Host"] == "some.registry"

    def test_nobody_there(self, tmp_path: Path) -> None:
        path = str(tmp_path / "socket")
        with pytest.raises(Unreachable, match=f"{path}: no such file"):
            asyncio.run(get("http://some.registry/v2/", endpoint("some.registry", unix=path)))


class TestProxy:
    """Names that only the proxy could resolve."""

    def test_plain(self) -> None:
        heard = Heard()

        async def main() -> None:
            async with serving(heard) as host:
                proxies = Proxies(http=f"http://user:word@{host}")
                assert (await get("http://registry.test/v2/", endpoint("registry.test"), proxies))[0] == 200

        asyncio.run(main())
        [request] = heard.requests
        assert request.raw_path == "http://registry.test/v2/"
        assert request.headers["Proxy-Authorization"] == "Basic dXNlcjp3b3Jk"

    def test_tls(self, authority: Authority) -> None:
        """Through a tunnel: the proxy sees the host and no more."""
        asked: list[bytes] = []

        async def main() -> None:
            async with serving(Heard(), tls=authority.server_context()) as target:

                async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    asked.append(await reader.readuntil(b"\r\n\r\n"))
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    host, port = target.split(":")
                    there, back = await asyncio.open_connection(host, int(port))
                    await asyncio.gather(_copy(reader, back), _copy(there, writer))

                async with await asyncio.start_server(tunnel, "127.0.0.1", 0) as server:
                    proxies = Proxies(https=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
                    where = endpoint("registry.test:444", tls=Tls(verify=False))
                    assert (await get("https://registry.test:444/v2/", where, proxies))[0] == 200

        asyncio.run(main())
        assert asked[0].startswith(b"CONNECT registry.test:444 ")
        assert b"secret" not in asked[0]

    @pytest.mark.parametrize("status", [403, 407, 502])
    def test_refused(self, status: int) -> None:
        """The proxy is blamed, without its URL, which has a password."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(status=status)

        async def main() -> None:
            async with serving(handler) as host:
                proxies = Proxies(https=f"http://user:word@{host}")
                with pytest.raises(Unreachable, match=rf"the proxy on the way to registry\.test .*{status}") as caught:
                    await get("https://registry.test/v2/", endpoint("registry.test"), proxies)
                assert "word" not in str(caught.value)
                assert caught.value.transient == (status >= 500)

        asyncio.run(main())

    def test_nobody_there(self) -> None:
        proxies = Proxies(https="http://user:word@127.0.0.1:1")
        with pytest.raises(Unreachable, match=r"cannot connect to the proxy on the way to registry\.test.*NO_PROXY"):
            asyncio.run(get("https://registry.test/v2/", endpoint("registry.test"), proxies))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()
