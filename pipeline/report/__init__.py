"""A job drawn up as one HTML file."""
