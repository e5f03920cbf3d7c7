"""The papers' numbers, and this suite's beside them."""
