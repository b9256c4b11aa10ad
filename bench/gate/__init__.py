"""The regression gate: counts against a baseline, time against another tree, and its own proof."""
