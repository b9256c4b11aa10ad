"""What can be measured of a case: one probe a file, called as the file is."""
