"""The driver whose host does not wait for the device, and what it keeps: steps of fixed shapes."""
