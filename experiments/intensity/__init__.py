"""When do fewer key/value heads pay? What the counts and a machine's rates predict."""
