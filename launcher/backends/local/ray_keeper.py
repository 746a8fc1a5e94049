"""The process that holds the local Ray: starts it, writes where it is, ends it when nobody has used it for a while.

Ray lives as long as its head's driver. So the driver is a process of its own that does nothing else: when a command, a supervisor or a
controller is killed, Ray and the workers go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from launcher.backends.local import ray_instance
from launcher.backends.local.supervisors import living_processes
from launcher.core.process import ProcessRef

POLL_S = 5.0


def main(state: Path) -> int:
    with ray_instance.keeper_lock(state) as mine:
        if not mine:
            return 0
        ray_instance.ready_file(state).unlink(missing_ok=True)
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
        ray_instance.write(
            state,
            ray_instance.LocalRay(
                address=info["gcs_address"],
                dashboard=f"http://{info['webui_url']}" if info["webui_url"] else "",
                session=info["session_dir"],
                versions=ray_instance.versions(),
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
        ray_instance.ready_file(state).unlink(missing_ok=True)
        ray.shutdown()
    return 0


def _wait_until_idle(state: Path, ended: threading.Event) -> None:
    """Return when told to end, or when for IDLE_LIMIT_S there was neither an actor nor a supervisor."""
    from ray.util import list_named_actors

    last_used = time.monotonic()
    while not ended.wait(POLL_S):
        if list_named_actors(all_namespaces=True) or any(living_processes(state)):
            last_used = time.monotonic()
        elif time.monotonic() - last_used > ray_instance.IDLE_LIMIT_S:
            return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
