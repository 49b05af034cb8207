"""What is done to images: pure operators over models, on a bare torch machine. The middle floor."""
