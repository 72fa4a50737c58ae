"""Evaluation: tasks with the paper's settings, likelihoods, fluency under a judge, baselines, and the search for a decode profile."""
