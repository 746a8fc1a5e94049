from tests.support.job_fixtures import backend, clock, code, runs, submit

__all__ = ["backend", "clock", "code", "runs", "submit"]
