"""SOCKS proxies: all by a real one, which alone can resolve the registry's name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from pullpipe.errors import Unreachable
from pullpipe.registry.hosts import Endpoint, Tls
from pullpipe.registry.http import Http
from pullpipe.registry.proxies import Proxies
from tests.conftest import Cli, require
from tests.support.images import File, Image, Layer, write_layout
from tests.support.processes import until
from tests.support.registry import Authority, Registry
from tests.support.serving import serving
from tests.support.socks import Socks, is_connected

pytestmark = pytest.mark.needs_root
NAME = "registry.test"
USER = "us%er:wo@rd"
QUOTED = "us%25er:wo%40rd"


@pytest.fixture(scope="module", name="proxy")
def _proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Socks]:
    require("microsocks")
    with Socks(tmp_path_factory.mktemp("socks"), NAME, USER) as proxy:
        yield proxy


@pytest.fixture(scope="module", name="authority")
def _authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require("openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


async def get(url: str, proxy: str, tls: Tls = Tls()) -> bytes:  # noqa: B008
    where = Endpoint("", url.split("/")[2], "", tls=tls)
    async with (
        Http(Proxies.of({"ALL_PROXY": proxy}), timeout=20) as http,
        http.request("GET", url, endpoint=where) as response,
    ):
        return await response.read()


def of_server(proxy: str, *, certificate: ssl.SSLContext | None, tls: Tls, url: str = "https://{}/") -> bytes:
    """What a server answers that is called `NAME`, asked through the proxy."""

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="answer")

    async def main() -> bytes:
        async with serving(answer, tls=certificate) as host:
            port = host.split(":")[1]
            try:
                return await get(url.format(f"{NAME}:{port}"), proxy, tls)
            finally:  # that we have closed our end the server hears from the proxy
                await asyncio.to_thread(until, lambda: not is_connected(int(port)), "the proxy closes its end")

    return asyncio.run(main())


@pytest.fixture(scope="module", name="certified")
def _certified(authority: Authority) -> ssl.SSLContext:
    """For a server that is called `NAME`."""
    context = authority.server_context()
    context.load_cert_chain(*authority.issue("named", f"DNS:{NAME}"))
    return context


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_tls(proxy: Socks, authority: Authority, certified: ssl.SSLContext, scheme: str) -> None:
    """Verified from end to end, by the name that the proxy resolves."""
    tls = Tls(ca=(str(authority.path),))
    assert of_server(f"{scheme}://{QUOTED}@{proxy.host}", certificate=certified, tls=tls) == b"answer"


def test_plain(proxy: Socks) -> None:
    through = f"socks5://{QUOTED}@{proxy.host}"
    assert of_server(through, certificate=None, tls=Tls(), url="http://{}/") == b"answer"


def test_pull(cli: Cli, registry: Registry, tmp_path: Path, proxy: Socks) -> None:
    """Images come as without a proxy, and an unchanged one is known again."""
    write_layout(tmp_path / "layout", {"a": Image([Layer([File("a", b"content")])])})
    registry.push(tmp_path / "layout", "a", to="socks/a:1")
    reference = f"{NAME}:{registry.port}/socks/a:1"
    through = {"ALL_PROXY": f"socks5://{QUOTED}@{proxy.host}"}
    done = cli("pull", "--plain-http", "-q", reference, env=through)
    assert done.returncode == 0, done.stderr
    assert cli("pull", "--plain-http", "-q", reference, env=through).stdout == done.stdout
    assert cli("cat", reference, "a").stdout == "content"


@pytest.mark.parametrize(
    ("proxy_url", "why", "transient"),
    [
        ("socks5://other:secret@{}", "authentication failure", False),
        ("socks5://{}", "no acceptable authentication methods", False),
        ("socks5://other:secret@127.0.0.1:1", "connection refused", True),
        ("socks5://other:secret@nowhere.invalid", "no such host", True),
    ],
)
def test_the_proxy_is_at_fault(proxy: Socks, proxy_url: str, why: str, transient: bool) -> None:
    """It is blamed, without its URL, which has a password."""
    with pytest.raises(
        Unreachable, match=f"the proxy on the way to registry.test: .*{why}.*; check .*ALL_PROXY"
    ) as caught:
        asyncio.run(get("https://registry.test/", proxy_url.format(proxy.host)))
    assert "secret" not in str(caught.value)
    assert caught.value.transient == transient


def test_nobody_there(proxy: Socks) -> None:
    with pytest.raises(Unreachable, match=r"on the way to registry\.test:1: it says: connection refused") as caught:
        asyncio.run(get("https://registry.test:1/", f"socks5://{QUOTED}@{proxy.host}"))
    assert caught.value.transient


@pytest.mark.parametrize(
    "replies", [[b""], [b"\x05"], [b"HTTP/1.1 400 x\r\n\r\n"], [b"\x05\x00", b"\x05\x00\x00\x03\xffabc"]]
)
def test_what_is_no_socks_proxy(replies: list[bytes]) -> None:
    """It answers something else, or breaks off."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.read(1000)
            writer.write(reply)
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(Unreachable, match=r"the proxy on the way to registry\.test: it (broke off|says)"):
                await get("https://registry.test/", f"socks5://127.0.0.1:{port}")

    asyncio.run(main())


def test_no_such_host(proxy: Socks) -> None:
    with pytest.raises(Unreachable, match=r"no such host: a\.\.b"):
        asyncio.run(get("https://a..b/", f"socks5://{QUOTED}@{proxy.host}"))


def test_tls_that_fails(proxy: Socks, authority: Authority, certified: ssl.SSLContext) -> None:
    """What is said of it is what is said without a proxy."""
    through, trusting = f"socks5://{QUOTED}@{proxy.host}", Tls(ca=(str(authority.path),))
    with pytest.raises(Unreachable, match=rf"certificate of {NAME}:\d+ is not trusted.*registries\.md"):
        of_server(through, certificate=certified, tls=Tls())
    with pytest.raises(Unreachable, match=rf"certificate of {NAME}:\d+ is not trusted: .*[Hh]ostname mismatch"):
        of_server(through, certificate=authority.server_context(), tls=trusting)
    with pytest.raises(Unreachable, match=rf"{NAME}:\d+ does not speak TLS.*--plain-http"):
        of_server(through, certificate=None, tls=trusting)
