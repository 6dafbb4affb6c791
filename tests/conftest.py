"""Settings of all tests: no test depends on how long something takes, and CI draws the same examples every time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("quantlab", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("quantlab")
