"""Time, base against head, within one run on one machine: the only way that time is gated."""
