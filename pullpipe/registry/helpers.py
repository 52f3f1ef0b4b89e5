"""Credential helpers: programs that keep users' secrets, by Docker's docker-credential-NAME protocol.

What one answers holds a secret, or may hold one: it never stands in an error. What it writes to standard error, where
it may ask the user for something, is left to it.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from pullpipe.errors import BadConfiguration

if TYPE_CHECKING:
    import subprocess

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a part of a program's name, and never of a path
_NOT_FOUND = b"credentials not found"  # so the helpers' common library begins to say that it has none
_TIMEOUT = 60  # seconds: it may ask for a passphrase
_POLL = 0.01  # seconds between two looks at whether it has ended


class Helper(NamedTuple):
    """The program docker-credential-`name`, which the file `source` names. Who is cancelled meanwhile kills it.

    `server` is what the registry is called there. All raise `BadConfiguration` when the program cannot be used.
    """

    name: str
    source: str

    async def get(self, server: str) -> tuple[str, str] | None:
        """User and secret; None when it has none. The user `<token>` means that the secret is an identity token."""
        answer = await self._run("get", server, server)
        if answer is None:
            return None
        try:
            document = json.loads(answer)
            user, secret = document["Username"], document["Secret"]
        except (ValueError, LookupError, TypeError, RecursionError):
            user = secret = None
        if not isinstance(user, str) or not isinstance(secret, str):
            # Not from the cause: that may have a part of the answer with it.
            raise BadConfiguration(f"{self.program} gave no credentials for {server}, but something else; {self._try}")
        return (user, secret) if user or secret else None

    async def store(self, server: str, user: str, secret: str) -> None:
        """Has it keep these, in place of what it had for the server."""
        text = json.dumps({"ServerURL": server, "Username": user, "Secret": secret})
        if await self._run("store", server, text) is None:
            raise BadConfiguration(f"{self.program} could not store credentials for {server}; {self._try}")

    async def erase(self, server: str) -> bool:
        """Has it forget the server's; False when it says that it had none."""
        return await self._run("erase", server, server) is not None

    @property
    def program(self) -> str:
        """What is run."""
        return f"docker-credential-{self.name}"

    @property
    def _try(self) -> str:
        return f"run it by hand to see why, or take it out of {self.source}"

    async def _run(self, action: str, server: str, text: str) -> bytes | None:
        """What it prints when it reads the text; None when that is that it has no such credentials."""
        import asyncio  # 50 ms, and 10 below, which only those pay who have a helper

        answer = os.memfd_create("answer")
        try:
            process = self._started(action, text, answer)
            try:
                async with asyncio.timeout(_TIMEOUT):
                    while process.poll() is None:  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(_POLL)
            except TimeoutError:
                raise BadConfiguration(f"{self.program} did not answer within {_TIMEOUT} s; {self._try}") from None
            finally:
                process.kill()
                process.wait()
            said = os.pread(answer, os.fstat(answer).st_size, 0)
        finally:
            os.close(answer)
        if process.returncode == 0:
            return said
        if said.strip().lower().startswith(_NOT_FOUND):
            return None
        raise BadConfiguration(f"{self.program} {action} failed ({process.returncode}) for {server}; {self._try}")

    def _started(self, action: str, text: str, answer: int) -> subprocess.Popen[bytes]:
        """The program at work on the text. Both are files in memory, and no pipes that somebody would have to serve."""
        import subprocess

        if not _NAME.fullmatch(self.name):
            raise BadConfiguration(
                f"{self.source} names {self.name!r} as a credential helper: that is no program's name"
            )
        question = os.memfd_create("question")
        try:
            os.write(question, text.encode())
            os.lseek(question, 0, os.SEEK_SET)
            return subprocess.Popen([self.program, action], stdin=question, stdout=answer)
        except FileNotFoundError:
            raise BadConfiguration(
                f"{self.program} is not installed, which {self.source} names; install it, or take it out of there"
            ) from None
        except OSError as error:
            raise BadConfiguration(f"cannot run {self.program}: {error.strerror}; {self._try}") from error
        finally:
            os.close(question)
