"""A credential helper as Docker's protocol has it: a program of its own, which keeps a log of how it was called."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_PROGRAM = """#!{python} -IS
import json, sys
action, text = sys.argv[1], sys.stdin.read()
with open({log!r}, "a") as log:
    print(action, text, file=log)
with open({secrets!r}) as file:
    kept = json.load(file)
missing = action != "store" and text not in kept
if missing:
    sys.exit(print("credentials not found in native keychain") or 1)
if action == "get":
    print(json.dumps({{"ServerURL": text, **kept[text]}}))
elif action == "erase":
    del kept[text]
else:
    new = json.loads(text)
    kept[new.pop("ServerURL")] = new
with open({secrets!r}, "w") as file:
    json.dump(kept, file)
"""


class CredentialHelper:
    """The program `docker-credential-NAME` in the directory `path`, which belongs on PATH."""

    def __init__(self, path: Path, name: str) -> None:
        self.program = path / f"docker-credential-{name}"
        self._log = path / f"{name}.log"
        self._secrets = path / f"{name}.json"
        path.mkdir(exist_ok=True)
        self._log.touch()
        self.keep({})
        self.write(_PROGRAM.format(python=sys.executable, log=str(self._log), secrets=str(self._secrets)))

    def write(self, program: str) -> None:
        """Has it be another program."""
        self.program.write_text(program)
        self.program.chmod(0o755)

    def keep(self, secrets: dict[str, tuple[str, str]]) -> None:
        """What it has from now on: of servers, users and secrets."""
        kept = {server: {"Username": user, "Secret": secret} for server, (user, secret) in secrets.items()}
        self._secrets.write_text(json.dumps(kept))

    @property
    def kept(self) -> dict[str, tuple[str, str]]:
        """What it has."""
        kept = json.loads(self._secrets.read_text())
        return {server: (one["Username"], one["Secret"]) for server, one in kept.items()}

    @property
    def calls(self) -> list[str]:
        """The action and what it read, of each call."""
        return self._log.read_text().splitlines()
