"""The registry of parts and methods, and one file for each family of registered methods."""
