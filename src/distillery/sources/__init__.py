"""Algorithms that learn by changing weights, each as many independent learners advanced together."""
