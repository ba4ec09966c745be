"""Imported by the fork server alone: all that every worker needs is imported here, and nothing of it is run.

No library starts a thread or looks for a GPU when it is imported; a test says so.  Threads do not survive a fork, and
a GPU that was looked for before one is lost to the children.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
from types import FrameType

from burnish.loop.heap import settle_heap

PR_SET_PDEATHSIG = 1
NEEDED = (
    "burnish.loop.worker_process",
    "burnish.loop.setup",
    # The architecture of tiny models, which transformers imports when the first one is built.
    "transformers.models.qwen3.modeling_qwen3",
)


def end_with(parent: int) -> None:
    """End this process when `parent` ends, also while it imports; it ends by itself only between two requests.

    The kernel signals the end of the thread that has started this process, so the handler looks whether all of it is
    gone.  Otherwise SIGTERM, which may be meant for a whole process group, is left to the parent.
    """

    def look(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGTERM, look)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


end_with(os.getppid())
for name in NEEDED:
    importlib.import_module(name)
# What is left out of collections here is not copied by those of the workers.
settle_heap()
