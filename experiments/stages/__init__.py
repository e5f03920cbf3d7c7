"""A sweep as a graph of stages: prepare, train, evaluate, measure. What is done is not done again.

graph.py declares the stages and what each depends on; runner.py runs one; job.py and sweep.py go
through them.
"""
