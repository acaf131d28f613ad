"""Trains the arms of a study: in this process, in processes side by side, on a Ray cluster, or by Slurm."""
