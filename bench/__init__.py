"""The harness: cases, measurement, records, reports. Importing it stays light: no torch."""
