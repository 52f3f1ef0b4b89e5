"""Requests as such: redirects, Unix sockets, certificates, proxies. All servers are real ones on this machine."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress
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

NOWHERE = [
    "http://a..b/",
    f"http://{'a' * 64}.test/",
    "http://[zz]/",
    "http://[1.2.3.4]/",
    "http://[::1:::]/",
    "http://[::1/",
    "http://host:99999/",
    "http://:80/",
]
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

    @pytest.mark.parametrize("place", NOWHERE)
    def test_nowhere(self, place: str) -> None:
        """Places that there cannot be, of which each of the libraries below complains in its own way."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(status=302, headers={"Location": place})

        async def main() -> None:
            async with serving(handler) as host:
                with pytest.raises(TransferError) as caught:
                    await get(f"http://{host}/", endpoint(host))
                assert not caught.value.transient

        asyncio.run(main())

    def test_a_long_header(self) -> None:
        """As of a signed URL."""

        async def handler(request: web.BaseRequest) -> web.Response:
            return web.Response(text="answer", headers={"Location": f"/?signed={'x' * 20_000}"})

        async def main() -> None:
            async with serving(handler) as host:
                assert await get(f"http://{host}/", endpoint(host)) == (200, b"answer")

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

    def test_that_comes_up_late(self, authority: Authority) -> None:
        """Where plain HTTP would do, too: nothing is concluded from a time when nobody answered."""

        async def ask(http: Http, where: Endpoint) -> int:
            async with http.request("GET", f"{await http.base(where)}/v2/", endpoint=where) as response:
                return response.status

        async def main() -> None:
            with socket.create_server(("127.0.0.1", 0)) as reserved:
                port = reserved.getsockname()[1]
            tls = Tls(ca=(str(authority.path),))
            where = endpoint(f"127.0.0.1:{port}", tls=tls)._replace(schemes=("https", "http"))
            async with Http(Proxies(), timeout=10) as http:
                with pytest.raises(Unreachable, match="refused"):
                    await ask(http, where)
                async with serving(Heard(), port=port, tls=authority.server_context()):
                    assert await ask(http, where) == 200

        asyncio.run(main())

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("schemes", [("https",), ("https", "http")])
    def test_a_certificate_that_we_do_not_have(
        self, authority: Authority, version: ssl.TLSVersion, schemes: tuple[str, ...]
    ) -> None:
        """The other side says so by an alert, and that is what the user is told."""
        context = authority.server_context(ssl.CERT_REQUIRED)
        context.minimum_version = context.maximum_version = version

        def refuse(server: socket.socket) -> None:  # not by asyncio's server, which sends no alert
            with suppress(OSError):  # until it is shut down
                while True:
                    connection, _ = server.accept()
                    with connection.dup() as kept:  # a close with something unread would overtake the alert
                        with suppress(ssl.SSLError):
                            context.wrap_socket(connection, server_side=True)
                        kept.shutdown(socket.SHUT_WR)
                        while kept.recv(1 << 16):
                            pass

        async def ask(host: str) -> None:
            where = endpoint(host, tls=Tls(ca=(str(authority.path),)))._replace(schemes=schemes)
            async with Http(Proxies(), timeout=10) as http:
                base = await http.base(where)
                async with http.request("GET", f"{base}/v2/", endpoint=where):
                    pass

        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=refuse, args=[server], daemon=True)
            thread.start()
            with pytest.raises(Unreachable, match=r"refuses our TLS: .*certificate.*registries\.md") as caught:
                asyncio.run(ask("127.0.0.1:{1}".format(*server.getsockname())))
            server.shutdown(socket.SHUT_RDWR)  # wakes accept
            thread.join()
        assert not caught.value.transient


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
                proxies = Proxies.of({"HTTP_PROXY": f"http://user:word@{host}"})
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
                    proxies = Proxies.of({"HTTPS_PROXY": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"})
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
                proxies = Proxies.of({"HTTPS_PROXY": f"http://user:word@{host}"})
                with pytest.raises(Unreachable, match=rf"the proxy on the way to registry\.test .*{status}") as caught:
                    await get("https://registry.test/v2/", endpoint("registry.test"), proxies)
                assert "word" not in str(caught.value)
                assert caught.value.transient == (status >= 500)

        asyncio.run(main())

    def test_nobody_there(self) -> None:
        proxies = Proxies.of({"HTTPS_PROXY": "http://user:word@127.0.0.1:1"})
        with pytest.raises(Unreachable, match=r"cannot connect by the proxy on the way to registry\.test.*NO_PROXY"):
            asyncio.run(get("https://registry.test/v2/", endpoint("registry.test"), proxies))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()
