"""What lies in a folder of outputs, and how far a sweep is."""
