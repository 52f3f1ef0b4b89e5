"""The owner's side of the unpack worker: what a job says is heard, however it ends."""

from __future__ import annotations

import asyncio

from pullpipe.pipe.unpack import channel


def test_the_last_words_of_a_job_that_left_ours_unread() -> None:
    """The kernel then resets the connection; what has come before counts, and then the end."""

    async def work() -> None:
        async with channel() as ours:
            await ours.available(5)
            ours.theirs.sendall(b'{"unpacked": 1}\n{"failed": "layer", "why": "no tar"}\n{"cut')
            ours.theirs.close()
            while ours._reader.exception() is None:  # noqa: ASYNC110 - until the event loop has heard of both
                await asyncio.sleep(0)
            assert await ours.hear() == {"unpacked": 1}
            assert await ours.hear() == {"failed": "layer", "why": "no tar"}
            assert await ours.hear() is None
            await ours.drain()

    asyncio.run(asyncio.wait_for(work(), 10))
