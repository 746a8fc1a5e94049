"""Says how a worker's process ended, which only what outlives it can tell. Runs in a process of its own beside each worker, as a script.

It waits for the end of the worker, asks the kernel for the exit status, and prints it as one line where the worker printed its errors: so
it takes the way of all lines to the controller, also from another node. Linux has told this reliably since 6.15, before that only until
the process's parent has taken note; where it does not tell, nothing is printed.
Nothing of launcher is imported, so that it starts in a moment and costs a few MB.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

MARK = ":launcher_exit_code:"
"""Begins the line; the exit code follows, or minus the number of the signal."""
PIDFD_GET_INFO = 0xC040FF0B
"""_IOWR(0xFF, 11, struct pidfd_info) in its first size, 64 bytes: a mask of what is wanted and given, and at the end the status."""
PIDFD_INFO_EXIT = 8
TRIES = 100
PAUSE_S = 0.005


def start() -> None:
    """Have the end of this process watched. Raises OSError where no process can be started."""
    if hasattr(os, "pidfd_open"):
        # A session of its own: a signal to the worker's group would end it as well, before it could tell.
        subprocess.Popen(
            [sys.executable, "-S", "-I", __file__, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


def watch(pid: int) -> None:
    """Wait until the process has ended, then print its exit code, where the kernel tells it."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return  # it has ended already, and is not known any more
    if os.getppid() != pid:
        return
    ended = select.poll()
    ended.register(process, select.POLLIN)
    ended.poll()
    for _ in range(TRIES):
        # The first tells until its parent has taken note of its end, the second from then on.
        status = _of_zombie(pid)
        status = _of_pidfd(process) if status is None else status
        if status is not None:
            os.write(2, f"{MARK}{os.waitstatus_to_exitcode(status)}\n".encode())
            return
        time.sleep(PAUSE_S)


def _of_zombie(pid: int) -> int | None:
    """The wait status of an ended process of which its parent has not taken note."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *_, status = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return int(status) if state == "Z" else None


def _of_pidfd(process: int) -> int | None:
    """The same where the parent has; None where the kernel does not tell."""
    import fcntl

    info = bytearray(64)
    info[0:8] = PIDFD_INFO_EXIT.to_bytes(8, sys.byteorder)
    try:
        fcntl.ioctl(process, PIDFD_GET_INFO, info)
    except OSError:
        return None
    told = int.from_bytes(info[0:8], sys.byteorder)
    return int.from_bytes(info[60:64], sys.byteorder, signed=True) if told & PIDFD_INFO_EXIT else None


if __name__ == "__main__":
    watch(int(sys.argv[1]))
