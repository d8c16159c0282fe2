"""What a command leaves for the next start, once its answers are out."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from vankit.cli.terminal import stopped_by_sigterm
from vankit.deploy.kept import keep_whole
from vankit.deploy.opening import Network

logger = logging.getLogger(__name__)


def prepare_next_start(networks: Sequence[Network]) -> None:
    """Keep the detectors and segmenters that a command ran, if somebody sees why it has not ended yet.

    Ctrl-C and SIGTERM leave that to the next time. What goes wrong is logged: the command has done its work.
    """
    if not all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr)):
        return  # whoever reads a pipe, or started a script, would wait for it
    waiting = Console(stderr=True).status("preparing the next start, which will be quick (Ctrl-C: not now)")
    with suppress(KeyboardInterrupt, SystemExit), stopped_by_sigterm():
        for opened in networks:
            try:
                with waiting:
                    keep_whole(opened)
            except Exception as error:
                reason, trace = str(error) or type(error).__name__, os.environ.get("VANKIT_DEBUG") == "1"
                logger.warning("the next start could not be prepared: %s", reason, exc_info=trace)
