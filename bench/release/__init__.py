"""A release: everything that is published, measured from one clean state of the code."""
