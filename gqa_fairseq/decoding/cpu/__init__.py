"""The driver whose host looks at every step, and what it keeps: for a CPU, where a look is free."""
