"""The process that holds the local Ray: starts it, tells where it is, ends it when nobody has used it for a while.

Ray lives as long as its head's driver, so this is a driver of its own that does nothing else: killing a command, a
supervisor or a controller leaves Ray and the workers alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from launcher.backends.local import ray_instance as local_ray
from launcher.core.process import ProcessRef

POLL_S = 5.0


def main(state: Path) -> int:
    with local_ray.keeper_lock(state) as mine:
        if not mine:
            return 0
        (state / "ray.json").unlink(missing_ok=True)
        try:
            import ray

            context = ray.init(
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                _temp_dir=str(state / "ray"),
                log_to_driver=False,
                logging_level="ERROR",
                namespace="launcher-keeper",
            )
        except BaseException as error:
            (state / "error.txt").write_text(f"{type(error).__name__}: {error}")
            raise
        info = context.address_info
        local_ray.write(
            state,
            local_ray.LocalRay(
                address=info["gcs_address"],
                dashboard=f"http://{info['webui_url']}" if info["webui_url"] else "",
                session=info["session_dir"],
                versions=local_ray.versions(),
                keeper=ProcessRef.of(os.getpid()),
                gpus=int(ray.cluster_resources().get("GPU", 0)),
            ),
        )
        ended = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        _wait_until_idle(state, ended)
        (state / "ray.json").unlink(missing_ok=True)
        ray.shutdown()
    return 0


def _wait_until_idle(state: Path, ended: threading.Event) -> None:
    """Return when told to end, or when for IDLE_LIMIT_S there was neither an actor nor a supervisor."""
    from ray.util import list_named_actors

    last_used = time.monotonic()
    while not ended.wait(POLL_S):
        if list_named_actors(all_namespaces=True) or _supervisors(state):
            last_used = time.monotonic()
        elif time.monotonic() - last_used > local_ray.IDLE_LIMIT_S:
            return


def _supervisors(state: Path) -> bool:
    from launcher.backends.local.backend import living_supervisors

    return any(living_supervisors(state))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
