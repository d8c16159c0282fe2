"""What a command leaves for the next start, once its answers are out."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from vankit.cli.terminal import drop_unwritten, stopped_by_sigterm
from vankit.deploy.kept import collecting, keep_whole


@contextmanager
def ready_for_the_next_start() -> Iterator[None]:
    """At the end of the block, keep the detectors and segmenters that it ran; Ctrl-C leaves that to the next time."""
    with collecting() as networks:
        yield
    drop_unwritten()
    for opened in networks:
        waiting = Console(stderr=True).status("preparing the next start, which will be quick (Ctrl-C: not now)")
        with stopped_by_sigterm(), suppress(KeyboardInterrupt), waiting:
            keep_whole(opened)
