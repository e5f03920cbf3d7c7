"""The stages of a model that is converted to fewer key/value heads and trained on."""
