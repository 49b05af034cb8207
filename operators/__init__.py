"""What is done to images: decoding, models, operators. The middle floor; it runs without Ray."""
