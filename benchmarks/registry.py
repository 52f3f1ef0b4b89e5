"""Debian's docker-registry on loopback, with the images that are measured."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.images import TAG

_PATIENCE = 10.0  # seconds


class Registry:
    """Alive within its `with` block; its storage is a temporary directory."""

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="pullpipe-bench-registry-")
        directory = Path(self._scratch.name)
        config, log = directory / "config.yml", directory / "log"
        storage = {"filesystem": {"rootdirectory": str(directory / "storage")}}
        config.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": "127.0.0.1:0"}}))
        with log.open("wb") as file:
            self._process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=file, stderr=file)
        self.pid = self._process.pid
        self.host = self._address(log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._scratch.cleanup()

    def push(self, layout: Path, name: str) -> str:
        """Copies the layout's image into it, as it is; returns its reference."""
        target = f"docker://{self.host}/{name}"
        command = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false"]
        subprocess.run([*command, f"oci:{layout}:{TAG}", target], check=True)
        return f"{self.host}/{name}"

    def _address(self, log: Path) -> str:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.02)
        raise RuntimeError(f"docker-registry does not start: {log.read_text(errors='replace')[-500:]}")
