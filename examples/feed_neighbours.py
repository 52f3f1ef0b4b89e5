#!/usr/bin/env python3
"""Gives machines an image over the local network: only this one fetches it from its registry.

    feed_neighbours.py ADDRESS IMAGE COMMAND…

ADDRESS is this machine's, as the others reach it; each COMMAND leads to one of them, such as "ssh 10.0.0.8". They have
to be of this machine's platform. While they pull, it serves what is in its store to whoever can reach it. Settings for
a fleet that does so always: docs/fleet.md.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def output(*words: str) -> str:
    """What the command prints; what it has to say goes to our own standard error."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def feed(neighbour: list[str], source: str, name: str) -> None:
    """Has the neighbour pull `source` and call it `name`."""
    output(*neighbour, "pullpipe", "pull", "--quiet", "--plain-http", source)
    output(*neighbour, "pullpipe", "tag", source, name)
    output(*neighbour, "pullpipe", "rmi", source)


def main(address: str, image: str, *commands: str) -> None:
    digest = output("pullpipe", "pull", "--quiet", "--policy", "newer", image)
    name = json.loads(output("pullpipe", "inspect", image))["reference"]
    repository = re.sub(r"^[^/]+/|(:[^:/@]+)?(@.+)?$", "", name)
    serve = ["pullpipe", "serve", "--listen", f"{address}:0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server, ThreadPoolExecutor() as pool:
        assert server.stdout is not None
        source = f"{server.stdout.readline().strip()}/{repository}@{digest}"  # by digest: only what is here will do
        try:
            jobs = {command: pool.submit(feed, shlex.split(command), source, name) for command in commands}
            for command, job in jobs.items():
                job.result()
                print(f"{command} has {name}")
        finally:
            server.terminate()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"this has failed: {shlex.join(error.cmd)}")
