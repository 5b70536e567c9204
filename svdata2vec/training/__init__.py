"""Pretraining and fine-tuning: the step, the loop around it, optimizer and schedules."""
