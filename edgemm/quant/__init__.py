"""Quantization: read → collect → calibrate → plan → apply, each a function from one type to the next."""
