"""`pullpipe demo`"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter

from pullpipe.cli.common import run_until_signal
from pullpipe.demo import DemoImage, build_image
from pullpipe.errors import RunError
from pullpipe.progress import human_size
from pullpipe.registry.server import serve

HELP = "the whole job in one minute: a registry and an image made on the spot, pulled, stacked and run"


def configure(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    """In directories of its own, which it removes: the user's store is not touched."""
    with tempfile.TemporaryDirectory(prefix="pullpipe-demo-") as directory:
        return run_until_signal(_demo(directory))


async def _demo(directory: str) -> int:
    from pathlib import Path

    layout, root = Path(directory, "layout"), os.path.join(directory, "store")
    _say("1. An image, made of this machine's own shell and tools")
    image = build_image(layout)
    _describe(image)
    requests: Counter[str] = Counter()

    def seen(method: str, path: str) -> None:
        requests["blobs" if "/blobs/" in path else method] += 1

    async with serve(layout, on_request=seen) as host:
        reference = f"{host}/{image.reference}"
        _say(f"2. A registry that serves it, at {host}")
        _say("3. A pull over HTTP: all layers at once, unpacked while they arrive")
        await _pullpipe(root, "pull", reference)
        print(f"   ({requests['blobs']} blobs fetched)")
        requests.clear()
        _say("4. The same pull again")
        await _pullpipe(root, "pull", reference)
        asked = ", ".join(f"{count} {method}" for method, count in sorted(requests.items()))
        print(f"   (requests: {asked}; blobs fetched: {requests['blobs']})")
        if requests["blobs"]:
            raise RunError("the second pull fetched something; this is a bug")
    _say("5. The registry is gone; a command in the stacked layers needs no network")
    await _pullpipe(root, "run", "--rm", "--hostname", "demo", reference)
    _say("6. Nothing is left but the image")
    await _pullpipe(root, "ps")
    await _pullpipe(root, "images")
    return 0


async def _pullpipe(root: str, *words: str) -> None:
    """Runs a command as a user would, in a process of its own. Raises `RunError` when it fails."""
    import asyncio

    print(f"$ pullpipe {' '.join(words)}", flush=True)
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pullpipe", "--root", root, *words, stdin=subprocess.DEVNULL
    )
    code = await process.wait()
    if code != 0:
        raise RunError(f"`pullpipe {words[0]}` ended with {code}; what it said stands above")
    print(f"   ({1000 * (time.perf_counter() - started):.0f} ms)", flush=True)


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _describe(image: DemoImage) -> None:
    for number, layer in enumerate(image.layers):
        print(
            f"   layer {number}: {layer.digest.short}  {layer.compression:5} {human_size(layer.size):>8}  {layer.shows}"
        )
