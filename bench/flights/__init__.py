"""What trained policies do: trajectories, their figures and their animation."""
