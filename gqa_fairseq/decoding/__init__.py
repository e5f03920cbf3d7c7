"""The decoding engine: what is kept between steps, one step, and the search over steps."""
