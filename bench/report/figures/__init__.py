"""The report's figures: each module draws one kind and returns `Drawing`s."""
