"""Where one training step's time and bytes go, and how far it is from what the machine allows."""
