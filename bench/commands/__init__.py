"""The verbs of the command line. A new verb is one module here and one line in `bench.cli`."""
