"""The run that test_sharding.py compares between processes."""

import numpy as np

IDS = np.random.default_rng(3).integers(3, 80, (4, 11))
SITES = ["resid_post", "router.*", "attn.pattern", "expert.out", "logits"]
