"""What a problem and a method have to satisfy, as functions that the tests call too."""
