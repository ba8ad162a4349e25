"""Code as a user of the project writes it: it imports nothing of the project."""
