"""Built-in policies, as the TOML that a user could have written.

They allow the degradations that cost accuracy or speed only through the variant itself, so that the checks measure
them. What makes the evidence doubtful (assumed preprocessing, samples left out, random data) is never allowed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_DEFAULT = """\
schema = 1

[gate]
alpha = 0.05
on_inconclusive = "block"
allow = ["method-fallback", "not-quantized", "not-simplified", "padded-batch", "saturated-weights"]

[[check]]
id = "accuracy.top1"
metric = "top1"
claim = "non-inferior"
margin = { absolute_pp = 1.0 }

[[check]]
id = "precision.proved"
metric = "precision_proved"

[[check]]
id = "accuracy.agreement"
metric = "agreement"
limit = 95.0
level = "warn"

[[check]]
id = "numerics.sqnr"
metric = "sqnr_db"
limit = 15.0
level = "warn"

[[check]]
id = "latency.ratio"
metric = "latency_ratio"
limit = 1.0
level = "warn"
"""

_STRICT = """\
schema = 1

[gate]
alpha = 0.025
on_inconclusive = "block"
allow = []

[[check]]
id = "accuracy.top1"
metric = "top1"
claim = "non-inferior"
margin = { absolute_pp = 0.5 }
min_samples = 1000

[[check]]
id = "accuracy.agreement"
metric = "agreement"
limit = 97.0

[[check]]
id = "precision.proved"
metric = "precision_proved"

[[check]]
id = "numerics.sqnr"
metric = "sqnr_db"
limit = 20.0

[[check]]
id = "latency.ratio"
metric = "latency_ratio"
limit = 1.0
aa_noise_max = 0.05

[[check]]
id = "size.ratio"
metric = "size_ratio"
limit = 1.0
"""

_NUMERICS = """\
schema = 1

[gate]
allow = ["method-fallback", "not-quantized", "not-simplified", "padded-batch", "saturated-weights"]

[[check]]
id = "numerics.sqnr"
metric = "sqnr_db"
limit = 20.0

[[check]]
id = "precision.proved"
metric = "precision_proved"

[[check]]
id = "latency.ratio"
metric = "latency_ratio"
limit = 1.0
level = "warn"
"""

PRESETS: Mapping[str, str] = MappingProxyType(
    {"quantlab:default": _DEFAULT, "quantlab:strict": _STRICT, "quantlab:numerics": _NUMERICS}
)
"""TOML by name: ``default`` and ``strict`` for labelled classifiers, ``numerics`` for models without class scores."""
