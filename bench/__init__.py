"""The harness: cases, measurement, records, reports. Importing it stays light: no torch."""

import os

# Before torch is imported: threads that spin while another one waits for a core cost up to ninety
# times a step's own time on a machine that does something else as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
