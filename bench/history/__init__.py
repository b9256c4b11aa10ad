"""What asv tracks over the history of the source. Import-safe: asv imports every module here."""
