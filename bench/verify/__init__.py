"""The paper's seven claims, each measured: a number, a figure, a verdict and its conditions."""
