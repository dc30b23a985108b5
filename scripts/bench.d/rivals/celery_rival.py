"""Celery on Redis, measured as the other queues are.

`python celery_rival.py PORT JOBS SINGLES CALLERS` prints one JSON object: jobs accepted a second
singly by CALLERS threads, and finished a second by one worker of 50 threads whose task does
nothing but give 2 KB back. It has no call that accepts many at once.
"""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

from celery import Celery

PORT = os.environ.get("RIVAL_PORT") or sys.argv[1]
app = Celery("celery_rival", broker=f"redis://127.0.0.1:{PORT}/0", backend=f"redis://127.0.0.1:{PORT}/1")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=4)
PAYLOAD = "x" * 1000


@app.task(name="call")
def call(body):
    return "y" * 2000


def rate(count, began):
    return count / (time.monotonic() - began)


def single(jobs, callers):
    """The results' keys are not looked at: accepting alone is timed."""

    def caller():
        for _ in range(jobs // callers):
            call.delay(PAYLOAD)

    began = time.monotonic()
    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rate(jobs // callers * callers, began)


def lives(port, jobs):
    """From the worker's first result to the last, so that its start does not count."""
    results = app.backend.client
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_rival", "worker", "--pool", "threads",
         "--concurrency", "50", "--loglevel", "ERROR"],
        cwd=pathlib.Path(__file__).parent,
        env={**os.environ, "RIVAL_PORT": port, "PYTHONDONTWRITEBYTECODE": "1", "C_FORCE_ROOT": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (first := results.dbsize()):
            time.sleep(0.005)
        began = time.monotonic()
        while (done := results.dbsize()) < jobs:
            time.sleep(0.005)
        return rate(done - first, began)
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    port, (jobs, callers) = sys.argv[1], map(int, sys.argv[3:5])
    # Every accepted job is one of those the worker then finishes.
    found = {"single": single(jobs, callers), "lives": lives(port, jobs // callers * callers)}
    print(json.dumps(found))
