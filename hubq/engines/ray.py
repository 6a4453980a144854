"""Ray carries steps: each is a task that waits for its needs, on a cluster of this machine or an existing one.

    --engine ray               a cluster on this machine that ends with the run; --jobs steps at once (default: one a core)
    --engine ray://HOST:PORT   an existing one, through Ray's client
    --engine ray:ADDRESS       an existing one, from one of its machines; `ray:auto` finds it

On existing clusters a machine does one step at a time, or --jobs of them. A step uses all cores of its machine wherever it is
done: sums in float32 may depend on the number of threads, and so Ray's own choice of that number is undone. A task whose
process or machine dies is done again; a step is idempotent, so nothing of it is lost or doubled. hubq's own errors are final.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubq import __version__
from hubq.errors import HubqError, MissingExtra, Usage

RETRIES = 3  # of a task whose process or machine dies
PAUSE = 0.25  # seconds between two looks at what is told
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # Ray sets the first of them to the CPUs of a task
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}
FRESH = "install the same one on all machines of the cluster"
